import json
from pathlib import Path

import pytest

from hyvideo_lib.buckets import BASES, closest_bucket, make_buckets
from hyvideo_lib.errors import InvalidSize

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "i2v_buckets.json").read_text())


@pytest.mark.parametrize("resolution", GOLDEN["buckets"])
def test_buckets_are_the_references(resolution):
    golden = GOLDEN["buckets"][resolution]
    assert BASES[resolution] == golden["base"]
    assert make_buckets(golden["base"]) == [tuple(size) for size in golden["list"]]


@pytest.mark.parametrize("case", GOLDEN["closest"], ids=lambda c: f"{c['resolution']}-{c['image_w']}x{c['image_h']}")
def test_closest_bucket_is_the_references(case):
    size = closest_bucket(case["image_h"], case["image_w"], BASES[case["resolution"]])
    assert size == (case["bucket_h"], case["bucket_w"])
    assert round(size[0] / size[1], 5) == case["ratio"]


@pytest.mark.parametrize(("height", "width"), [(700, 1300), (1300, 700), (999, 1000), (512, 512), (100, 900)])
def test_the_crop_fits_inside_the_resized_image(height, width):
    bucket = closest_bucket(height, width, 480)
    scale = min(bucket) / min(height, width)
    assert height * scale >= bucket[0] - 1
    assert width * scale >= bucket[1] - 1
    assert (height - width) * (bucket[0] - bucket[1]) >= 0


@pytest.mark.parametrize("base", [32, 45, 64, 100, 333, 480])
def test_every_bucket_keeps_to_area_stride_and_ratio(base):
    buckets = make_buckets(base)
    assert any(height == width for height, width in buckets)
    for height, width in buckets:
        assert height % 32 == width % 32 == 0
        assert height * width <= round((base / 32) ** 2) * 32**2
        assert max(height, width) <= 4 * min(height, width)


@pytest.mark.parametrize("call", [lambda: make_buckets(16), lambda: closest_bucket(0, 10, 480)])
def test_nonsense_sizes_are_refused(call):
    with pytest.raises(InvalidSize):
        call()
