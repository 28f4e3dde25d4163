"""What the models' stages take beside the weights, by running them without numbers (memory.dry_run)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..attention import AUTO, BACKENDS, Kernel, attend
from ..attention.sdpa import sdpa
from ..geometry import latent_shape
from ..memory.dry_run import AllocationCounter, count_peak
from ..transformer import HunyuanVideoTransformer, LeanConfig
from ..vae import CausalVideoVAE, Tiles, VAEConfig
from ..vae.stand_in import meta_stands_for
from ..vae.sweep import CPU_ELEMENTS, GPU_ELEMENTS
from ..video.frames import AT_ONCE, bytes_of


class _FirstBlocks:
    """A BlockSource that gives one block of each kind, as no other takes more; modulating vectors come unmade."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def through(self, blocks: Iterable[nn.Module]) -> Iterator[nn.Module]:
        yield max(blocks, key=_num_adapters)

    def remember(self, *vecs: Tensor | None) -> Callable[[Any, Tensor], tuple[Tensor, ...]]:
        def recall(modulation: Any, vec: Tensor) -> tuple[Tensor, ...]:
            width = modulation.linear.out_features // modulation.count
            return tuple(_meta(len(vec), 1, width, dtype=self._dtype) for _ in range(modulation.count))

        return recall


def transformer_work(
    model: HunyuanVideoTransformer,
    latent_shape: tuple[int, int, int],
    text_tokens: int,
    batch: int = 1,
    lean: LeanConfig = LeanConfig(),  # noqa: B008 (frozen)
    attention: str = AUTO,
) -> int:
    """Working bytes of one forward for latents of (T, H, W), the modulating vectors left out. The model stays as it is.

    Weights that are cast when they are used, and the largest of what comes of it, are counted. So is what LoRAs
    take that are attached, but for their own matrices. attention: the backend that is asked for.
    """
    config, dtype = model.config, model.compute_dtype
    weights = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    inputs = {
        "latents": _meta(batch, config.in_channels, *latent_shape),
        "timesteps": _meta(batch),
        "text_embeds": _meta(batch, text_tokens, config.text_dim, dtype=dtype),
        "text_mask": None,
        "pooled_embeds": _meta(batch, config.pooled_dim, dtype=dtype),
        "guidance": 1.0,
        "source": _FirstBlocks(dtype),
        "lean": lean,
        "attend_fn": partial(attend, kernel=_holding(BACKENDS[attention].extra)) if attention in BACKENDS else attend,
    }
    for layer in model.modules():
        for adapter in getattr(layer, "adapters", ()):
            adapter.place(torch.device("meta"), dtype)
    return count_peak(lambda: functional_call(model, weights, kwargs=inputs))


def _holding(extra: float) -> Kernel:
    """A kernel that holds so much beside q, k, v and its result, as a share of q."""

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        held = q.new_empty(round(extra * q.nbytes), dtype=torch.uint8)
        out = sdpa(q, k, v)
        del held
        return out

    return kernel


def _num_adapters(block: nn.Module) -> int:
    return sum(len(getattr(layer, "adapters", ())) for layer in block.modules())


def decode_work(sketch: CausalVideoVAE, size: tuple[int, int, int], tiles: Tiles | None, is_cpu: bool = False) -> int:
    """Working bytes of decoding a video of (frames, height, width) pixels, each span leaving the device as bytes before
    the next. sketch: a VAE on the meta device. is_cpu: see AllocationCounter.
    """
    frames, height, width = size

    def call() -> None:
        latents = _meta(1, sketch.config.latent_channels, *latent_shape(width, height, frames))
        for span in sketch.decode_spans(latents, tiles):
            torch.isfinite(span)
            for part in span[0].split(AT_ONCE, dim=1):
                bytes_of(part)
            del span, part

    return _count_tiles(sketch, "pixels", call, is_cpu)


def encode_work(sketch: CausalVideoVAE, size: tuple[int, int, int], tiles: Tiles | None, is_cpu: bool = False) -> int:
    """Working bytes of encoding a video of (frames, height, width) pixels. It lies in RAM in float32, which is counted
    only where the VAE works there.
    """
    elsewhere = _meta(1, 3, *size, dtype=torch.float64)  # no VAE's dtype: what comes over of it is a copy
    return _count_tiles(
        sketch, "moments", lambda: sketch.encode(_meta(1, 3, *size) if is_cpu else elsewhere, tiles), is_cpu
    )


def least_work(
    config: VAEConfig,
    dtype: torch.dtype,
    size: tuple[int, int, int],
    tiles: Tiles | None,
    is_encoding: bool,
    is_cpu: bool = False,
) -> int:
    """Working bytes that decoding or encoding in these tiles takes at the very least, without running anything.

    A residual block at full size holds its input, its output, and a window of prepared frames. Beside them is the tile
    that is encoded (on a CPU the video), or the span that tiles are joined to.
    """
    frames, height, width = size
    length = min(frames, tiles.frames + 1) if tiles else frames
    sides = [min(side, tiles.size) if tiles else side for side in (height, width)]
    made, given = config.block_channels[0], config.block_channels[0 if is_encoding else 1]
    frame = given * sides[0] * sides[1]
    step = min(max((CPU_ELEMENTS if is_cpu else GPU_ELEMENTS) // frame, 2), length - 1) // 2 * 2
    tile = (given + made) * length * sides[0] * sides[1] * dtype.itemsize + step * frame * dtype.itemsize
    if is_encoding:
        return tile + 3 * (4 * frames * height * width if is_cpu else dtype.itemsize * length * sides[0] * sides[1])
    return tile + (3 * dtype.itemsize * length * height * width if sides != [height, width] else 0)


def _count_tiles(sketch: CausalVideoVAE, name: str, call: Callable[[], object], is_cpu: bool) -> int:
    """The peak of a call that maps every tile by the method of that name, run once for each number of frames.

    The first tile of so many frames is a whole one; what is cut off at an edge is counted as if it took as much. Only
    the small copy that shared norms are taken from is smaller than a later tile.
    """
    counter = AllocationCounter(is_cpu)
    known: dict[int, tuple[int, torch.Size, torch.Size]] = {}
    method = getattr(sketch, name)

    def one_tile(tile: Tensor) -> Tensor:
        frames = tile.shape[2]
        work, first, made = known.get(frames, (0, torch.Size((0,)), torch.Size()))
        if tile.shape.numel() <= first.numel():
            counter.add_spike(work)
            sides = (n * new // old for n, new, old in zip(made[3:], tile.shape[3:], first[3:], strict=True))
            return _meta(*made[:3], *sides, dtype=tile.dtype)
        level, counter.peak, peak = counter.level, counter.level, counter.peak
        result: Tensor = method(tile)
        known[frames] = counter.peak - level, tile.shape, result.shape
        counter.peak = max(peak, counter.peak)
        return result

    setattr(sketch, name, one_tile)
    try:
        with meta_stands_for("cpu" if is_cpu else "cuda"):
            return count_peak(call, counter)
    finally:
        delattr(sketch, name)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")
