"""Options as the library's own types: what each verb's parsed arguments mean."""

from __future__ import annotations

import os
import re
import secrets
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, InvalidSetting, InvalidTiles
from .arguments import number

if TYPE_CHECKING:
    from ..caches import CacheConfig
    from ..memory import BlockSwap
    from ..pipeline import LoraChoice, Precision, TilesChoice
    from ..text import PromptTemplate
    from ..transformer import RopeSettings

_ENDING = r"(?::(?P<strength>[^:]*))?(?::(?P<blocks>[^:]*))?"
_LORAS = (
    re.compile(rf"(?P<path>.*\.(?:safetensors|sft)){_ENDING}", re.I | re.S),
    re.compile(rf"(?P<path>(?:[A-Za-z]:(?=[\\/]))?[^:]+){_ENDING}", re.S),
)
"""A LoRA's path, strength and blocks where no such path is there: by a known suffix, else by colons, of which the one
behind a Windows drive is none."""

WORDS = {"none": None, "fit": "fit"}
"""Words for tiles that are no size."""
FIELDS = {
    "double_blocks to swap": "--swap-double",
    "single_blocks to swap": "--swap-single",
    "prefetch": "--prefetch",
    "guidance": "--guidance",
    "cfg_scale": "--cfg-scale",
    "cfg_start": "--cfg-start",
    "cfg_end": "--cfg-end",
    "rescale": "--cfg-rescale",
}
"""What the library's messages begin with, and the option of it."""
ROPE_SCALES = (0.1, 4.0)
"""The node's bounds."""
RANDOM_SEEDS = 2**32
"""PyTorch's CPU generator looks at so many bits."""


@contextmanager
def naming_options() -> Iterator[None]:
    """Begin what the library refuses with the name of the option instead of the field's."""
    try:
        yield
    except BadInput as error:
        field, _, rest = str(error).partition(" is ")
        if field not in FIELDS:
            raise
        raise type(error)(f"{FIELDS[field]} is {rest}") from error


def sampling_options(options: Namespace, negative: str | None = None) -> dict[str, Any]:
    """The fields of a GenerateRequest that `add_sampling`, `add_tiles` and the seed options give.

    negative: the negative prompt if none is given.
    """
    from ..sampling import GuidanceConfig, check_seed

    with naming_options():
        guidance = GuidanceConfig(
            embedded=options.guidance,
            cfg_scale=options.cfg_scale,
            cfg_start=options.cfg_start,
            cfg_end=options.cfg_end,
            rescale=options.cfg_rescale,
            batched=not options.cfg_in_turn,
        )
    return {
        "negative_prompt": negative if options.negative is None else options.negative,
        "steps": options.steps,
        "shift": options.shift,
        "solver": options.solver,
        "guidance": guidance,
        "seed": secrets.randbelow(RANDOM_SEEDS) if options.seed is None else check_seed(options.seed),
        "videos": options.videos,
        "tiles": tiles_options(options),
    }


def tiles_options(options: Namespace) -> TilesChoice:
    """What --tiles, --tile-frames, --tile-overlap and --shared-norms mean. Raises InvalidTiles, InvalidSetting."""
    from ..pipeline import FIT_SHARED
    from ..vae import Tiles

    given = {"frames": options.tile_frames, "overlap": options.tile_overlap}
    changed = {name: value for name, value in given.items() if value is not None}
    if options.tiles == "none" and options.shared_norms:
        raise InvalidTiles("--shared-norms is for tiles, but --tiles is none. Leave one of the two out.")
    if options.tiles in WORDS:
        if changed:
            raise InvalidTiles(
                f"--tile-frames and --tile-overlap need tiles, but --tiles is {options.tiles}. Leave that out."
            )
        return FIT_SHARED if options.shared_norms else WORDS[options.tiles]
    if options.tiles != "reference":
        changed["size"] = number(int, "--tiles", InvalidTiles, "reference, fit, none, or ")(options.tiles)
    return Tiles(**changed, shared_norms=options.shared_norms)


def lora_options(options: Namespace, named: Mapping[str, Path] = MappingProxyType({})) -> tuple[LoraChoice, ...]:
    """What --lora means. named: files that may be given by a name. Raises InvalidSetting."""
    from ..pipeline import LoraChoice

    choices = []
    for text in options.lora:
        head, colon, rest = text.partition(":")
        path, strength, blocks = _lora_parts(f"{named[head]}{colon}{rest}" if head in named else text)
        factor = number(float, "The LoRA's strength", InvalidSetting)(strength or "1")
        choices.append(LoraChoice(Path(path), factor, blocks))
    return tuple(choices)


def _lora_parts(text: str) -> tuple[str, str, str]:
    """Path, strength and blocks of a LoRA. What lies on the disk says where the path ends. Raises InvalidSetting."""
    words = text.split(":")
    for behind in range(min(3, len(words))):
        path = ":".join(words[: len(words) - behind])
        if path and os.path.exists(path):
            strength, blocks, *_ = [*words[len(words) - behind :], "", ""]
            return path, strength, blocks
    match = next(filter(None, (pattern.fullmatch(text) for pattern in _LORAS)), None)
    if match is None:
        raise InvalidSetting(
            f"lora is {text!r}, but must be a file or a folder, which a strength and blocks may follow: "
            "style.safetensors, style.safetensors:0.8 or 'style.safetensors:0.8:double 0-9, single'."
        )
    return match["path"], match["strength"] or "", match["blocks"] or ""


def cache_options(options: Namespace) -> CacheConfig | None:
    """What --cache and its companions mean; None without a cache. Raises InvalidSetting."""
    from ..caches import CacheConfig, load_curve

    companions = {
        "--cache-start": options.cache_start,
        "--cache-end": options.cache_end,
        "--cache-max-skips": options.cache_max_skips,
        "--cache-on-host": options.cache_on_host or None,
        "--cache-ratios": options.cache_ratios,
    }
    given = [name for name, value in companions.items() if value is not None]
    if options.cache is None:
        if given:
            raise InvalidSetting(f"{given[0]} needs a step cache: name one with --cache METHOD, or leave it out.")
        return None
    if options.measure_ratios is not None:
        raise InvalidSetting("--measure-ratios needs every step computed: leave out --cache.")
    method, colon, threshold = options.cache.partition(":")
    if options.cache_ratios is not None and method != "magcache":
        raise InvalidSetting(f"--cache-ratios is for magcache, but --cache is {method}. Leave it out.")
    return CacheConfig(
        method,
        number(float, "The cache's threshold", InvalidSetting)(threshold) if colon else None,
        options.cache_start,
        1.0 if options.cache_end is None else options.cache_end,
        options.cache_max_skips,
        options.cache_on_host,
        None if options.cache_ratios is None else load_curve(Path(options.cache_ratios)),
    )


def precision_options(options: Namespace) -> Precision:
    """What the dtype options mean. Raises InvalidSetting, BadInput for both ways of compiling."""
    from ..pipeline import Precision
    from ..transformer import CompileConfig
    from ..transformer.compile_config import BACKENDS, MODES

    if options.compile and options.compile_pieces:
        raise BadInput("Both --compile and --compile-pieces were given. Give one of the two.")
    scope = "blocks" if options.compile else "pieces" if options.compile_pieces else None
    return Precision(
        options.dtype,
        options.storage_dtype,
        options.vae_dtype,
        options.text_dtype,
        matmul=options.matmul,
        attention=options.attention,
        compiling=CompileConfig(
            options.compile_backend or BACKENDS[0], options.compile_mode or MODES[0], not options.compile_static, scope
        )
        if scope
        else None,
    )


def swap_options(options: Namespace) -> BlockSwap:
    """What the block swap options mean. Raises InvalidSetting."""
    from ..memory import BlockSwap

    with naming_options():
        return BlockSwap(options.swap_double, options.swap_single, options.prefetch)


def template_options(options: Namespace) -> PromptTemplate:
    """What --template and --template-text mean. Raises InvalidTemplate, InvalidSetting."""
    from ..text import TEMPLATES, PromptTemplate

    if options.template_text is not None:
        return PromptTemplate(options.template_text.replace("\\n", "\n"))
    if options.template not in TEMPLATES:
        raise InvalidSetting(f"template is {options.template!r}, but must be one of: {', '.join(TEMPLATES)}.")
    return TEMPLATES[options.template]


def rope_options(options: Namespace) -> RopeSettings:
    """What --rope-extrapolate and --rope-scale mean. Raises InvalidSetting."""
    from ..transformer import RopeSettings

    if options.rope_scale is None:
        return RopeSettings(options.rope_extrapolate)
    factors = tuple(map(number(float, "--rope-scale", InvalidSetting), options.rope_scale.split(",")))
    if len(factors) != 3:
        raise InvalidSetting(f"--rope-scale is {options.rope_scale!r}, but must be three numbers, such as 1,0.8,0.8.")
    low, high = ROPE_SCALES
    if not all(low <= factor <= high for factor in factors):
        raise InvalidSetting(f"--rope-scale is {options.rope_scale!r}, but each must be from {low:g} to {high:g}.")
    return RopeSettings(options.rope_extrapolate, factors)


def choose_device(name: str) -> str:
    """The device of that name if it is there; "auto" is the best one. Raises InvalidSetting."""
    there = available_devices()
    if name == "auto":
        return there[0]
    if name not in there and f"{name}:0" not in there:
        raise InvalidSetting(f"device is {name!r}, but must be auto or one that is here: {', '.join(there)}.")
    return name


def available_devices() -> list[str]:
    """Devices that PyTorch finds on this machine, the fastest kind first."""
    import torch

    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*cuda, *mps, "cpu"]
