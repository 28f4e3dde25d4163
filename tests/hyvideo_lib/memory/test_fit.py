from hypothesis import given
from hypothesis import strategies as st

from hyvideo_lib.memory.fit import candidate_tiles, first_fitting
from hyvideo_lib.vae import Tiles


@given(
    frames=st.integers(0, 40).map(lambda k: 4 * k + 1),
    height=st.integers(1, 80).map(lambda k: 16 * k),
    width=st.integers(1, 80).map(lambda k: 16 * k),
)
def test_candidates_are_valid_and_reach_from_the_smallest_tiles_to_the_whole_video(frames, height, width):
    tiles = candidate_tiles(frames, height, width)
    assert tiles[0][0] >= max(height, width)
    assert tiles[0][1] >= frames
    assert tiles[-1] == (min(128, tiles[0][0]), 16)
    assert all(Tiles(*tile) for tile in tiles)


@given(
    tiles=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), unique=True),
    limit=st.integers(0, 80),
)
def test_the_first_that_fits_is_found_without_asking_for_what_is_plain(tiles, limit):
    asked = []

    def fits(tile):
        asked.append(tile)
        return tile[0] * tile[1] <= limit

    assert first_fitting(tiles, fits) == next((tile for tile in tiles if tile[0] * tile[1] <= limit), None)
    for index, (size, length) in enumerate(asked):
        assert not any(size >= before[0] and length >= before[1] for before in asked[:index])
