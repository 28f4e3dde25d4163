"""Resolution buckets of image-to-video: the sizes that an input image is cropped to.

A bucket has about base x base pixels, sides in multiples of the stride, and is at most max_ratio times as long as wide.
Heights come first, as in the reference.
"""

from __future__ import annotations

from .errors import InvalidSize

BASES = {"720p": 960, "540p": 720, "360p": 480}


def make_buckets(base: int, stride: int = 32, max_ratio: float = 4.0) -> list[tuple[int, int]]:
    """All (height, width) in pixels, from the tallest to the widest.

    base: side of the square bucket, in pixels. Raises InvalidSize unless base is at least one stride.
    """
    if stride < 1 or base < stride:
        raise InvalidSize(
            f"bucket base is {base} with stride {stride}, but it must be at least one stride of 1 or more."
        )
    area = round((base / stride) ** 2)
    buckets = []
    height, width = area, 1
    while height > 0:
        if max(height, width) / min(height, width) <= max_ratio:
            buckets.append((height * stride, width * stride))
        if height * (width + 1) <= area:
            width += 1
        else:
            height -= 1
    return buckets


def closest_bucket(height: int, width: int, base: int) -> tuple[int, int]:
    """The (height, width) of the bucket whose aspect is nearest to that of an image, never steeper than the image's.

    "Steeper" is away from the square in the direction of the image, so that a centre crop always fits inside the image
    resized to cover it. Raises InvalidSize for an image without area.
    """
    if height < 1 or width < 1:
        raise InvalidSize(f"the image is {width} x {height} pixels, but both sides must be at least 1.")
    aspect = height / width

    def ratio(bucket: tuple[int, int]) -> float:
        return round(bucket[0] / bucket[1], 5)  # rounded as in the reference, which can decide a tie

    # Never empty: every list of buckets holds a square one.
    allowed = [b for b in make_buckets(base) if (ratio(b) <= aspect if aspect >= 1 else ratio(b) > aspect)]
    return min(allowed, key=lambda bucket: abs(ratio(bucket) - aspect))
