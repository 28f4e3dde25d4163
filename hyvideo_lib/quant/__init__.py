"""Storage formats smaller than 16 bits, and what the numbers in them mean."""

from .fp8 import (
    FP8_DTYPES,
    cast_fp8,
    dequantize_fp8,
    is_kept_in_plain_fp8,
    plain_fp8_state_dict,
    quantize_fp8,
)
from .ggml import GGML_FORMATS, dequantize_ggml
from .install import install, restore
from .products import PRODUCTS, probe_product, use_product
from .schemes import SCHEMES

__all__ = [
    "FP8_DTYPES",
    "GGML_FORMATS",
    "PRODUCTS",
    "SCHEMES",
    "cast_fp8",
    "dequantize_fp8",
    "dequantize_ggml",
    "install",
    "is_kept_in_plain_fp8",
    "plain_fp8_state_dict",
    "probe_product",
    "quantize_fp8",
    "restore",
    "use_product",
]
