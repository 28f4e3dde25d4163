"""How often the blocks are gone through in each step, held to the calls that a solver makes under guidance."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from hyvideo_lib.memory import BlockSwap
from hyvideo_lib.memory.plan import Way, Weights, plan_stage
from hyvideo_lib.pipeline import GenerateRequest
from hyvideo_lib.pipeline.plan_steps import cost_steps, passes_of
from hyvideo_lib.sampling import SOLVERS, GuidanceConfig, denoise, make_sigmas, truncate_sigmas
from hyvideo_lib.sampling.guidance import make_velocity_fn

WINDOW = GuidanceConfig(cfg_scale=3.0, cfg_start=0.3, cfg_end=0.7)


def called(request: GenerateRequest) -> list[list[int]]:
    """The batches of every model call, step by step, of a run that computes nothing."""
    calls: list[list[int]] = [[]]

    class Model:
        config = type("Config", (), {"has_guidance": False})

        def __call__(self, latents, *args, **kwargs):
            calls[-1].append(len(latents))
            return torch.zeros_like(latents)

    class Host:
        def step(self, done, total):
            calls.append([])

        check_interrupt = stage = preview = lambda self, *args: None

    sigmas = truncate_sigmas(make_sigmas(request.steps, request.shift), request.strength)
    one = torch.ones(1, 1)
    prompt = SimpleNamespace(text_embeds=one[None], text_mask=one, pooled_embeds=one)
    velocity = make_velocity_fn(Model(), prompt, prompt, sigmas=sigmas, config=request.guidance)
    denoise(velocity, torch.zeros(1, 1, 1, 1, 1), sigmas, request.solver, Host())
    return calls[:-1]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guidance", [GuidanceConfig(), GuidanceConfig(cfg_scale=3.0), WINDOW])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_passes_are_those_of_a_run(solver, guidance, strength):
    for batched in (True, False):
        guided = replace(guidance, batched=batched)
        request = GenerateRequest("-", steps=9, solver=solver, guidance=guided, strength=strength)
        assert list(passes_of(request, in_turn=not batched)) == called(request)


def test_heun_and_a_window_of_cfg_make_steps_of_several_costs():
    request = GenerateRequest("-", steps=10, solver="heun", guidance=WINDOW)
    stage = plan_stage("sample", Weights(0, (100,) * 4), [Way("", 0)], 2**29, None, BlockSwap(2, 0))
    stage = replace(stage, swapped=(0, 1))
    cost = cost_steps(request, stage, 1e9, 1e12, 1, 1e12)
    assert (max(cost.flops), min(cost.flops), cost.flops[-1]) == (16e9, 4e9, 4e9)  # 4 blocks, of 2 calls for 2 prompts
    assert (max(cost.moved), min(cost.moved)) == (400, 200)
    assert cost.quickest.seconds == pytest.approx(4e-3, rel=1e-3)
    told = cost.to_dict(1e12)
    assert told["seconds_at_least"] < told["seconds"] < max(cost.seconds)
    assert told["flops"] == pytest.approx(sum(cost.flops) / 10)
    assert (told["flops_at_most"], told["moved_bytes_at_most"]) == (16e9, 400)
    assert not cost.is_cached
