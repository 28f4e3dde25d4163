"""What a user should know though the run goes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Notice:
    """One such thing; `code` is stable."""

    code: str
    message: str
