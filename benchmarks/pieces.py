"""Compiled against as it is: what lies between a block's matrix products, each piece alone, and whole lean blocks.

A piece works on a chunk of the released model's width; it is bound by memory, so fusing what it does in several passes
is what there is to gain. A block says how much of that is left beside its products and its attention, in both scopes of
compiling: the pieces, or all but attention at once. In 8 bits the rounding of tokens can be fused too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases import Case, all_rows
from benchmarks.lean import QUICK_GRID, SMALL, TEXT, Block
from benchmarks.measure import Side, compared
from benchmarks.products import DENSE, SHORT_GRID, WIDE, in_fp8
from benchmarks.rows import OURS, Options, Row, skipped_row
from hyvideo_lib.quant import use_product
from hyvideo_lib.transformer import CompileConfig, LeanConfig, TransformerConfig
from hyvideo_lib.transformer.chunks import AS_THEY_ARE, Chunks
from hyvideo_lib.transformer.compile_config import SCOPES
from hyvideo_lib.transformer.compiling import compiled_chunks, compiled_pieces, why_uncompiled
from hyvideo_lib.transformer.lean import Form
from hyvideo_lib.transformer.modulation import Condition
from hyvideo_lib.transformer.pieces import PLAIN, Pieces
from hyvideo_lib.transformer.rope import rotation_tables

CHUNK, QUICK_CHUNK = 1024, 32
AS_IS = "as it is"
PIECES = CompileConfig(scope="pieces")
EIGHT_BIT = "int8"
"""The product in 8 bits that CPUs and most cards have."""


def run(options: Options) -> Iterator[Row]:
    config, chunk = (SMALL, QUICK_CHUNK) if options.is_quick else (WIDE, CHUNK)
    compiled = compiled_pieces(PIECES, options.device)
    for dtype in options.dtypes:
        name_of_dtype = str(dtype).removeprefix("torch.")
        for name, call in pieces_of(config, chunk, dtype, options.device).items():
            case = f"{name}, {chunk} tokens, {name_of_dtype}"
            if options.wants(case):
                sides = {OURS: bound(call, compiled), AS_IS: bound(call, PLAIN)}
                yield from _rows("pieces", case, sides, options, PIECES)
        grid = QUICK_GRID if options.is_quick else SHORT_GRID
        yield from all_rows(block_cases("pieces", config, grid, dtype, (DENSE, EIGHT_BIT), options), options)


def block_cases(
    benchmark: str,
    config: TransformerConfig,
    grid: tuple[int, int, int],
    dtype: torch.dtype,
    products: Sequence[str],
    options: Options,
) -> Iterator[Case]:
    """Both kinds of block compiled in both scopes against as it is, over (T, H, W) image tokens and a full text."""
    for product in products:
        blocks = blocks_of(config, grid, dtype, product, options.device)
        for kind, make in blocks.items():
            for scope in SCOPES:
                case = f"{kind} block, {str(dtype).removeprefix('torch.')}, {product}, {scope} compiled"
                compiling = CompileConfig(scope=scope)
                sides = {OURS: make(compiled_chunks(compiling, options.device)), AS_IS: make(AS_THEY_ARE)}
                yield Case(case, partial(_rows, benchmark, case, sides, options, compiling))


def _rows(
    benchmark: str, case: str, sides: dict[str, Side], options: Options, compiling: CompileConfig
) -> Iterator[Row]:
    with torch.no_grad():
        for side in sides.values():
            side()  # compiles
    reason = why_uncompiled(compiling, options.device)
    if reason:
        yield skipped_row(benchmark, case, OURS, f"could not be compiled: {reason}")
        return
    yield from compared(benchmark, case, sides, options)


def bound(call: Callable[[Pieces], Tensor], pieces: Pieces) -> Side:
    return lambda: call(pieces)


def pieces_of(
    config: TransformerConfig, tokens: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Callable[[Pieces], Tensor]]:
    """Each piece on its own numbers."""
    generator = torch.Generator(device).manual_seed(2)

    def noise(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    width, inner = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
    x, hidden = noise(1, tokens, width), noise(1, tokens, inner)
    shift, scale = noise(1, 1, width), noise(1, 1, width)
    heads = noise(1, tokens, config.num_heads, config.head_dim)
    gain, rotation = noise(config.head_dim), noise(tokens, config.head_dim // 2, 2, dtype=torch.float32)
    return {
        "modulate": lambda do: do.modulate(x, shift, scale),
        "turn_heads": lambda do: do.turn_heads(heads, gain, rotation),
        "join_gelu": lambda do: do.join_gelu(x, hidden.clone()),  # works in place, on both sides
    }


def blocks_of(
    config: TransformerConfig, grid: tuple[int, int, int], dtype: torch.dtype, product: str, device: torch.device
) -> dict[str, Callable[[Chunks], Side]]:
    """A lean block of each kind, weights in fp8, to be run with its chunks handled in a given way."""
    model = in_fp8(config, dtype, device)
    if product != DENSE:
        use_product(model, product)
    turn = rotation_tables(grid, config.rope_axes, config.rope_theta, device=device)
    torch.manual_seed(1)
    x = torch.randn(1, len(turn) + TEXT, config.hidden_size).to(device, dtype)
    condition = Condition(torch.randn(1, config.hidden_size).to(device, dtype))

    def made(kind: str) -> Callable[[Chunks], Side]:
        block = getattr(model, f"{kind}_blocks")[0]
        return lambda do: Block(block, x, condition, turn, LeanConfig(), Form(LeanConfig(), chunks=do)).lean

    return {kind: made(kind) for kind in ("double", "single")}
