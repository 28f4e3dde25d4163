"""Storage formats smaller than 16 bits, and what the numbers in them mean."""

from .fp8 import (
    FP8_DTYPES,
    cast_fp8,
    dequantize_fp8,
    is_kept_in_plain_fp8,
    plain_fp8_state_dict,
    quantize_fp8,
)
from .fp8_matmul import Fp8MatmulLinear, probe_fp8_matmul
from .ggml import GGML_FORMATS, dequantize_ggml
from .install import install, restore
from .schemes import SCHEMES

__all__ = [
    "FP8_DTYPES",
    "GGML_FORMATS",
    "SCHEMES",
    "Fp8MatmulLinear",
    "cast_fp8",
    "dequantize_fp8",
    "dequantize_ggml",
    "install",
    "is_kept_in_plain_fp8",
    "plain_fp8_state_dict",
    "probe_fp8_matmul",
    "quantize_fp8",
    "restore",
]
