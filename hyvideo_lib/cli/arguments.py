"""The pieces that verbs build their options from: a parser whose complaints are our errors, and checked numbers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from ..errors import BadInput, HyvError, InvalidGuidance, InvalidSetting, InvalidSteps

Number = TypeVar("Number", int, float)

# Names of the library's tables, which cost seconds to import; a test holds them to the tables.
SOLVERS = ("euler", "heun", "dpmpp_2m", "unipc")
TEMPLATES = ("video", "image", "none")
CACHES = ("teacache", "first_block", "easycache", "magcache")
COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTION = ("auto", "sdpa", "flash_attn_2", "flash_attn_3", "sage", "xformers", "comfy_kitchen")
MATMULS = ("dense", "fp8", "fp8_rows", "int8")
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs")
COMPILE_BACKENDS = ("inductor", "aot_eager", "eager")
CARDS = (
    *("rtx3060", "rtx3060ti", "rtx3070", "rtx3080", "rtx3080ti", "rtx3090", "rtx4060", "rtx4060ti", "rtx4060ti16gb"),
    *("rtx4070", "rtx4070super", "rtx4070ti", "rtx4070tisuper", "rtx4080", "rtx4080super", "rtx4090", "rtx5060ti"),
    *("rtx5060ti16gb", "rtx5070", "rtx5070ti", "rtx5080", "rtx5090", "a100", "h100"),
)
STORAGE_DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


class Parser(argparse.ArgumentParser):
    """argparse, with full option names only, defaults in the help, and BadInput instead of exiting."""

    def __init__(self, prog: str, description: str = "", **kwargs: str) -> None:
        """kwargs: what argparse says of the parser of a verb and what is not needed."""
        super().__init__(prog, description=description, allow_abbrev=False, formatter_class=_Help)

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message[:1].upper()}{message[1:]}. See: {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """argparse's, with the names of what was given (other than its default) in `given`, as the help has them."""
        options, rest = super().parse_known_args(args, namespace)
        names = [
            next(iter(action.option_strings), action.dest)
            for action in self._actions
            if action.dest != "verb" and getattr(options, action.dest, None) not in (action.default, None, [])
        ]
        options.given = (*getattr(options, "given", ()), *names)
        return options, rest

    def add_common(self) -> None:
        """What every verb has."""
        group = self.add_argument_group("output")
        group.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        group.add_argument("--quiet", action="store_true", help="no progress on stderr, only warnings and errors")
        group.add_argument("--verbose", action="store_true", help="log what belongs in a bug report")
        group.add_argument("--debug", action="store_true", help="log everything, and show tracebacks")


class _Help(argparse.HelpFormatter):
    """Wider columns than argparse's own."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)


def number(kind: Callable[[str], Number], name: str, error: type[HyvError], words: str = "") -> Callable[[str], Number]:
    """A converter for argparse that raises `error` for a text that is no number; `kind` is int or float.

    words: what else is accepted, for the message.
    """

    def convert(text: str) -> Number:
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise error(f"{name} is {text!r}, but must be {words}{what}.") from None

    return convert


def add_sampling(parser: Parser, *, steps: int, shift: float, guidance: float, negative: str) -> None:
    """Seeds, solver, steps, guidance: the options of every verb that samples, with its defaults.

    negative: what stands for the negative prompt if none is given, in words.
    """
    group = parser.add_argument_group("sampling")
    whole, real = _whole, _real
    group.add_argument(
        "--videos",
        type=whole("--videos", InvalidSetting),
        default=1,
        metavar="N",
        help="videos per prompt, from consecutive seeds; their names get -1, -2, ... (default: 1)",
    )
    group.add_argument(
        "--steps",
        type=whole("--steps", InvalidSteps),
        default=steps,
        metavar="N",
        help=f"model calls, or with heun pairs of them {_default(steps)}",
    )
    group.add_argument(
        "--shift",
        type=real("--shift", InvalidSetting),
        default=shift,
        metavar="X",
        help=f"how far noise levels are moved towards noise, 0.01 to 100 {_default(shift)}",
    )
    group.add_argument("--solver", default="euler", metavar="NAME", help=f"{', '.join(SOLVERS)} {_default('euler')}")
    group.add_argument(
        "--guidance",
        type=real("--guidance", InvalidGuidance),
        default=guidance,
        metavar="X",
        help=f"embedded guidance, 0 to 100, at no extra time {_default(guidance)}",
    )
    group.add_argument(
        "--cfg-scale",
        type=real("--cfg-scale", InvalidGuidance),
        default=1.0,
        metavar="X",
        help=f"classifier-free guidance against --negative, at twice the time; up to 30, 1 is off {_default(1.0)}",
    )
    group.add_argument(
        "--negative", metavar="TEXT", help=f"what should not be seen, for --cfg-scale above 1 (default: {negative})"
    )
    for name, default, text in (
        ("start", 0.0, "fraction of the steps where CFG begins"),
        ("end", 1.0, "fraction of the steps where CFG ends"),
        ("rescale", 0.0, "0..1: how far contrast that CFG adds is taken back"),
    ):
        group.add_argument(
            f"--cfg-{name}",
            type=real(f"--cfg-{name}", InvalidGuidance),
            default=default,
            metavar="X",
            help=f"{text} {_default(default)}",
        )
    group.add_argument("--cfg-in-turn", action="store_true", help="both passes of CFG one after the other: less memory")


def add_lora(parser: Parser, named: str = "") -> None:
    """LoRAs. named: how a file that has a name of its own may be given, in words."""
    parser.add_argument_group("LoRA").add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="PATH[:STRENGTH[:BLOCKS]]",
        help="a LoRA to add to the transformer, once for each: a safetensors file, or a folder of PEFT's; strength -10 "
        f"to 10 (default: 1), blocks like 'double 0-9, single' (default: all){named}",
    )


def add_cache(parser: Parser) -> None:
    """Step caches: fewer passes of the transformer, at the cost of quality. Numbers are CacheConfig's to refuse."""
    group = parser.add_argument_group(
        "step cache",
        "Skips passes of the transformer and uses an earlier one's instead: faster, and not the same video. What it "
        "costs was measured in benchmarks/README.md. Not exact, so off unless named.",
    )
    group.add_argument(
        "--cache",
        metavar="METHOD[:THRESHOLD]",
        help=f"{', '.join(CACHES)}; a higher threshold skips more, 0 nothing (without one: the method's own)",
    )
    for name, text in (
        ("start", "fraction of the steps that are all computed first (default: the method's)"),
        ("end", "fraction of the steps from which on all are computed again (default: 1; the last always is)"),
    ):
        group.add_argument(f"--cache-{name}", type=_real(f"--cache-{name}", InvalidSetting), metavar="X", help=text)
    group.add_argument(
        "--cache-max-skips",
        type=_whole("--cache-max-skips", InvalidSetting),
        metavar="N",
        help="steps skipped in a row at most, 0 without bound (default: the method's)",
    )
    group.add_argument(
        "--cache-on-host", action="store_true", help="what it keeps waits in RAM instead of the device's memory"
    )
    group.add_argument("--cache-ratios", metavar="FILE", help="magcache: magnitude ratios measured for this model")
    group.add_argument(
        "--measure-ratios",
        metavar="FILE",
        help="measure magcache's ratios while these videos are made, and write them (.json)",
    )


def add_device(parser: Parser) -> None:
    """Where to compute, in what."""
    group = parser.add_argument_group("device and precision")
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    group.add_argument(
        "--dtype",
        default="auto",
        metavar="NAME",
        help=f"what the transformer computes in: {', '.join(COMPUTE_DTYPES)} "
        "(default: auto, which is float32 on a CPU and bfloat16 elsewhere)",
    )
    group.add_argument(
        "--storage-dtype",
        metavar="NAME",
        help=f"what its weights rest in: {', '.join(STORAGE_DTYPES)} (default: as in the file)",
    )
    group.add_argument(
        "--matmul",
        default="dense",
        metavar="NAME",
        help=f"how its blocks multiply: {', '.join(MATMULS)}. dense is in --dtype; int8 is for RTX 30 series and newer "
        "and CPUs; fp8 for fp8 weights on RTX 40 series and newer; fp8_rows for H100, and RTX 40 series with a recent "
        "PyTorch. 8 bits can be faster and are less exact (default: dense)",
    )
    group.add_argument(
        "--attention",
        default="auto",
        metavar="NAME",
        help=f"{', '.join(ATTENTION)}; `hyvideo doctor` says which run here (default: auto, the fastest exact one)",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the transformer's blocks, all but attention: a slow first step, faster ones after it",
    )
    group.add_argument(
        "--compile-pieces",
        action="store_true",
        help="compile only what lies between their products and attention, which needs no compiling anew for LoRAs",
    )
    for name, accepted in (("mode", COMPILE_MODES), ("backend", COMPILE_BACKENDS)):
        group.add_argument(f"--compile-{name}", metavar="NAME", help=f"{', '.join(accepted)} (default: {accepted[0]})")
    group.add_argument(
        "--compile-static",
        action="store_true",
        help="compile anew for every size and length, in place of once for all",
    )
    choices = ", ".join(COMPUTE_DTYPES)
    group.add_argument(
        "--vae-dtype",
        default="auto",
        metavar="NAME",
        help=f"what the VAE computes in: {choices} (default: auto, float16 on CUDA and float32 elsewhere)",
    )
    group.add_argument(
        "--text-dtype",
        default="auto",
        metavar="NAME",
        help=f"what the text encoders rest and compute in: {choices} (default: auto, as in their files)",
    )


def add_swap(parser: Parser, double: int = 20, single: int = 40) -> None:
    """Which of the transformer's blocks wait in RAM. Numbers out of range are BlockSwap's to refuse.

    double, single: how many there are, in words of the help.
    """
    group = parser.add_argument_group("block swap")
    for name, count in (("double", double), ("single", single)):
        group.add_argument(
            f"--swap-{name}",
            type=number(int, f"--swap-{name}", InvalidSetting),
            default=-1,
            metavar="N",
            help=f"how many of the {count} {name} blocks stay in RAM at least; those that do not fit always do "
            "(default: -1, no more than that)",
        )
    group.add_argument(
        "--prefetch",
        type=number(int, "--prefetch", InvalidSetting),
        default=1,
        metavar="N",
        help="how many blocks ahead are copied while others compute; 0 copies each in its turn (default: 1)",
    )


def add_tiles(parser: Parser) -> None:
    """How the VAE cuts a video."""
    group = parser.add_argument_group("VAE tiles")
    group.add_argument(
        "--tiles",
        default="reference",
        metavar="WHAT",
        help="reference (256 pixels, 64 frames), fit (of those that free memory allows, the ones with the least to "
        "compute), none (in one piece), or a tile size in pixels (default: reference); where memory runs out, smaller "
        "ones are taken, which make another video",
    )
    group.add_argument(
        "--tile-frames",
        type=_whole("--tile-frames", InvalidSetting),
        metavar="N",
        help="frames of a tile (default: 64)",
    )
    group.add_argument(
        "--tile-overlap",
        type=_real("--tile-overlap", InvalidSetting),
        metavar="X",
        help="fraction of a tile shared with the next (default: 0.25)",
    )
    group.add_argument(
        "--shared-norms",
        action="store_true",
        help="decode a small copy of the video first, and norm all tiles by it: closer to no tiles, for one tile more",
    )


def _whole(name: str, error: type[HyvError]) -> Callable[[str], int]:
    return number(int, name, error)


def _real(name: str, error: type[HyvError]) -> Callable[[str], float]:
    return number(float, name, error)


def _default(value: object) -> str:
    return f"(default: {value})"
