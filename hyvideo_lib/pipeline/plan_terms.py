"""What the settings that a plan speaks of are called where it is read: on the command line, or on nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BY_ITSELF = "which happens by itself"


@dataclass(frozen=True)
class Terms:
    """Words for one place. Those with fields in braces are filled by `str.format`."""

    tiles_fit: str
    storage: str
    no_prefetch: str
    cache_on_host: str
    frames: str
    size: str
    vae_dtype: str
    swap: str
    card: str
    text_on_cpu: str
    also: str
    """Between two of them."""
    beside_tiles: Mapping[str, str] = field(default_factory=dict)
    """What else is said of tiles, by its name in Tiles, where tiles that fit are refused beside it."""


COMMAND_LINE = Terms(
    tiles_fit="--tiles fit",
    storage="--storage-dtype {dtype}",
    no_prefetch="--prefetch 0",
    cache_on_host="--cache-on-host",
    frames="--frames {frames}",
    size="--width {width} --height {height}",
    vae_dtype="--vae-dtype float16",
    swap="--swap-double {double} --swap-single {single}",
    card="--card",
    text_on_cpu="--device cpu for a whole run, or in ComfyUI device cpu on Load Text Encoders",
    also=" ",
    beside_tiles={"frames": "--tile-frames", "overlap": "--tile-overlap"},
)
NODES = Terms(
    tiles_fit="tiles fit on {node}",
    storage="storage {dtype} on Load Transformer",
    no_prefetch="prefetch 0 on Block Swap",
    cache_on_host="residuals host on Step Cache",
    frames="frames {frames}",
    size="width {width} and height {height}",
    vae_dtype="dtype float16 on Load VAE",
    swap="double_blocks {double} and single_blocks {single} on Block Swap",
    card="card",
    text_on_cpu="device cpu on Load Text Encoders",
    also=", ",
)
