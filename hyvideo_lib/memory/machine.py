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
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?i?)(b?)(/s|ps)?\s*", re.I | re.A)


@dataclass(frozen=True)
class Card:
    """memory: bytes. speed: FLOP/s of dense 16-bit matrix products with 32-bit sums, as the maker states it or computed
    from what the maker states."""

    memory: int
    speed: float


def _card(gib: int, tera: float) -> Card:
    return Card(gib * 2**30, tera * 1e12)


def _geforce(gib: int, sms: int, boost_ghz: float) -> Card:
    """Computed from the maker's SM count and boost clock."""
    return _card(gib, round(sms * boost_ghz * GEFORCE_OPERATIONS / 1e3, 1))


GEFORCE_OPERATIONS = 512
"""Of an SM in a clock, a product and its sum counting as two: the RTX 30, 40 and 50 series alike, as the figures stated
for the RTX 3090 (82 SMs, 1.695 GHz), 4080 (76, 2.505), 4090 (128, 2.52) and 5090 (170, 2.407) say."""
CARDS = {
    "rtx3060": _geforce(12, 28, 1.777),
    "rtx3060ti": _geforce(8, 38, 1.665),
    "rtx3070": _geforce(8, 46, 1.725),
    "rtx3080": _geforce(10, 68, 1.71),
    "rtx3080ti": _geforce(12, 80, 1.665),
    "rtx3090": _card(24, 71),
    "rtx4060": _geforce(8, 24, 2.46),
    "rtx4060ti": _geforce(8, 34, 2.535),
    "rtx4060ti16gb": _geforce(16, 34, 2.535),
    "rtx4070": _geforce(12, 46, 2.475),
    "rtx4070super": _geforce(12, 56, 2.475),
    "rtx4070ti": _geforce(12, 60, 2.61),
    "rtx4070tisuper": _geforce(16, 66, 2.61),
    "rtx4080": _card(16, 97.5),
    "rtx4080super": _geforce(16, 80, 2.55),
    "rtx4090": _card(24, 165.2),
    "rtx5060ti": _geforce(8, 36, 2.572),
    "rtx5060ti16gb": _geforce(16, 36, 2.572),
    "rtx5070": _geforce(12, 48, 2.512),
    "rtx5070ti": _geforce(16, 70, 2.452),
    "rtx5080": _geforce(16, 84, 2.617),
    "rtx5090": _card(32, 209.5),
    "a100": _card(80, 312),
    "h100": _card(80, 989),
}
"""Peaks without sparsity, which no program reaches: times computed from them are the least that can be.

Those that are stated are from the maker's architecture papers and data sheets as others quote them; h100 is the SXM
form. Cards for which sources disagree are left out."""


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

    @property
    def is_known(self) -> bool:
        """Whether the memory that it computes in is."""
        return self.gpu_free is not None or self.ram_free is not None


def parse_amount(text: str, name: str, example: str = "12GiB") -> float:
    """Bytes of "12GiB", "32 GB" or a bare number. Raises InvalidSetting.

    example: an amount of this kind, for the messages. Where it is "25GB/s", bytes a second, also of "200Gb/s": bits.
    """
    match, is_rate = _AMOUNT.fullmatch(text), example.endswith("/s")
    if match is None or match[2].lower() == "i" or (match[4] and not is_rate):
        raise InvalidSetting(f"{name} is {text!r}, but must be an amount such as {example}.")
    is_bits = match[3] == "b" and match[4]
    amount = float(match[1]) * UNITS[match[2].lower()] / (8 if is_bits else 1)
    if 0 < amount < LEAST_AMOUNT:
        least = "1MiB/s" if is_rate else "1MiB"
        raise InvalidSetting(
            f"{name} is {text!r}, but must be {least} or more; a unit may be missing, as in {example}."
        )
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
