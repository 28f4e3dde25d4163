"""The block formats of GGUF files: how many numbers a block holds, and what they are.

A quantised row is a run of blocks, each a handful of bytes with its own scale. What the bytes mean is defined by the
ggml library; here it is a function a format, from blocks to float32, bit for bit what the `gguf` package computes.
Products are formed in float32 and in the order given, because another order rounds differently; in place, because a
layer's numbers are large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # what four bits stand for
SUPER = 256  # numbers of a super-block, in the formats whose names end in K
PIECE = 2**22  # numbers decoded at a time: decoding takes a few times their bytes, which a whole layer's would not fit


@dataclass(frozen=True)
class BlockFormat:
    """`numbers` consecutive numbers of a row are stored in `num_bytes` bytes; `decode` turns [N, num_bytes] uint8
    into [N, numbers] float32."""

    numbers: int
    num_bytes: int
    decode: Callable[[Tensor], Tensor]

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` numbers, which must be whole blocks."""
        return width // self.numbers * self.num_bytes


def dequantize_ggml(data: Tensor, ggml_type: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers of block-quantised rows: [..., row bytes] uint8 to [..., width] in `dtype`.

    Defined in float32 and then rounded once. ggml_type: a name in GGML_FORMATS. Raises KeyError for another,
    ValueError if the rows are not whole blocks of uint8.
    """
    block = GGML_FORMATS[ggml_type]
    if data.dtype != torch.uint8 or data.shape[-1] % block.num_bytes:
        raise ValueError(f"{ggml_type} rows are uint8 in blocks of {block.num_bytes}, not {data.dtype} {data.shape}.")
    blocks = data.reshape(-1, block.num_bytes)
    numbers = torch.empty(len(blocks), block.numbers, dtype=dtype, device=data.device)
    step = PIECE // block.numbers
    for start in range(0, len(blocks), step):
        numbers[start : start + step] = block.decode(blocks[start : start + step])
    return numbers.view(*data.shape[:-1], data.shape[-1] // block.num_bytes * block.numbers)


# Pieces of blocks


def _half(raw: Tensor) -> Tensor:
    """[N, 2k] bytes to [N, k] float32: little-endian float16 numbers."""
    return raw.contiguous().view(torch.float16).float()


def _nibbles(raw: Tensor) -> Tensor:
    """[N, k] bytes to [N, 2, k]: low halves, then high halves."""
    return torch.stack((raw & 0x0F, raw >> 4), dim=1)


def _bits(raw: Tensor, width: int) -> Tensor:
    """[N, k] bytes to [N, 8 / width, k]: fields of `width` bits, lowest first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=raw.device)
    return (raw.unsqueeze(1) >> shifts.view(1, -1, 1)) & ((1 << width) - 1)


def _fifth_bits(raw: Tensor) -> Tensor:
    """[N, 4] bytes to [N, 32] bits of one little-endian word, lowest first, as 0 or 1."""
    shifts = torch.arange(8, dtype=torch.uint8, device=raw.device)
    return ((raw.unsqueeze(-1) >> shifts) & 1).flatten(1)


def _six_bit_pairs(raw: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 12] bytes of Q4_K and Q5_K to eight 6-bit scales and eight 6-bit minima, [N, 8] each.

    The first four of each lie in the low six bits of bytes 0..3 and 4..7; the last four have their low halves in bytes
    8..11 and their two high bits on top of the first ones.
    """
    first, second, third = raw[:, 0:4], raw[:, 4:8], raw[:, 8:12]
    scales = torch.cat((first & 63, (third & 0x0F) | ((first >> 6) << 4)), dim=1)
    minima = torch.cat((second & 63, (third >> 4) | ((second >> 6) << 4)), dim=1)
    return scales, minima


# Blocks of 32 numbers: a scale, perhaps an offset, and small integers


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float().mul_(_half(blocks[:, :2]))


def _q4_0(blocks: Tensor) -> Tensor:
    levels = _nibbles(blocks[:, 2:]).flatten(1).float().sub_(8)
    return levels.mul_(_half(blocks[:, :2]))


def _q4_1(blocks: Tensor) -> Tensor:
    levels = _nibbles(blocks[:, 4:]).flatten(1).float()
    return levels.mul_(_half(blocks[:, :2])).add_(_half(blocks[:, 2:4]))


def _q5_0(blocks: Tensor) -> Tensor:
    levels = _nibbles(blocks[:, 6:]).flatten(1) | (_fifth_bits(blocks[:, 2:6]) << 4)
    return levels.float().sub_(16).mul_(_half(blocks[:, :2]))


def _q5_1(blocks: Tensor) -> Tensor:
    levels = _nibbles(blocks[:, 8:]).flatten(1) | (_fifth_bits(blocks[:, 4:8]) << 4)
    return levels.float().mul_(_half(blocks[:, :2])).add_(_half(blocks[:, 2:4]))


def _iq4_levels(raw: Tensor) -> Tensor:
    """[N, 16] bytes to [N, 32] float32: levels that are not evenly spaced."""
    table = torch.tensor(IQ4_LEVELS, dtype=torch.float32, device=raw.device)
    return table[_nibbles(raw).flatten(1).long()]


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _iq4_levels(blocks[:, 2:]).mul_(_half(blocks[:, :2]))


# Super-blocks of 256 numbers: scales that have a scale


def _q2_k(blocks: Tensor) -> Tensor:
    packed, levels = blocks[:, :16], blocks[:, 16:80].view(-1, 2, 32)
    scale = _half(blocks[:, 80:82]) * (packed & 0x0F).float()  # [N, 16]
    offset = _half(blocks[:, 82:84]) * (packed >> 4).float()
    fields = _bits(levels.reshape(-1, 32), 2).view(-1, 16, 16).float()  # halves of 128 numbers, four fields each
    return fields.mul_(scale.unsqueeze(-1)).sub_(offset.unsqueeze(-1)).flatten(1)


def _q3_k(blocks: Tensor) -> Tensor:
    high, low, packed = blocks[:, :32], blocks[:, 32:96], blocks[:, 96:108]
    low_scales = torch.cat((packed[:, :8] & 0x0F, packed[:, :8] >> 4), dim=1)  # [N, 16]
    high_scales = _bits(packed[:, 8:12], 2).flatten(1)
    scales = (low_scales | (high_scales << 4)).float() - 32
    scale = _half(blocks[:, 108:110]) * scales
    fields = _bits(low.reshape(-1, 32), 2).view(-1, 16, 16)
    has_high = _bits(high, 1).view(-1, 16, 16)
    levels = fields.float().sub_((has_high ^ 1) << 2)
    return levels.mul_(scale.unsqueeze(-1)).flatten(1)


def _q4_k(blocks: Tensor) -> Tensor:
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    scale, offset = _half(blocks[:, :2]) * scales.float(), _half(blocks[:, 2:4]) * minima.float()  # [N, 8]
    levels = _nibbles(blocks[:, 16:].reshape(-1, 32)).view(-1, 8, 32).float()
    return levels.mul_(scale.unsqueeze(-1)).sub_(offset.unsqueeze(-1)).flatten(1)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    scale, offset = _half(blocks[:, :2]) * scales.float(), _half(blocks[:, 2:4]) * minima.float()
    low = _nibbles(blocks[:, 48:].reshape(-1, 32)).view(-1, 8, 32)
    high = _bits(blocks[:, 16:48], 1)  # [N, 8, 32]
    levels = (low | (high << 4)).float()
    return levels.mul_(scale.unsqueeze(-1)).sub_(offset.unsqueeze(-1)).flatten(1)


def _q6_k(blocks: Tensor) -> Tensor:
    low = _nibbles(blocks[:, :128].reshape(-1, 64)).view(-1, 8, 32)  # halves of 128 numbers
    high = _bits(blocks[:, 128:192].reshape(-1, 32), 2).view(-1, 8, 32)
    levels = (low | (high << 4)).float().sub_(32).view(-1, 16, 16)
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    scale = _half(blocks[:, 208:210]) * scales  # [N, 16]
    return levels.mul_(scale.unsqueeze(-1)).flatten(1)


def _iq4_xs(blocks: Tensor) -> Tensor:
    high = _bits(blocks[:, 2:4], 2).transpose(1, 2).flatten(1)  # [N, 8]
    low = _nibbles(blocks[:, 4:8]).transpose(1, 2).flatten(1)
    scale = _half(blocks[:, :2]) * ((low | (high << 4)).float() - 32)
    levels = _iq4_levels(blocks[:, 8:].reshape(-1, 16)).view(-1, 8, 32)
    return levels.mul_(scale.unsqueeze(-1)).flatten(1)


GGML_FORMATS: Mapping[str, BlockFormat] = MappingProxyType(
    {
        "q8_0": BlockFormat(32, 34, _q8_0),
        "q6_k": BlockFormat(SUPER, 210, _q6_k),
        "q5_k": BlockFormat(SUPER, 176, _q5_k),
        "q5_1": BlockFormat(32, 24, _q5_1),
        "q5_0": BlockFormat(32, 22, _q5_0),
        "q4_k": BlockFormat(SUPER, 144, _q4_k),
        "q4_1": BlockFormat(32, 20, _q4_1),
        "q4_0": BlockFormat(32, 18, _q4_0),
        "q3_k": BlockFormat(SUPER, 110, _q3_k),
        "q2_k": BlockFormat(SUPER, 84, _q2_k),
        "iq4_nl": BlockFormat(32, 18, _iq4_nl),
        "iq4_xs": BlockFormat(SUPER, 136, _iq4_xs),
    }
)
"""Formats that hold several numbers in a block, by the lower-case names that headers here give them."""
