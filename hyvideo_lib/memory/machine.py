"""The machine a plan is for: this one, or one that is described."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from ..errors import InvalidSetting

DEFAULT_LINK = 25e9
"""Bytes a second: what PCIe 4.0 with 16 lanes gives in practice; 3.0 or 8 lanes give half."""
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
LEAST_AMOUNT = 2**20
"""Less is a unit that was forgotten."""
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?i?)b?(?:/s|ps)?\s*", re.I | re.A)


@dataclass(frozen=True)
class Card:
    """memory: bytes. speed: FLOP/s of dense 16-bit matrix products with 32-bit sums, as the maker states it."""

    memory: int
    speed: float


def _card(gib: int, tera: float) -> Card:
    return Card(gib * 2**30, tera * 1e12)


CARDS = {
    "rtx3090": _card(24, 71),
    "rtx4080": _card(16, 97.5),
    "rtx4090": _card(24, 165.2),
    "rtx5090": _card(32, 209.5),
    "a100": _card(80, 312),
    "h100": _card(80, 989),
}
"""Stated peaks without sparsity, which no program reaches: times computed from them are the least that can be.

From the maker's architecture papers and data sheets as others quote them; h100 is the SXM form. Cards for which sources
disagree are left out."""


@dataclass(frozen=True)
class Machine:
    """gpu_free: bytes that a run may take of the device; None computes in RAM. ram_free: bytes; None is unknown.
    link: bytes a second from RAM to the device. speed: FLOP/s; None is unknown. name: of the card, or "". gpu_total:
    bytes of the device, what the driver and other programs take included; None is unknown."""

    gpu_free: int | None
    ram_free: int | None = None
    link: float = DEFAULT_LINK
    speed: float | None = None
    name: str = ""
    gpu_total: int | None = None


def parse_amount(text: str, name: str) -> float:
    """Bytes, or bytes a second, of "12GiB", "32 GB", "25GB/s" or a bare number. Raises InvalidSetting."""
    match = _AMOUNT.fullmatch(text)
    if match is None or match[2].lower() == "i":
        raise InvalidSetting(f"{name} is {text!r}, but must be an amount such as 12GiB, 32GB or 25GB/s.")
    amount = float(match[1]) * UNITS[match[2].lower()]
    if 0 < amount < LEAST_AMOUNT:
        raise InvalidSetting(f"{name} is {text!r}, but must be 1MiB or more; a unit may be missing, as in 12GiB.")
    if amount <= 0:
        raise InvalidSetting(f"{name} is {text!r}, but must be more than nothing.")
    return amount


def gib(num_bytes: int | None) -> str:
    """ "12.00 GiB"."""
    return "an unknown number of bytes" if num_bytes is None else f"{num_bytes / 2**30:.2f} GiB"


def device_bytes(device: torch.device) -> int | None:
    """Bytes of a device of this machine, free or not; None if it has no memory of its own, or does not say."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def find_card(name: str) -> Card:
    """A card of the table, however its name is spaced. Raises InvalidSetting."""
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    if key not in CARDS:
        raise InvalidSetting(f"card is {name!r}, but must be one of: {', '.join(CARDS)}.")
    return CARDS[key]
