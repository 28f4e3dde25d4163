"""Masks: every form that a mask comes in becomes the same mask of the latents, and others are refused."""

from __future__ import annotations

import pytest
import torch

from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.sampling import latent_mask

LATENTS = torch.zeros(2, 16, 3, 4, 4)  # two videos of 9 frames of 32 x 32


def one_white_frame(count: int, index: int) -> torch.Tensor:
    mask = torch.zeros(count, 32, 32)
    mask[index] = 1
    return mask


@pytest.mark.parametrize(("frame", "latent"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_a_latent_frame_takes_the_largest_of_its_frames(frame, latent):
    found = latent_mask(one_white_frame(9, frame), LATENTS)
    assert found.shape == (2, 1, 3, 4, 4)
    assert found[1, 0, :, 0, 0].tolist() == [float(i == latent) for i in range(3)]


def test_a_mask_of_latent_frames_is_taken_as_it_is():
    assert latent_mask(one_white_frame(3, 1), LATENTS)[0, 0, :, 3, 3].tolist() == [0, 1, 0]


def test_a_latent_takes_the_mean_of_its_pixels():
    mask = torch.zeros(32, 32)
    mask[:4, :8] = 1  # half of the first latent
    found = latent_mask(mask, LATENTS)
    assert found[0, 0, 2, 0, 0] == 0.5
    assert found.sum() == 0.5 * 3 * 2


@pytest.mark.parametrize(
    "shape", [(32, 32), (1, 32, 32), (9, 32, 32), (9, 1, 32, 32), (1, 1, 9, 32, 32), (2, 1, 9, 32, 32), (64, 8)]
)
def test_every_form_has_the_latents_shape(shape):
    found = latent_mask(torch.full(shape, 2.0), LATENTS)
    assert found.shape == (2, 1, 3, 4, 4)
    assert torch.equal(found, torch.ones_like(found))


def test_each_video_may_have_its_own():
    masks = torch.stack([torch.zeros(1, 9, 32, 32), torch.ones(1, 9, 32, 32)])
    assert latent_mask(masks, LATENTS).flatten(1).mean(dim=1).tolist() == [0, 1]


def test_an_image_has_one_frame():
    assert latent_mask(torch.ones(1, 32, 32), torch.zeros(1, 16, 1, 4, 4)).shape == (1, 1, 1, 4, 4)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((4, 32, 32), "The mask has 4 frames, but the video has 9"),
        ((32,), "must be"),
        ((9, 3, 32, 32), "must be"),
        ((1, 3, 9, 32, 32), "must be"),
        ((3, 1, 9, 32, 32), "3 masks for 2 videos"),
    ],
)
def test_others_are_refused(shape, words):
    with pytest.raises(InvalidSetting, match=words):
        latent_mask(torch.ones(shape), LATENTS)
