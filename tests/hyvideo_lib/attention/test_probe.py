"""A backend is offered only if it is there, runs and is right."""

from __future__ import annotations

import builtins
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hyvideo_lib.attention import BACKENDS, Backend
from hyvideo_lib.attention.probe import probe
from hyvideo_lib.attention.sdpa import sdpa

CPU = torch.device("cpu")
OPTIONAL = [name for name in BACKENDS if name != "sdpa"]


def made_of(kernel: Callable[..., Tensor]) -> Backend:
    return Backend("made", lambda: kernel, "Make it.")


def ask(backend: Backend, head_dim: int = 16, dtype: torch.dtype = torch.float32):
    return probe(backend, CPU, head_dim, dtype)


def test_pytorchs_own_always_works() -> None:
    assert ask(BACKENDS["sdpa"])
    assert ask(BACKENDS["sdpa"], 128, torch.bfloat16)


def test_every_optional_backend_has_its_stand_in(modules) -> None:
    assert set(modules) == set(OPTIONAL)


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_package_that_is_there_and_computes_passes(name: str, install, modules) -> None:
    module, function, kernel = modules[name]
    install(module, **{function: kernel})
    assert ask(BACKENDS[name]).reason == ""


@pytest.mark.parametrize("name", OPTIONAL)
def test_one_that_is_not_installed_says_so(name: str, modules, monkeypatch: pytest.MonkeyPatch) -> None:
    package = modules[name][0].split(".")[0]
    original = builtins.__import__

    def without(module: str, *args, **kwargs):
        if module.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return original(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    verdict = ask(BACKENDS[name])
    assert (verdict.reason, verdict.is_missing, bool(verdict)) == ("is not installed", True, False)


@pytest.mark.parametrize("name", OPTIONAL)
def test_one_that_lacks_what_it_needs_itself_says_what(name: str, modules, monkeypatch: pytest.MonkeyPatch) -> None:
    package = modules[name][0].split(".")[0]
    original = builtins.__import__

    def without(module: str, *args, **kwargs):
        if module.split(".")[0] == package:
            raise ModuleNotFoundError("No module named 'einops'", name="einops")
        return original(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    verdict = ask(BACKENDS[name])
    assert (verdict.reason, verdict.is_missing) == ("cannot be loaded (No module named 'einops')", False)


def test_a_package_without_the_function_cannot_be_loaded(install) -> None:
    install("comfy_kitchen")
    verdict = ask(BACKENDS["comfy_kitchen"])
    assert verdict.reason.startswith("cannot be loaded (cannot import name 'int8_attention'")
    assert not verdict.is_missing


def test_a_kernel_that_raises_is_refused_with_its_words() -> None:
    def picky(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise RuntimeError("only half precision, please.\nand a card")

    reason = ask(made_of(picky)).reason
    assert reason == "does not run on cpu in float32 with heads of 16 (only half precision, please)"


@pytest.mark.parametrize(
    "liar",
    [
        lambda q, k, v: sdpa(q * 2, k, v),  # another scale
        lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda q, k, v: sdpa(q, k[:, :, :-40], v[:, :, :-40]),  # the last block forgotten
        lambda q, k, v: v,
        lambda q, k, v: torch.full_like(q, float("nan")),
        lambda q, k, v: torch.zeros_like(q),
    ],
)
def test_wrong_numbers_are_found_out(liar: Callable[..., Tensor]) -> None:
    assert ask(made_of(liar), 64).reason.startswith("gives wrong numbers (cosine to PyTorch's")


def test_a_result_of_another_shape_is_refused() -> None:
    reason = ask(made_of(lambda q, k, v: sdpa(q, k, v).transpose(1, 2))).reason
    assert reason.startswith("returns a tensor of [1, 1985, 2, 16] in place of [1, 2, 1985, 16]")


def test_what_rounds_to_8_bits_passes() -> None:
    def rounded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scales = [part.abs().amax(-1, keepdim=True) / 127 for part in (q, k, v)]
        return sdpa(*((part / scale).round() * scale for part, scale in zip((q, k, v), scales, strict=True)))

    assert ask(made_of(rounded), 64)


def counting_padding(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As a kernel that takes the rest of its last block of 64 for tokens with a score of zero."""
    pad = -k.shape[2] % 64
    return sdpa(q, *(torch.nn.functional.pad(part, (0, 0, 0, pad)) for part in (k, v)))


@pytest.mark.parametrize(("tokens", "is_right"), [(100, False), (128, True), (500, True), (None, True)])
def test_what_is_too_short_is_found_out_where_it_is(tokens: int | None, is_right: bool) -> None:
    given = {} if tokens is None else {"tokens": tokens}
    verdict = probe(made_of(counting_padding), CPU, 64, torch.float32, **given)
    assert bool(verdict) == is_right
    assert is_right or verdict.reason == "gives wrong numbers for 100 tokens (0.86 times as large as PyTorch's)"


def test_a_backend_is_tried_once() -> None:
    calls = []
    backend = made_of(lambda q, k, v: calls.append(1) or sdpa(q, k, v))
    assert ask(backend)
    assert ask(backend)
    assert len(calls) == 1
    assert ask(backend, 32)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("error", "is_kept"),
    [
        (OSError(28, "No space left on device"), False),  # where Triton puts its kernels
        (RuntimeError("Triton Error: could not launch"), False),
        (NotImplementedError("No operator found for these inputs"), True),
        (ValueError("Unsupported CUDA architecture"), True),
    ],
)
def test_only_what_does_not_pass_is_remembered(error: Exception, is_kept: bool) -> None:
    failures = [error]

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if failures:
            raise failures.pop()
        return sdpa(q, k, v)

    backend = made_of(kernel)
    assert ask(backend).reason == f"does not run on cpu in float32 with heads of 16 ({error})"
    assert bool(ask(backend)) is not is_kept


def test_a_package_whose_loading_fails_for_now_is_tried_again() -> None:
    failures = [OSError(24, "Too many open files")]

    def load() -> Callable[..., Tensor]:
        if failures:
            raise failures.pop()
        return sdpa

    backend = Backend("made", load, "Make it.")
    assert "Too many open files" in ask(backend).reason
    assert ask(backend)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError()])
def test_a_lack_of_memory_is_not_remembered(error: Exception) -> None:
    short = [error]

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if short:
            raise short.pop()
        return sdpa(q, k, v)

    backend = made_of(kernel)
    verdict = ask(backend)
    assert verdict.is_short
    assert verdict.reason.startswith("cannot be tried on cpu, as memory ran out (")
    assert ask(backend)


def test_nor_where_there_is_none_for_the_problem_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    backend = made_of(sdpa)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", none_left)
        assert ask(backend).is_short
    assert ask(backend)
