from hypothesis import given
from hypothesis import strategies as st

from hyvideo_lib.memory.estimate import vae_bytes
from hyvideo_lib.memory.fit import fit_tiles
from hyvideo_lib.vae import Tiles

CHANNELS = (128, 256, 512, 512)


@given(
    frames=st.integers(0, 40).map(lambda k: 4 * k + 1),
    height=st.integers(1, 80).map(lambda k: 16 * k),
    width=st.integers(1, 80).map(lambda k: 16 * k),
    free=st.integers(0, 2**38),
)
def test_tiles_are_valid_and_fit_if_any_do(frames, height, width, free):
    found = fit_tiles(CHANNELS, frames, height, width, 2, free)
    if found is None:
        assert vae_bytes(CHANNELS, frames, height, width, 2) <= free
        return
    tiles = Tiles(*found)
    smallest = vae_bytes(CHANNELS, min(frames, 16), min(height, 128), min(width, 128), 2)
    work = vae_bytes(CHANNELS, min(frames, tiles.frames), min(height, tiles.size), min(width, tiles.size), 2)
    assert work <= max(free, smallest)


def test_more_memory_means_larger_tiles():
    works = []
    for free in (2**30, 2**32, 2**34, 2**36):
        size, length = fit_tiles(CHANNELS, 129, 720, 1280, 2, free) or (1280, 144)
        works.append(size * size * length)
    assert works == sorted(works)
    assert works[0] < works[-1]
