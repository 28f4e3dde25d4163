"""Storage formats smaller than 16 bits, and what the numbers in them mean."""

from .fp8 import (
    FP8_DTYPES,
    cast_fp8,
    dequantize_fp8,
    is_kept_in_plain_fp8,
    plain_fp8_state_dict,
    quantize_fp8,
)

__all__ = [
    "FP8_DTYPES",
    "cast_fp8",
    "dequantize_fp8",
    "is_kept_in_plain_fp8",
    "plain_fp8_state_dict",
    "quantize_fp8",
]
