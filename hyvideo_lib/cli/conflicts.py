"""Options that would have no effect beside others: a table of them, so that none is dropped without a word."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import NamedTuple

from ..errors import BadInput, HyvError, InvalidGuidance, InvalidSetting

COMMON = frozenset({"--json", "--quiet", "--verbose", "--debug"})
TILES = frozenset({"--tiles", "--tile-frames", "--tile-overlap", "--shared-norms"})
DECODING = frozenset({"--decode", "--vae", "--width", "--height", "--frames", "--fps", "--out", "--force"})
DECODING |= COMMON | TILES | {"--device", "--vae-dtype"}
"""All that acts on a decode of latents."""
OF_CFG = frozenset({"--negative", "--cfg-start", "--cfg-end", "--cfg-rescale", "--cfg-in-turn"})


class Rule(NamedTuple):
    """applies: to which commands. is_idle: which options have no effect in them. reason: why, and what would help."""

    applies: Callable[[Namespace], bool]
    is_idle: Callable[[str], bool]
    reason: str
    error: type[HyvError] = InvalidSetting


RULES = (
    Rule(
        lambda options: options.verb == "generate" and options.decode is not None,
        lambda name: name not in DECODING,
        "--decode only makes the video of latents that are there",
        BadInput,
    ),
    Rule(lambda options: options.verb == "plan", {"--decode"}.__contains__, "a plan is that of a whole run", BadInput),
    Rule(
        lambda options: (
            options.verb == "plan" and bool(options.card or options.gpu_memory) and _is_other(options.device)
        ),
        {"--device"}.__contains__,
        "--card and --gpu-memory describe a card with CUDA",
    ),
    Rule(
        lambda options: options.cfg_scale == 1.0,
        OF_CFG.__contains__,
        "--cfg-scale is 1, which is without classifier-free guidance",
        InvalidGuidance,
    ),
    Rule(
        lambda options: not (options.compile or options.compile_pieces),
        {"--compile-mode", "--compile-backend", "--compile-static"}.__contains__,
        "without --compile and --compile-pieces nothing is compiled",
    ),
    Rule(
        lambda options: options.template_text is not None,
        {"--template"}.__contains__,
        "--template-text is a template of its own",
    ),
)


def check_conflicts(options: Namespace) -> None:
    """Raises the rule's error for options that were given and have no effect beside the others."""
    for rule in RULES:
        idle = [name for name in options.given if rule.is_idle(name)]
        if idle and rule.applies(options):
            verb, them = ("has", "it") if len(idle) == 1 else ("have", "them")
            raise rule.error(f"{', '.join(idle)} {verb} no effect here: {rule.reason}. Leave {them} out.")


def _is_other(device: str) -> bool:
    """Whether the device is one that no card is."""
    return device != "auto" and not device.startswith("cuda")
