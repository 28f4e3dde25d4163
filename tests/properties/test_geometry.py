"""What holds for every size: conversions invert each other, and advice is accepted and the nearest there is."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from hyvideo_lib import geometry
from hyvideo_lib.errors import InvalidFrames, InvalidSize

SIDES = st.integers(1, 200).map(lambda k: 16 * k)
CLIPS = st.integers(0, 200).map(lambda k: 4 * k + 1)


@given(latents=st.integers(1, 10**6))
def test_latent_frames_and_frames_are_each_others_inverse(latents: int) -> None:
    frames = geometry.pixel_frames(latents)
    geometry.check_frames(frames)
    assert geometry.latent_frames(frames) == latents


@given(width=SIDES, height=SIDES, frames=CLIPS)
def test_four_latents_make_a_token_and_no_pixel_is_left(width: int, height: int, frames: int) -> None:
    geometry.check_size(width, height)
    length, rows, columns = geometry.latent_shape(width, height, frames)
    assert (rows * 8, columns * 8) == (height, width)
    assert geometry.image_tokens(width, height, frames) * 4 == length * rows * columns


@given(frames=st.integers(-1000, 10**6))
def test_the_advice_on_frames_is_accepted_and_nothing_nearer_is(frames: int) -> None:
    try:
        geometry.check_frames(frames)
    except InvalidFrames as error:
        advice = [int(number) for number in re.findall(r"\d+", str(error).split("Nearest:")[1])]
    else:
        advice = [frames]
    assert all(number > 0 and (number - 1) % 4 == 0 for number in advice)
    assert min(abs(number - frames) for number in advice) <= max(2, 1 - frames)


@given(width=st.integers(-1000, 10**6), height=SIDES)
def test_the_advice_on_sides_is_accepted_and_nothing_nearer_is(width: int, height: int) -> None:
    try:
        geometry.check_size(width, height)
    except InvalidSize as error:
        advice = [int(number) for number in re.findall(r"\d+", str(error).split("Nearest:")[1])]
    else:
        advice = [width]
    for number in advice:
        geometry.check_size(number, height)
    assert min(abs(number - width) for number in advice) <= max(8, 16 - width)


@given(value=st.integers(0, 10**9), unit=st.integers(1, 10**4))
def test_aligning_goes_up_by_less_than_a_unit(value: int, unit: int) -> None:
    aligned = geometry.align_up(value, unit)
    assert aligned % unit == 0
    assert value <= aligned < value + unit
