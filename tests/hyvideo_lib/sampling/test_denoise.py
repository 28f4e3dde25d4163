"""The loop: the reference's trajectories, the host's calls, interruption, first frames, and numbers that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hyvideo_lib.errors import Interrupted, InvalidSetting, NonFiniteOutput
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.sampling import SOLVERS, Kept, denoise, draw_noise, make_sigmas, mix_noise, truncate_sigmas

GOLDENS = load_file(Path(__file__).parents[2] / "goldens" / "primitives.safetensors")
SHAPE = (4, 3, 4, 4)  # (C, T, H, W)


def smooth_velocity(latents: Tensor, sigma: float) -> Tensor:
    """Mixes neighbouring frames, as a model does: what stands in frame 0 shows in the others."""
    return torch.sin(latents) + sigma * latents.roll(1, dims=2)


@pytest.mark.parametrize(("index", "steps", "shift"), [(0, 10, 7.0), (1, 6, 17.0)])
def test_euler_follows_the_reference_step_by_step(index: int, steps: int, shift: float) -> None:
    target, states = GOLDENS[f"traj{index}.target"], GOLDENS[f"traj{index}.states"]
    seen: list[Tensor] = []

    def toy_velocity(latents: Tensor, sigma: float) -> Tensor:
        seen.append(latents)
        return torch.sin(3 * latents) + 0.5 * sigma * (latents - target) + 0.1 * target

    last = denoise(toy_velocity, GOLDENS[f"traj{index}.x0"], make_sigmas(steps, shift))
    torch.testing.assert_close(torch.stack([*seen, last]), states, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_host_hears_of_the_stage_every_step_and_the_clean_estimate(name: str) -> None:
    data = draw_noise(SHAPE, [5])
    heard: list[object] = []
    host = HeadlessHost(
        on_stage=lambda stage, total: heard.append((stage, total)),
        on_step=lambda done, total: heard.append((done, total)),
        on_preview=lambda latents: heard.append(latents),
    )
    denoise(lambda x, sigma: (x - data) / sigma, draw_noise(SHAPE, [1]), make_sigmas(3, 7.0), name, host)
    previews = [item for item in heard if isinstance(item, Tensor)]
    assert [item for item in heard if not isinstance(item, Tensor)] == [("sampling", 3), (1, 3), (2, 3), (3, 3)]
    assert len(previews) == 3
    for preview in previews:
        assert preview.dtype == torch.float32
        torch.testing.assert_close(preview, data, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_interruption_stops_before_the_next_model_call(name: str) -> None:
    calls: list[float] = []
    host = HeadlessHost(on_step=lambda done, total: host.cancel() if done == 2 else None)

    def counted(latents: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return smooth_velocity(latents, sigma)

    with pytest.raises(Interrupted):
        denoise(counted, draw_noise(SHAPE, [0]), make_sigmas(10, 7.0), name, host)
    assert len(calls) == 2 * SOLVERS[name].calls_per_step


def test_interruption_is_checked_between_the_calls_of_one_step() -> None:
    calls: list[float] = []
    host = HeadlessHost()

    def cancelling(latents: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        host.cancel()
        return latents

    with pytest.raises(Interrupted):
        denoise(cancelling, draw_noise(SHAPE, [0]), make_sigmas(10, 7.0), "heun", host)
    assert len(calls) == 1


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_stop_being_numbers_raise_at_their_step(name: str, bad: float) -> None:
    sigmas = make_sigmas(5, 7.0)

    def breaking(latents: Tensor, sigma: float) -> Tensor:
        velocity = smooth_velocity(latents, sigma)
        if sigma == sigmas[3]:
            velocity[1, 0, 0, 0, 0] = bad
        return velocity

    # Heun meets the level a step earlier, as the far end of that step.
    step = 3 if name == "heun" else 4
    with pytest.raises(NonFiniteOutput, match=rf"Step {step} of 5 .* in video 2 of 3"):
        denoise(breaking, draw_noise(SHAPE, [0, 1, 2]), sigmas, name)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_clean_first_frame_is_there_at_every_call_and_every_step(name: str) -> None:
    first = draw_noise((4, 1, 4, 4), [9])
    seen: list[Tensor] = []
    previews: list[Tensor] = []

    def watching(latents: Tensor, sigma: float) -> Tensor:
        seen.append(latents[:, :, :1].clone())
        return smooth_velocity(latents, sigma)

    host = HeadlessHost(on_preview=previews.append)
    noise = draw_noise(SHAPE, [0, 1])
    found = denoise(watching, noise, make_sigmas(6, 7.0), name, host, clean_first=first)
    both = first.expand(2, -1, -1, -1, -1)
    assert all(torch.equal(frame, both) for frame in [*seen, *(preview[:, :, :1] for preview in previews)])
    assert torch.equal(found[:, :, :1], both)
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("name", SOLVERS)
def test_noise_under_a_clean_first_frame_does_not_matter_and_the_frame_itself_does(name: str) -> None:
    sigmas, noise = make_sigmas(6, 7.0), draw_noise(SHAPE, [0])
    first, other = draw_noise((4, 1, 4, 4), [9]), draw_noise((4, 1, 4, 4), [10])
    renoised = torch.cat([100 * other, noise[:, :, 1:]], dim=2)
    found = denoise(smooth_velocity, noise, sigmas, name, clean_first=first)
    assert torch.equal(found, denoise(smooth_velocity, renoised, sigmas, name, clean_first=first))
    changed = denoise(smooth_velocity, noise, sigmas, name, clean_first=other)
    assert not torch.equal(found[:, :, 1:], changed[:, :, 1:])


@pytest.mark.parametrize("shape", [(1, 4, 2, 4, 4), (1, 3, 1, 4, 4), (3, 4, 1, 4, 4)])
def test_a_first_frame_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidSetting, match="clean first frame"):
        denoise(smooth_velocity, draw_noise(SHAPE, [0, 1]), make_sigmas(2, 7.0), clean_first=torch.zeros(shape))


@pytest.mark.parametrize("name", SOLVERS)
def test_less_strength_ends_nearer_to_the_given_latents(name: str) -> None:
    given, data = draw_noise(SHAPE, [1]), draw_noise(SHAPE, [2])

    def towards_data(latents: Tensor, sigma: float) -> Tensor:
        """A model that sees the data mixed with what is there already."""
        return (latents - (sigma * data + (1 - sigma) * latents)) / max(sigma, 1e-6)

    distances = []
    for strength in (0.2, 0.5, 1.0):
        sigmas = truncate_sigmas(make_sigmas(20, 1.0), strength)
        start = mix_noise(given, draw_noise(SHAPE, [3]), sigmas[0].item())
        distances.append((denoise(towards_data, start, sigmas, name) - given).abs().mean().item())
    assert distances == sorted(distances)
    assert distances[0] < 0.5 * distances[2]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_video_does_not_depend_on_its_neighbours_in_the_batch(name: str) -> None:
    together = denoise(smooth_velocity, draw_noise(SHAPE, [3, 4, 5]), make_sigmas(5, 7.0), name)
    alone = denoise(smooth_velocity, draw_noise(SHAPE, [4]), make_sigmas(5, 7.0), name)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-6)


def test_half_precision_latents_are_carried_in_float32() -> None:
    found = denoise(smooth_velocity, draw_noise(SHAPE, [0]).half(), make_sigmas(2, 7.0))
    assert found.dtype == torch.float32


def test_no_gradients_are_recorded() -> None:
    weight = torch.ones(1, requires_grad=True)
    assert not denoise(lambda x, sigma: weight * x, draw_noise(SHAPE, [0]), make_sigmas(2, 7.0)).requires_grad


@pytest.mark.parametrize(
    "levels", [[1.0], [0.0, 0.5, 1.0], [1.0, 0.5, 0.5, 0.0], [1.5, 0.0], [1.0, -0.1], [1.0, float("nan")]]
)
def test_levels_that_do_not_fall_within_one_and_zero_are_refused(levels: list[float]) -> None:
    with pytest.raises(InvalidSetting, match="noise levels"):
        denoise(smooth_velocity, draw_noise(SHAPE, [0]), torch.tensor(levels))


def test_an_unknown_solver_is_refused_before_anything_runs() -> None:
    def never(latents: Tensor, sigma: float) -> Tensor:
        raise AssertionError("the model was called")

    with pytest.raises(InvalidSetting, match="solver"):
        denoise(never, draw_noise(SHAPE, [0]), make_sigmas(2, 7.0), "plms")


def make_kept(mask: float | torch.Tensor) -> tuple[Kept, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    given, noise = torch.randn(2, 1, 4, 3, 2, 2, generator=generator)
    mask = torch.full((1, 1, 1, 2, 2), mask) if isinstance(mask, float) else mask
    return Kept(given, noise, mask), noise


def test_a_mask_of_ones_changes_nothing():
    kept, noise = make_kept(1.0)
    sigmas = make_sigmas(5, 3.0)
    velocity_fn = lambda latents, sigma: latents.sin()  # noqa: E731
    assert torch.equal(denoise(velocity_fn, noise, sigmas, kept=kept), denoise(velocity_fn, noise, sigmas))


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_what_is_kept_comes_out_as_it_went_in(solver):
    mask = torch.zeros(1, 1, 3, 2, 2)
    mask[..., 1] = 1.0
    kept, noise = make_kept(mask)
    result = denoise(lambda latents, sigma: latents.sin(), noise, make_sigmas(6, 3.0), solver, kept=kept)
    assert torch.equal(result[..., 0], kept.latents[..., 0])
    assert not torch.allclose(result[..., 1], kept.latents[..., 1])


def test_a_mask_of_another_size_is_refused():
    kept, noise = make_kept(torch.ones(1, 1, 2, 2, 2))
    with pytest.raises(InvalidSetting, match="The mask of what to keep"):
        denoise(lambda latents, sigma: latents, noise, make_sigmas(2, 1.0), kept=kept)
