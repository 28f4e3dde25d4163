"""The table of step caches, and what a run is told about the one it uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import InvalidSetting
from .easycache import EasyCache, EasyRule
from .first_block import FirstBlockCache, FirstBlockRule
from .magcache import CURVES, MagCache, MagRule
from .place import CopyFn, Place, copy_to
from .ratios import MagCurve, find_curve
from .run import Limits, Rule, RuleFn, StepCache
from .teacache import TeaCache, TeaRule

BUILT_IN = "built in"


@dataclass(frozen=True)
class Method:
    """An entry of the table of caches.

    threshold, start, max_skips: used where the user names none; their source is in the entry's comment. tokens_wide:
    token-wide tensors that are kept for the branch that decides; for each other it is one, if any. description: one
    line for help texts and menus.
    """

    make: Callable[[Limits, Sequence[float], RuleFn, CopyFn], StepCache]
    rule: Callable[[float, Place, MagCurve | None], Rule]
    threshold: float
    start: float
    max_skips: int | None
    tokens_wide: int
    description: str


def _mag_rule(threshold: float, place: Place, curve: MagCurve | None) -> Rule:
    assert curve is not None
    return MagRule(threshold, curve)


METHODS: dict[str, Method] = {
    # 0.1 and 0.15 are its authors' for HunyuanVideo (1.6 and 2.1 times the speed at 50 steps).
    "teacache": Method(
        TeaCache,
        lambda threshold, place, curve: TeaRule(threshold, place),
        0.1,
        0.0,
        None,
        2,
        "TeaCache: how far the first block's input moved, through a polynomial fitted to HunyuanVideo.",
    ),
    # 0.06 is ParaAttention's for HunyuanVideo.
    "first_block": Method(
        FirstBlockCache,
        lambda threshold, place, curve: FirstBlockRule(threshold, place),
        0.06,
        0.0,
        None,
        3,
        "First-block cache: computes one block and asks how far its result moved.",
    ),
    # 0.025, with 5 of 50 steps computed first, is its authors' for HunyuanVideo.
    "easycache": Method(
        EasyCache,
        lambda threshold, place, curve: EasyRule(threshold, place),
        0.025,
        0.1,
        None,
        0,
        "EasyCache: how far the latents moved, at the rate this run showed so far. Needs next to no memory.",
    ),
    # 0.12 with 4 skips and a fifth of the steps computed first is its authors' for HunyuanVideo (0.24 with 6 is their
    # faster one).
    "magcache": Method(
        MagCache,
        lambda threshold, place, curve: _mag_rule(threshold, place, curve),
        0.12,
        0.2,
        4,
        1,
        "MagCache: how the size of what the blocks add changes, along a curve measured beforehand.",
    ),
}


@dataclass(frozen=True)
class CacheConfig:
    """Which step cache a run uses, and how freely. Checked when made; raises InvalidSetting.

    threshold: drift from which on steps are computed: higher skips more and costs quality; 0 skips nothing. start, end:
    where in the run steps may be skipped, as fractions of its steps. max_skips: steps skipped in a row at most, 0
    without bound. None leaves each to the method. on_host: what is kept waits in RAM instead of on the device. curve:
    MagCache's, if measured by the user.
    """

    method: str = "teacache"
    threshold: float | None = None
    start: float | None = None
    end: float = 1.0
    max_skips: int | None = None
    on_host: bool = False
    curve: MagCurve | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidSetting(f"cache is {self.method!r}, but must be one of: {', '.join(METHODS)}.")
        limits = self.limits
        if not 0.0 <= limits.threshold < float("inf"):
            raise InvalidSetting(
                f"The cache's threshold is {limits.threshold}, but must be 0 or more. 0 skips nothing; "
                f"{self.method} usually takes {METHODS[self.method].threshold}."
            )
        if not (0.0 <= limits.start <= 1.0 and 0.0 <= limits.end <= 1.0 and limits.start < limits.end):
            raise InvalidSetting(
                f"The cache's start is {limits.start} and its end {limits.end}, but they must be fractions of the run "
                "from 0 to 1, the start before the end."
            )
        if self.max_skips is not None and self.max_skips < 0:
            raise InvalidSetting(f"max_skips is {self.max_skips}, but must be 0 or more; 0 is without bound.")

    @property
    def limits(self) -> Limits:
        """The numbers that hold, the method's where none was named."""
        method = METHODS[self.method]
        return Limits(
            self.method,
            method.threshold if self.threshold is None else self.threshold,
            method.start if self.start is None else self.start,
            self.end,
            method.max_skips if self.max_skips is None else self.max_skips or None,
            self.on_host,
            None if self.method != "magcache" else self.curve.fingerprint if self.curve else BUILT_IN,
        )

    def settings(self) -> dict[str, Any]:
        """Plain values for a file's settings; a run's report says the same of what it did."""
        return asdict(self.limits)

    def begin_run(
        self, levels: Sequence[float], model: tuple[int, int, int], pixels: int, copy_fn: CopyFn = copy_to
    ) -> StepCache:
        """The state of one run. levels: its sigmas. model: width, double and single blocks. pixels: of a frame.

        copy_fn: how what it keeps gets to a device and to RAM. Raises InvalidSetting where MagCache has no curve for
        the model.
        """
        method, limits = METHODS[self.method], self.limits
        curve = self.curve_for(model, pixels)
        if curve and not self.curve:
            limits = replace(limits, curve=f"{BUILT_IN} {curve.fingerprint}")
        return method.make(limits, levels, lambda place: method.rule(limits.threshold, place, curve), copy_fn)

    def curve_for(self, model: tuple[int, int, int], pixels: int) -> MagCurve | None:
        """MagCache's curve; None for the other methods. Raises InvalidSetting where there is none for the model."""
        return None if self.method != "magcache" else self.curve or find_curve(CURVES, model, pixels)

    @property
    def keeps_tokens(self) -> bool:
        """Whether what is kept is as wide as the tokens; otherwise it is next to nothing."""
        return METHODS[self.method].tokens_wide > 0

    def device_bytes(self, hidden_size: int, tokens: int, item_size: int, branches: int) -> int:
        """Bytes on the device beside those of a run without a cache. tokens: of the image; branches: of the guidance.

        What waits in RAM comes over while no block computes, a few tokens at a time.
        """
        return 0 if self.on_host else self._kept_bytes(hidden_size, tokens, item_size, branches)

    def host_bytes(self, hidden_size: int, tokens: int, item_size: int, branches: int) -> int:
        """Bytes of RAM for what waits there."""
        return self._kept_bytes(hidden_size, tokens, item_size, branches) if self.on_host else 0

    def _kept_bytes(self, hidden_size: int, tokens: int, item_size: int, branches: int) -> int:
        wide = METHODS[self.method].tokens_wide + (branches - 1) * self.keeps_tokens
        return wide * tokens * hidden_size * item_size
