from __future__ import annotations

import pytest

from hyvideo_lib import geometry
from hyvideo_lib.errors import InvalidFrames, InvalidSize


@pytest.mark.parametrize(("frames", "latent"), [(1, 1), (5, 2), (17, 5), (73, 19), (129, 33), (201, 51)])
def test_four_frames_become_one_latent_after_the_first(frames: int, latent: int) -> None:
    assert geometry.latent_frames(frames) == latent
    assert geometry.pixel_frames(latent) == frames


@pytest.mark.parametrize(
    ("size", "shape", "tokens"),
    [
        ((1280, 720, 129), (33, 90, 160), 118_800),
        ((960, 544, 129), (33, 68, 120), 67_320),
        ((848, 480, 49), (13, 60, 106), 20_670),
        ((1280, 720, 1), (1, 90, 160), 3_600),
        ((64, 64, 17), (5, 8, 8), 80),
    ],
)
def test_known_sizes_have_their_known_latents_and_tokens(
    size: tuple[int, int, int], shape: tuple[int, int, int], tokens: int
) -> None:
    geometry.check_size(*size[:2])
    geometry.check_frames(size[2])
    assert geometry.latent_shape(*size) == shape
    assert geometry.image_tokens(*size) == tokens


@pytest.mark.parametrize("frames", range(-9, 42))
def test_frames_are_accepted_exactly_where_they_are_4k_plus_1(frames: int) -> None:
    accepted = frames in (1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 41)
    try:
        geometry.check_frames(frames)
    except InvalidFrames:
        assert not accepted
    else:
        assert accepted


@pytest.mark.parametrize(
    ("frames", "advice"), [(4, "1 or 5"), (130, "129 or 133"), (0, "1"), (-3, "1"), (18, "17 or 21"), (20, "17 or 21")]
)
def test_refused_frames_name_the_nearest_accepted_ones(frames: int, advice: str) -> None:
    with pytest.raises(
        InvalidFrames, match=rf"frames is {frames}, .*4k \+ 1 \(1, 5, 9, \.\.\.\)\. Nearest: {advice}\.$"
    ):
        geometry.check_frames(frames)


@pytest.mark.parametrize("value", [-16, 0, 1, 8, 15, 17, 100, 719, 721])
def test_sides_that_are_no_multiple_of_16_are_refused_by_name(value: int) -> None:
    with pytest.raises(InvalidSize, match=rf"^width is {value},"):
        geometry.check_size(value, 64)
    with pytest.raises(InvalidSize, match=rf"^height is {value},"):
        geometry.check_size(64, value)


@pytest.mark.parametrize(("width", "advice"), [(100, "96 or 112"), (719, "704 or 720"), (8, "16"), (0, "16")])
def test_refused_sides_name_the_nearest_accepted_ones(width: int, advice: str) -> None:
    with pytest.raises(InvalidSize, match=rf"multiple of 16 pixels\. Nearest: {advice}\.$"):
        geometry.check_size(width, 64)


@pytest.mark.parametrize(("unit", "offset"), [(4, 1), (16, 0), (8, 0), (3, 2)])
def test_nearest_sizes_are_what_a_search_finds(unit: int, offset: int) -> None:
    accepted = [n for n in range(1, 200) if n % unit == offset % unit]
    for value in range(-40, 100):
        low = max((n for n in accepted if n <= value), default=accepted[0])
        high = min(n for n in accepted if n >= value)
        assert geometry.nearest_sizes(value, unit, offset) == (low, high)


@pytest.mark.parametrize(("value", "aligned"), [(1, 16), (16, 16), (17, 32), (720, 720), (721, 736)])
def test_sizes_are_aligned_upwards(value: int, aligned: int) -> None:
    assert geometry.align_up(value) == aligned
