"""Seeds, and that a video's noise is its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyvideo_lib.errors import InvalidSeed, InvalidSetting
from hyvideo_lib.sampling import check_seed, consecutive_seeds, draw_noise, mix_noise

SHAPE = (4, 3, 6, 5)  # (C, T, H, W)


@given(seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
def test_a_video_of_a_batch_equals_the_single_draw_with_its_seed(seeds: list[int]) -> None:
    noise = draw_noise(SHAPE, seeds)
    assert noise.shape == (len(seeds), *SHAPE)
    assert noise.dtype == torch.float32
    for video, seed in zip(noise, seeds, strict=True):
        assert torch.equal(video, draw_noise(SHAPE, [seed])[0])


def test_noise_is_standard_normal_and_differs_between_seeds() -> None:
    noise = draw_noise((16, 5, 32, 32), [0, 1])
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.std().item() - 1.0) < 0.01
    assert not torch.equal(noise[0], noise[1])


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    draw_noise(SHAPE, [3])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("given_seed", "seed"),
    [(0, 0), (42, 42), ("42", 42), (" 7 ", 7), (2**64 - 1, 2**64 - 1), (str(2**64 - 1), 2**64 - 1)],
)
def test_seeds_are_numbers_or_their_digits(given_seed: object, seed: int) -> None:
    assert check_seed(given_seed) == seed


@pytest.mark.parametrize("seed", ["abc", "", "1.5", "-1", -1, 2**64, 1.0, None, True, "9" * 5000])
def test_a_seed_that_is_no_number_in_range_is_refused_and_named(seed: object) -> None:
    with pytest.raises(InvalidSeed) as error:
        check_seed(seed)
    assert repr(seed) in str(error.value)
    assert str(2**64 - 1) in str(error.value)


def test_consecutive_seeds_count_up_and_wrap_after_the_largest() -> None:
    assert consecutive_seeds(5, 3) == [5, 6, 7]
    assert consecutive_seeds(2**64 - 1, 2) == [2**64 - 1, 0]


@pytest.mark.parametrize("count", [0, -1])
def test_less_than_one_video_is_refused(count: int) -> None:
    with pytest.raises(InvalidSetting, match="at least 1"):
        consecutive_seeds(0, count)


def test_mixing_gives_noise_at_one_latents_at_zero_and_their_mix_between() -> None:
    latents, noise = draw_noise(SHAPE, [1]), draw_noise(SHAPE, [2])
    assert torch.equal(mix_noise(latents, noise, 1.0), noise)
    assert torch.equal(mix_noise(latents, noise, 0.0), latents)
    torch.testing.assert_close(mix_noise(latents, noise, 0.25), 0.25 * noise + 0.75 * latents)


def test_one_video_can_start_several_seeds() -> None:
    latents, noise = draw_noise(SHAPE, [1]), draw_noise(SHAPE, [2, 3])
    mixed = mix_noise(latents, noise, 0.5)
    assert torch.equal(mixed[1:], mix_noise(latents, noise[1:], 0.5))


@pytest.mark.parametrize("shape", [(2, 4, 3, 6, 5), (1, 4, 3, 6, 1), (1, 1, 3, 6, 5)])
def test_starting_latents_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidSetting, match="starting latents"):
        mix_noise(torch.zeros(shape), torch.zeros(1, *SHAPE), 0.5)
