"""What sampling is said to take, against what PyTorch's allocator hands out; and that a run does as it was planned."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tiny import transformer_inputs
from torch import Tensor

from benchmarks.measure import working_memory
from hyvideo_lib.attention import BACKENDS, Backend, attend
from hyvideo_lib.attention.sdpa import sdpa
from hyvideo_lib.demo import assets
from hyvideo_lib.memory import BlockSwap
from hyvideo_lib.memory.machine import Machine
from hyvideo_lib.memory.plan import with_reserve
from hyvideo_lib.pipeline import Files, GenerateRequest, LoraChoice, Precision, SampleRun, generate, stages
from hyvideo_lib.pipeline.dry_run import transformer_work
from hyvideo_lib.pipeline.files import PlannedFiles
from hyvideo_lib.pipeline.plan import plan_run
from hyvideo_lib.transformer import HunyuanVideoTransformer, LeanConfig, TransformerConfig
from hyvideo_lib.transformer.lean_config import lean_steps

SMALL = TransformerConfig(4, 4, 192, 6, 1, 1, rope_axes=(8, 12, 12), text_dim=8, pooled_dim=8, num_refiner_blocks=1)
LATENTS, TEXT = (8, 32, 32), 16
CPU = torch.device("cpu")
FILES = Files(assets.TRANSFORMER, assets.VAE, assets.LLM, assets.CLIP)
PLANNED = PlannedFiles(assets.TRANSFORMER, assets.VAE, assets.LLM, assets.CLIP)


@pytest.fixture(scope="module")
def model() -> HunyuanVideoTransformer:
    torch.manual_seed(0)
    return HunyuanVideoTransformer(SMALL).requires_grad_(False)


def measured(model: HunyuanVideoTransformer, lean: LeanConfig | None) -> int:
    """The peak of one forward above the level before it; None is the plain form."""
    inputs = transformer_inputs(latent_shape=LATENTS, text_tokens=TEXT, config=SMALL)
    with torch.set_grad_enabled(lean is None):
        return working_memory(lambda: model(**inputs, lean=lean or LeanConfig()), CPU)[0]


@pytest.mark.parametrize("lean", [LeanConfig(), LeanConfig(2), LeanConfig(6), LeanConfig(6, 256)], ids=str)
def test_a_run_takes_what_it_is_said_to_take(model: HunyuanVideoTransformer, lean: LeanConfig) -> None:
    assert transformer_work(model, LATENTS, TEXT, lean=lean) == pytest.approx(measured(model, lean), rel=0.05)


@pytest.mark.parametrize("lean", [LeanConfig(), LeanConfig(2)], ids=str)
def test_what_a_kernel_holds_is_counted(model: HunyuanVideoTransformer, lean: LeanConfig, greedy: str) -> None:
    attend_fn = partial(attend, kernel=hold_twice_the_queries)
    inputs = transformer_inputs(latent_shape=LATENTS, text_tokens=TEXT, config=SMALL)
    with torch.no_grad():
        found = working_memory(lambda: model(**inputs, lean=lean, attend_fn=attend_fn), CPU)[0]
    said = transformer_work(model, LATENTS, TEXT, lean=lean, attention=greedy)
    assert said == pytest.approx(found, rel=0.05)
    assert said > 1.1 * transformer_work(model, LATENTS, TEXT, lean=lean)


def hold_twice_the_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """No attention: PyTorch's kernel for CPUs holds something of its own."""
    held = torch.cat([q, k])
    out = held[: len(q)] + v
    del held
    return out


@pytest.fixture
def greedy(monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend of the table that is said to hold as much."""
    monkeypatch.setitem(BACKENDS, "greedy", Backend("greedy", lambda: sdpa, "", is_exact=False, extra=2.0))
    return "greedy"


def test_run_and_plan_count_the_attention_that_is_asked_for(greedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    request = GenerateRequest("a red circle", width=256, height=256, frames=33, steps=1)
    monkeypatch.setattr("hyvideo_lib.memory.plan.RESERVE_BYTES", 0)
    monkeypatch.setattr(stages, "free_device_bytes", lambda device: 2**40)
    fitted, works = SampleRun.fitted, []
    monkeypatch.setattr(SampleRun, "fitted", lambda *args: (found := fitted(*args), works.append(found[1]))[0])
    planned = []
    for name in ("sdpa", greedy):
        precision = Precision(attention=name)
        planned.append(plan_run(request, PLANNED, precision, Machine(2**40), CPU).stages[1].way.work)
        generate(request, FILES, precision=precision)
    assert planned[1] > 1.1 * planned[0]
    assert works[1] > 1.05 * works[0]


def test_head_groups_bring_a_forward_below_a_quarter_of_the_plain_one(model: HunyuanVideoTransformer) -> None:
    assert measured(model, LeanConfig(6, 256)) <= 0.25 * measured(model.requires_grad_(True), None)
    model.requires_grad_(False)


def test_no_step_takes_more_than_the_one_before(model: HunyuanVideoTransformer) -> None:
    sizes = [transformer_work(model, LATENTS, TEXT, lean=step) for step in lean_steps(6)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.6 * sizes[0]


def test_the_steps_split_the_heads_evenly() -> None:
    assert {24 % step.head_groups for step in lean_steps(24)} == {0}
    assert lean_steps(24)[0] == LeanConfig()


@pytest.mark.parametrize("loras", [(), (LoraChoice(assets.LORAS["kohya"]),)], ids=["bare", "lora"])
@pytest.mark.parametrize("share", [2.0, 0.9, 0.6, 0.3, 0.1])
def test_a_run_is_as_lean_and_swaps_as_many_blocks_as_its_plan(
    share: float, loras: tuple[LoraChoice, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a card with a share of what all would take; a plan has the longest text, so a run may keep a block more."""
    request = GenerateRequest("a red circle", width=256, height=256, frames=33, steps=1, loras=loras)
    precision, swap = Precision(compute="bfloat16"), BlockSwap(prefetch=0)
    monkeypatch.setattr("hyvideo_lib.memory.plan.RESERVE_BYTES", 2**20)  # the demo model is small

    def plan(free: int):
        return plan_run(request, PLANNED, precision, Machine(free), CPU, swap).stages[1]

    roomy = plan(2**40)
    free = int(share * (with_reserve(roomy.way.work) + roomy.resident))
    monkeypatch.setattr(stages, "free_device_bytes", lambda device: free)
    runs: list[SampleRun] = []
    fitted = SampleRun.fitted
    monkeypatch.setattr(
        SampleRun, "fitted", lambda run, *where: runs.append((found := fitted(run, *where))[0]) or found
    )
    result = generate(request, FILES, precision=precision, swap=swap)
    wanted, (run,) = plan(free), runs
    assert ("heads in" in wanted.way.label) == (run.lean != LeanConfig())
    if wanted.fits:
        assert f"heads in {run.lean.head_groups} groups" in wanted.way.label or run.lean == LeanConfig()
        assert 0 <= len(wanted.swapped) - result.report.stages["sample"].swapped_blocks <= 1
