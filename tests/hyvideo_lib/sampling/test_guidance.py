"""Guidance with a tiny model of the transformer's signature: text matters through the mask, so padding can be seen."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from hyvideo_lib.errors import InvalidGuidance, InvalidSetting
from hyvideo_lib.sampling import (
    SOLVERS,
    GuidanceConfig,
    combine_cfg,
    denoise,
    draw_noise,
    make_sigmas,
    make_velocity_fn,
    rescale_guidance,
)

CHANNELS, TEXT_DIM, POOLED_DIM = 3, 5, 4
SHAPE = (CHANNELS, 2, 4, 4)  # (C, T, H, W)


@dataclass(frozen=True)
class Prompt:
    text_embeds: Tensor
    text_mask: Tensor
    pooled_embeds: Tensor


@dataclass(frozen=True)
class TinyConfig:
    has_guidance: bool = True


@dataclass
class Call:
    batch: int
    timesteps: Tensor
    guidance: float | None
    clean_first_frame: bool
    dtype: torch.dtype


class TinyModel(nn.Module):
    """Velocity from the latents, the masked mean of the text, the pooled text, the timestep and the guidance."""

    def __init__(self, has_guidance: bool = True, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = TinyConfig(has_guidance)
        self.mix = nn.Conv3d(CHANNELS, CHANNELS, 1)
        self.txt_in = nn.Linear(TEXT_DIM, CHANNELS)
        self.vector_in = nn.Linear(POOLED_DIM, CHANNELS)
        self.to(dtype).requires_grad_(False)
        self.calls: list[Call] = []

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text_embeds: Tensor,
        text_mask: Tensor,
        pooled_embeds: Tensor,
        guidance: float | None = None,
        clean_first_frame: bool = False,
    ) -> Tensor:
        self.calls.append(Call(len(latents), timesteps, guidance, clean_first_frame, latents.dtype))
        dtype = self.mix.weight.dtype
        mask = text_mask.to(dtype)[..., None]
        text = (self.txt_in(text_embeds.to(dtype)) * mask).sum(1) / mask.sum(1)
        vec = (
            text
            + self.vector_in(pooled_embeds.to(dtype))
            + (timesteps[:, None] / 1000 + (guidance or 0) / 10).to(dtype)
        )
        return torch.sin(self.mix(latents.to(dtype)) + vec[:, :, None, None, None])


def make_prompt(seed: int, tokens: int, batch: int = 1) -> Prompt:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    mask[:, -1] = 0  # the encoder's own padding
    return Prompt(
        torch.randn(batch, tokens, TEXT_DIM, generator=generator),
        mask,
        torch.randn(batch, POOLED_DIM, generator=generator),
    )


POSITIVE, NEGATIVE = make_prompt(1, 7), make_prompt(2, 4)
SIGMAS = make_sigmas(10, 7.0)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("lengths", [(7, 4), (4, 7), (5, 5)])
def test_batched_and_in_turn_give_the_same_velocity(lengths: tuple[int, int], rescale: float) -> None:
    positive, negative = make_prompt(1, lengths[0]), make_prompt(2, lengths[1])
    latents = draw_noise(SHAPE, [0, 1])
    velocities, batches = [], []
    for batched in (True, False):
        model = TinyModel()
        config = GuidanceConfig(cfg_scale=5.0, rescale=rescale, batched=batched)
        velocity_fn = make_velocity_fn(model, positive, negative, sigmas=SIGMAS, config=config)
        velocities.append(velocity_fn(latents, 0.5))
        batches.append([call.batch for call in model.calls])
    assert batches == [[4], [2, 2]]
    torch.testing.assert_close(velocities[0], velocities[1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("batched", [True, False])
def test_cfg_starts_at_the_negative_and_goes_past_the_positive(batched: bool) -> None:
    latents = draw_noise(SHAPE, [0])
    v_pos = make_velocity_fn(TinyModel(), POSITIVE, sigmas=SIGMAS)(latents, 0.5)
    v_neg = make_velocity_fn(TinyModel(), NEGATIVE, sigmas=SIGMAS)(latents, 0.5)
    config = GuidanceConfig(cfg_scale=3.0, batched=batched)
    guided = make_velocity_fn(TinyModel(), POSITIVE, NEGATIVE, sigmas=SIGMAS, config=config)(latents, 0.5)
    torch.testing.assert_close(guided, v_neg + 3.0 * (v_pos - v_neg), rtol=0, atol=2e-6)
    assert (v_pos - v_neg).abs().max() > 0.1


def test_a_scale_of_one_ignores_the_negative_and_takes_one_pass() -> None:
    latents, model = draw_noise(SHAPE, [0]), TinyModel()
    with_negative = make_velocity_fn(model, POSITIVE, NEGATIVE, sigmas=SIGMAS)(latents, 0.5)
    assert [call.batch for call in model.calls] == [1]
    assert torch.equal(with_negative, make_velocity_fn(model, POSITIVE, sigmas=SIGMAS)(latents, 0.5))


def test_cfg_without_a_negative_prompt_is_refused() -> None:
    with pytest.raises(InvalidGuidance, match="negative prompt"):
        make_velocity_fn(TinyModel(), POSITIVE, sigmas=SIGMAS, config=GuidanceConfig(cfg_scale=2.0))


@pytest.mark.parametrize(
    ("start", "end", "guided_steps"),
    [
        (0.0, 1.0, range(10)),
        (0.0, 0.5, range(5)),
        (0.5, 1.0, range(5, 10)),
        (0.3, 0.7, range(3, 7)),
        (0.2, 0.21, []),
    ],
)
def test_cfg_acts_on_its_part_of_the_steps_only(start: float, end: float, guided_steps: range | list[int]) -> None:
    model = TinyModel()
    config = GuidanceConfig(cfg_scale=4.0, cfg_start=start, cfg_end=end)
    velocity_fn = make_velocity_fn(model, POSITIVE, NEGATIVE, sigmas=SIGMAS, config=config)
    denoise(velocity_fn, draw_noise(SHAPE, [0]), SIGMAS)
    assert [i for i, call in enumerate(model.calls) if call.batch == 2] == list(guided_steps)
    assert len(model.calls) == 10


def test_both_calls_of_heun_at_one_level_are_guided_alike() -> None:
    model = TinyModel()
    config = GuidanceConfig(cfg_scale=4.0, cfg_end=0.5)
    velocity_fn = make_velocity_fn(model, POSITIVE, NEGATIVE, sigmas=SIGMAS, config=config)
    denoise(velocity_fn, draw_noise(SHAPE, [0]), SIGMAS, "heun")
    kinds = {(call.timesteps[0].item(), call.batch) for call in model.calls}
    assert len(kinds) == 10  # one kind of call per level
    assert sum(batch == 2 for _, batch in kinds) == 5


def test_embedded_guidance_goes_only_to_models_that_take_it() -> None:
    for has_guidance, expected in ((True, 4.5), (False, None)):
        model = TinyModel(has_guidance)
        make_velocity_fn(model, POSITIVE, sigmas=SIGMAS, config=GuidanceConfig(embedded=4.5))(
            draw_noise(SHAPE, [0]), 1.0
        )
        assert model.calls[0].guidance == expected


def test_the_model_gets_float32_latents_timesteps_and_the_first_frame_flag() -> None:
    model = TinyModel(dtype=torch.bfloat16)
    velocity_fn = make_velocity_fn(model, POSITIVE, sigmas=SIGMAS, clean_first_frame=True)
    velocity = velocity_fn(draw_noise(SHAPE, [0, 1]), SIGMAS[3].item())
    (call,) = model.calls
    assert velocity.dtype == call.dtype == call.timesteps.dtype == torch.float32
    assert torch.equal(call.timesteps, (1000 * SIGMAS[3]).repeat(2))
    assert call.clean_first_frame


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("batched", [True, False])
def test_swapped_batch_order_gives_swapped_videos(name: str, batched: bool) -> None:
    positive = make_prompt(1, 6, batch=2)
    swapped = Prompt(positive.text_embeds.flip(0), positive.text_mask.flip(0), positive.pooled_embeds.flip(0))
    noise = draw_noise(SHAPE, [10, 11])
    config = GuidanceConfig(cfg_scale=3.0, rescale=0.5, batched=batched)
    first, second = (
        denoise(make_velocity_fn(TinyModel(), prompt, NEGATIVE, sigmas=SIGMAS, config=config), latents, SIGMAS, name)
        for prompt, latents in ((positive, noise), (swapped, noise.flip(0)))
    )
    torch.testing.assert_close(first, second.flip(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_two_runs_with_one_seed_are_bit_equal(name: str) -> None:
    config = GuidanceConfig(cfg_scale=3.0, rescale=0.5)
    first, second = (
        denoise(
            make_velocity_fn(TinyModel(), POSITIVE, NEGATIVE, sigmas=SIGMAS, config=config),
            draw_noise(SHAPE, [7]),
            SIGMAS,
            name,
        )
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_a_wrong_number_of_prompts_is_refused() -> None:
    velocity_fn = make_velocity_fn(TinyModel(), make_prompt(1, 5, batch=2), sigmas=SIGMAS)
    with pytest.raises(InvalidSetting, match="2 prompts were encoded for 3 videos"):
        velocity_fn(draw_noise(SHAPE, [0, 1, 2]), 0.5)


def test_the_velocity_is_rescaled_as_configured() -> None:
    latents = draw_noise(SHAPE, [0, 1])
    v_pos = make_velocity_fn(TinyModel(), POSITIVE, sigmas=SIGMAS)(latents, 0.5)
    guided, rescaled = (
        make_velocity_fn(
            TinyModel(), POSITIVE, NEGATIVE, sigmas=SIGMAS, config=GuidanceConfig(cfg_scale=6.0, rescale=rescale)
        )(latents, 0.5)
        for rescale in (0.0, 1.0)
    )
    dims = (1, 2, 3, 4)
    torch.testing.assert_close(rescaled.std(dims), v_pos.std(dims))
    assert bool(((guided.std(dims) - v_pos.std(dims)).abs() > 0.01).all())


def test_rescale_matches_the_deviation_of_each_video() -> None:
    v_pos, guided = draw_noise(SHAPE, [1, 2]), 3.0 * draw_noise(SHAPE, [3, 4])
    for video in range(2):
        ratio = v_pos[video].double().numpy().std() / guided[video].double().numpy().std()
        for rescale in (0.3, 1.0):
            expected = guided[video] * (rescale * ratio + 1 - rescale)
            torch.testing.assert_close(rescale_guidance(guided, v_pos, rescale)[video], expected.float())


def test_rescale_is_off_at_zero_and_survives_a_constant_velocity() -> None:
    v_pos, guided = draw_noise(SHAPE, [1]), draw_noise(SHAPE, [2])
    assert rescale_guidance(guided, v_pos, 0.0) is guided
    assert bool(rescale_guidance(torch.zeros_like(v_pos), torch.zeros_like(v_pos), 1.0).isfinite().all())


def test_combining_at_one_gives_the_positive() -> None:
    v_neg, v_pos = draw_noise(SHAPE, [1]), draw_noise(SHAPE, [2])
    torch.testing.assert_close(combine_cfg(v_neg, v_pos, 1.0), v_pos, rtol=0, atol=1e-6)
    assert torch.equal(combine_cfg(v_neg, v_pos, 0.0), v_neg)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"cfg_scale": 0.5}, "cfg_scale is 0.5, but must be from 1 to 30"),
        ({"cfg_scale": float("nan")}, "cfg_scale is nan"),
        ({"cfg_scale": float("inf")}, "cfg_scale is inf"),
        ({"embedded": -1.0}, "guidance is -1"),
        ({"embedded": 1e30}, "guidance is 1e\\+30, but must be from 0 to 100"),
        ({"cfg_scale": 1e30}, "cfg_scale is 1e\\+30"),
        ({"cfg_start": -0.1}, "cfg_start is -0.1, but must be from 0 to 1"),
        ({"cfg_end": 1.5}, "cfg_end is 1.5"),
        ({"cfg_start": 0.6, "cfg_end": 0.4}, "start must lie before the end"),
        ({"rescale": 2.0}, "rescale is 2"),
    ],
)
def test_settings_outside_their_range_are_refused_and_named(bad: dict[str, float], named: str) -> None:
    with pytest.raises(InvalidGuidance, match=named):
        GuidanceConfig(**bad)  # type: ignore[arg-type]
