"""From a name to what runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import difference, tiny_transformer, transformer_inputs
from torch import Tensor

from hyvideo_lib.attention import (
    AUTO,
    BACKENDS,
    PLAIN,
    Backend,
    Problem,
    attend,
    attention_names,
    check_backend,
    choose,
    choose_attention,
    register,
    verdicts,
)
from hyvideo_lib.attention.sdpa import sdpa
from hyvideo_lib.errors import InvalidSetting, MissingPackage, OutOfMemory

CPU = torch.device("cpu")
PROBLEM = Problem(CPU, torch.float32, 16, 2, 3000)


def half(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v) / 2


def test_auto_on_a_cpu_is_pytorchs_own() -> None:
    assert choose_attention(AUTO, PROBLEM) is PLAIN
    assert choose_attention("sdpa", PROBLEM) is PLAIN


def test_a_named_one_runs(install, modules) -> None:
    module, function, kernel = modules["xformers"]
    calls = []
    install(module, **{function: lambda *qkv: calls.append(1) or kernel(*qkv)})
    chosen = choose_attention("xformers", PROBLEM)
    assert chosen.name == "xformers"
    calls.clear()
    q, k, v = torch.randn(3, 2, 3, 7, 16, generator=torch.Generator().manual_seed(0))
    assert difference(chosen.attend_fn(q, k, v, None), attend(q, k, v)) <= 1e-6
    assert len(calls) == 1
    found, expected = chosen.attend_fn(q, k, v, [7, 4]), attend(q, k, v, [7, 4])
    assert len(calls) == 3  # one for each item: these kernels take no mask
    assert difference(found[0], expected[0]) <= 1e-6
    assert difference(found[1, :, :4], expected[1, :, :4]) <= 1e-6


def test_a_name_that_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="attention is 'magic', but must be one of: auto, sdpa, flash_attn_2"):
        check_backend("magic", CPU, 16, torch.float32)


def test_one_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def load():
        raise ModuleNotFoundError("No module named 'gone'")

    monkeypatch.setitem(BACKENDS, "gone", Backend("gone", load, "Install it with: pip install gone."))
    with pytest.raises(MissingPackage, match=r"attention gone is not installed\. Install it with: pip install gone\."):
        check_backend("gone", CPU, 16, torch.float32)
    assert "gone" in attention_names()


def test_one_that_is_wrong_is_refused_by_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "liar", Backend("liar", lambda: lambda q, k, v: v, "Mend it."))
    with pytest.raises(InvalidSetting, match=r"attention liar gives wrong numbers .*Mend it\. Or take auto"):
        choose_attention("liar", PROBLEM)
    assert not verdicts(CPU, 16, torch.float32)["liar"]


def test_one_that_there_is_no_memory_to_try_is_not_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    short = [torch.cuda.OutOfMemoryError("CUDA out of memory")]

    def kernel(q, k, v):
        if short:
            raise short.pop()
        return sdpa(q, k, v)

    monkeypatch.setitem(BACKENDS, "large", Backend("large", lambda: kernel, "Mend it."))
    with pytest.raises(OutOfMemory, match=r"attention large cannot be tried on cpu, as memory ran out \(CUDA out"):
        choose_attention("large", PROBLEM)
    assert choose_attention("large", PROBLEM).name == "large"


def test_one_that_is_wrong_for_few_tokens_is_refused_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter(q, k, v):
        return sdpa(q, k, v) * (1 - 40 / (k.shape[2] + 40))

    monkeypatch.setitem(BACKENDS, "shorter", Backend("shorter", lambda: shorter, "Mend it."))
    assert choose_attention("shorter", replace(PROBLEM, tokens=119_056)).name == "shorter"
    assert "shorter" in [backend.name for backend in choose.agreeing(replace(PROBLEM, tokens=119_056))]
    few = replace(PROBLEM, tokens=130)
    with pytest.raises(InvalidSetting, match=r"attention shorter gives wrong numbers for 130 tokens \(0\.76 times"):
        choose_attention("shorter", few)
    assert "shorter" not in [backend.name for backend in choose.agreeing(few)]


def test_auto_takes_only_exact_ones_that_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kernel, is_exact in (("right", sdpa, True), ("rough", sdpa, False), ("wrong", lambda q, k, v: v, True)):
        monkeypatch.setitem(BACKENDS, name, Backend(name, lambda kernel=kernel: kernel, "", is_exact))
    assert [backend.name for backend in choose.agreeing(PROBLEM)] == ["sdpa", "right"]


def test_the_fastest_is_timed_once_for_all_of_a_size() -> None:
    slow, fast = Backend("slow", lambda: sdpa, ""), Backend("fast", lambda: half, "")
    timed = []

    def seconds(kernel, problem: Problem) -> float:
        timed.append(problem)
        return {sdpa: 2.0, half: 1.0}[kernel]

    assert choose.fastest([slow, fast], PROBLEM, seconds) is fast
    assert timed == [Problem(CPU, torch.float32, 16, 2, 4096)] * 2
    assert choose.fastest([slow, fast], Problem(CPU, torch.float32, 16, 2, 4000), seconds) is fast
    assert len(timed) == 2
    choose.fastest([slow, fast], Problem(CPU, torch.float32, 16, 2, 5000), seconds)
    assert len(timed) == 4


@pytest.mark.parametrize(
    ("error", "is_forgotten"),
    [
        (ValueError("too long"), False),
        (RuntimeError("launch failed"), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
    ],
)
def test_one_that_fails_at_the_real_size_is_passed_over(error: Exception, is_forgotten: bool) -> None:
    """For good, or until what was in the way is gone."""
    timed = []

    def seconds(kernel, problem: Problem) -> float:
        timed.append(kernel)
        if kernel is half and timed.count(half) == 1:
            raise error
        return {sdpa: 2.0, half: 1.0}[kernel]

    plain, other = BACKENDS["sdpa"], Backend("other", lambda: half, "")
    assert choose.fastest([plain, other], PROBLEM, seconds) is plain
    assert choose.fastest([plain, other], PROBLEM, seconds) is (other if is_forgotten else plain)
    assert timed == [sdpa, half, half][: 3 if is_forgotten else 2]


def test_a_kernel_is_timed_on_a_problem_that_fills_a_card_but_not_its_memory() -> None:
    for tokens in (10, 1024, 10_000, 119_056):
        bucket = Problem(CPU, torch.bfloat16, 128, 24, tokens).bucket
        assert bucket.num_heads * bucket.tokens <= choose.HEAD_TOKENS
        assert min(tokens, choose.MAX_BUCKET) <= bucket.tokens
    assert choose.seconds_of(sdpa, Problem(CPU, torch.float32, 8, 1, 64)) > 0


def test_apples_device_is_waited_for_too(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("all of it"))  # takes no device
    choose._wait(torch.device("mps"))
    assert waited == ["all of it"]


def test_a_host_can_bring_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "host", Backend("host", lambda: half, ""))
    register(Backend("host", lambda: sdpa, "Ask the host.", is_exact=False))
    assert choose_attention("host", PROBLEM).name == "host"


def test_a_transformer_gives_the_same_with_every_kernel(install, modules) -> None:
    model, inputs = tiny_transformer(), transformer_inputs(2, valid=(11, 4))
    with torch.no_grad():
        plain = model(**inputs)
        for name, (module, function, kernel) in modules.items():
            install(module, **{function: kernel})
            chosen = choose_attention(name, Problem(CPU, torch.float32, 24, 2, 29))
            found = model(**inputs, attend_fn=chosen.attend_fn)
            assert difference(found, plain) <= 1e-5, name
