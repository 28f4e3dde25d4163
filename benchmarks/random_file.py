"""A transformer file made of random valid numbers: Tencent's layout, in plainly cast fp8 or in bf16.

Numbers are kept small enough for a forward to stay finite. Nothing in the file is sparse, so reading it costs what
reading a real one costs.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from hyvideo_lib.checkpoint.blueprint import build_meta_transformer
from hyvideo_lib.quant import is_kept_in_plain_fp8
from hyvideo_lib.transformer import TransformerConfig

FULL = TransformerConfig(16, 16, 3072, 24, 20, 40)
"""The released T2V model: 856 tensors, 12.8 billion parameters."""
HALF = TransformerConfig(16, 16, 3072, 24, 10, 20)
"""Half the blocks: its bf16 file is as large as the full model's in fp8, and fits beside its copy in 24 GB."""
QUICK = TransformerConfig(16, 16, 128, 1, 1, 1, text_dim=32, pooled_dim=16)

_SIGN_AND_LOW_BITS = 0b1_0001_111
"""Of float8_e4m3fn: with only the lowest bit of the exponent left, numbers are up to 2^-6 * 1.875 = 0.03."""
_SIGN_AND_MANTISSA, _SMALL = 0b1_00000000_1111111 - 2**16, 0b0_01111001_0000000
"""Of bfloat16, as int16: any sign and mantissa, with the exponent of 2^-6."""
_BLOCK = 2**26
_WORD = 8


def write_random(path: Path, config: TransformerConfig, is_fp8: bool = True, seed: int = 0) -> int:
    """Write the file; its size in bytes."""
    shapes = {name: tuple(value.shape) for name, value in build_meta_transformer(config).state_dict().items()}
    entries: dict[str, dict[str, object]] = {}
    position = 0
    # The wider dtype first, as the safetensors package does it: every tensor is aligned then.
    for name in sorted(shapes, key=lambda name: (not is_kept_in_plain_fp8(name), name)):
        bytes_each, dtype = (1, "F8_E4M3") if is_fp8 and not is_kept_in_plain_fp8(name) else (2, "BF16")
        end = position + bytes_each * torch.Size(shapes[name]).numel()
        entries[name] = {"dtype": dtype, "shape": shapes[name], "data_offsets": [position, end]}
        position = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % _WORD)
    generator = torch.Generator().manual_seed(seed)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(_WORD, "little") + header)
        for name in entries:
            count = torch.Size(shapes[name]).numel()
            if is_kept_in_plain_fp8(name):
                file.write(_kept(name, shapes[name], generator).view(torch.uint8).numpy().data)
                continue
            for start in range(0, count, _BLOCK):
                random = (_random_fp8 if is_fp8 else _random_bf16)(min(_BLOCK, count - start), generator)
                file.write(random.numpy().data)
        return file.tell()


def _kept(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Flat bf16 numbers of a tensor that is not cast: gains near 1, the rest small."""
    values = 0.02 * torch.randn(torch.Size(shape).numel(), generator=generator)
    return (values + ("norm" in name and name.endswith(".weight"))).bfloat16()


def _random_fp8(count: int, generator: torch.Generator) -> Tensor:
    """Random bytes that are small float8_e4m3fn numbers, drawn eight at a time."""
    words = torch.empty(-(-count // _WORD), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return words.view(torch.uint8)[:count].bitwise_and_(_SIGN_AND_LOW_BITS)


def _random_bf16(count: int, generator: torch.Generator) -> Tensor:
    """Random bfloat16 numbers of 0.016 to 0.031 and either sign, as int16."""
    words = torch.empty(-(-2 * count // _WORD), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return words.view(torch.int16)[:count].bitwise_and_(_SIGN_AND_MANTISSA).bitwise_or_(_SMALL)
