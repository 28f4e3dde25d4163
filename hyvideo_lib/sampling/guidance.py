"""Guidance: from a model and encoded prompts to the one velocity that a solver follows.

Two kinds. *Embedded* guidance is a number the distilled model was trained to take: one pass a step. *Classifier-free*
guidance (CFG) runs a negative prompt too and goes past the positive one, away from the negative: two passes a step,
limited to a part of the run if wanted, and optionally rescaled against the burnt-in contrast it brings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidGuidance, InvalidSetting
from .schedule import TIMESTEPS_PER_SIGMA, step_progress
from .solvers import VelocityFn

EMBEDDED_RANGE = (0.0, 100.0)
CFG_RANGE = (1.0, 30.0)
"""Beyond any use. Without a bound, numbers overflow steps later and look like a damaged file."""


@dataclass(frozen=True)
class GuidanceConfig:
    """How strongly the prompt steers. Checked when made; raises InvalidGuidance.

    embedded: the distilled scale, 0..100; models without such an input ignore it. cfg_scale: 1..30, and 1 is off.
    cfg_start, cfg_end: the part of the run with CFG, as fractions of its steps. rescale: 0..1, how far the contrast is
    brought back to that of the positive branch. batched: both branches in one pass (faster), or in turn (less memory).
    """

    embedded: float = 6.0
    cfg_scale: float = 1.0
    cfg_start: float = 0.0
    cfg_end: float = 1.0
    rescale: float = 0.0
    batched: bool = True

    def __post_init__(self) -> None:
        _check_range("guidance", self.embedded, *EMBEDDED_RANGE, "The released model uses 6.")
        _check_range("cfg_scale", self.cfg_scale, *CFG_RANGE, "1 switches CFG off.")
        _check_range("cfg_start", self.cfg_start, 0.0, 1.0, "It is a fraction of the run's steps.")
        _check_range("cfg_end", self.cfg_end, 0.0, 1.0, "It is a fraction of the run's steps.")
        _check_range("rescale", self.rescale, 0.0, 1.0, "0 switches rescaling off.")
        if self.cfg_start >= self.cfg_end:
            raise InvalidGuidance(
                f"cfg_start is {self.cfg_start} and cfg_end {self.cfg_end}, but the start must lie before the end. "
                "To go without CFG set cfg_scale to 1."
            )

    @property
    def uses_cfg(self) -> bool:
        return self.cfg_scale > 1.0

    def is_guided(self, progress: float) -> bool:
        """Whether CFG acts on a step whose middle lies at this fraction of the run."""
        return self.uses_cfg and self.cfg_start <= progress <= self.cfg_end


class Conditioning(Protocol):
    """An encoded prompt, as the text encoders make it."""

    @property
    def text_embeds(self) -> Tensor: ...  # [B, L, D]

    @property
    def text_mask(self) -> Tensor: ...  # [B, L], 1 where a token is real

    @property
    def pooled_embeds(self) -> Tensor: ...  # [B, P]


class HasGuidance(Protocol):
    """The one thing to know of a model's config."""

    @property
    def has_guidance(self) -> bool: ...


class VelocityModel(Protocol):
    """A transformer, as seen from here."""

    @property
    def config(self) -> HasGuidance: ...

    def __call__(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text_embeds: Tensor,
        text_mask: Tensor,
        pooled_embeds: Tensor,
        guidance: float | None = None,
        clean_first_frame: bool = False,
    ) -> Tensor: ...


POSITIVE, NEGATIVE = "positive", "negative"
BOTH = NEGATIVE, POSITIVE

PassFn = Callable[[float, tuple[str, ...], tuple[str, ...]], None]
"""(sigma, passing, branches): which branches the batch of a pass holds, in equal parts and in this order, and which a
velocity at that level takes in all. The positive one is the last of the first pass, in a batch as in turn."""


class _Branch(NamedTuple):
    """What one pass is conditioned on: text embeds [B, L, D], mask [B, L], pooled embeds [B, P]."""

    text_embeds: Tensor
    text_mask: Tensor
    pooled_embeds: Tensor


def make_velocity_fn(
    model: VelocityModel,
    positive: Conditioning,
    negative: Conditioning | None = None,
    *,
    sigmas: Tensor,
    config: GuidanceConfig | None = None,
    clean_first_frame: bool = False,
    before_pass: PassFn | None = None,
) -> VelocityFn:
    """The guided velocity of a run, as a function of latents [B, C, T, H, W] and sigma; float32 in and out.

    model: gets float32 latents and timesteps [B] = 1000 * sigma, and casts for itself.
    positive, negative: prompts of batch B, or of batch 1 for all B videos. sigmas: the levels of this run, which the
    start and end of CFG refer to; a solver's call at a level counts for the step that begins there (Heun's second call,
    too), so the velocity stays a function of sigma alone. clean_first_frame: image to video by token replace.
    before_pass: told before each call of the model. Raises InvalidGuidance when CFG is on and there is no negative
    prompt; InvalidSetting, at the call, when the batch of a prompt fits neither.
    """
    config = config or GuidanceConfig()
    if config.uses_cfg and negative is None:
        raise InvalidGuidance(
            f"cfg_scale is {config.cfg_scale}, which needs a negative prompt (an empty one will do), but none was "
            "given. Give one, or set cfg_scale to 1."
        )
    levels: Sequence[float] = sigmas.tolist()
    embedded = config.embedded if model.config.has_guidance else None

    def predict(
        latents: Tensor, sigma: float, branch: _Branch, passing: tuple[str, ...], branches: tuple[str, ...]
    ) -> Tensor:
        if before_pass:
            before_pass(sigma, passing, branches)
        timesteps = latents.new_full((len(latents),), TIMESTEPS_PER_SIGMA * sigma)
        return model(latents, timesteps, *branch, guidance=embedded, clean_first_frame=clean_first_frame).float()

    def velocity_fn(latents: Tensor, sigma: float) -> Tensor:
        latents = latents.float()
        pos = _branch_of(positive, latents)
        if negative is None or not config.is_guided(step_progress(sigma, levels)):
            return predict(latents, sigma, pos, (POSITIVE,), (POSITIVE,))
        neg = _branch_of(negative, latents)
        if config.batched:
            both = _stack_branches(neg, pos)
            v_neg, v_pos = predict(torch.cat([latents, latents]), sigma, both, BOTH, BOTH).chunk(2)
        else:
            v_pos = predict(latents, sigma, pos, (POSITIVE,), BOTH)
            v_neg = predict(latents, sigma, neg, (NEGATIVE,), BOTH)
        return rescale_guidance(combine_cfg(v_neg, v_pos, config.cfg_scale), v_pos, config.rescale)

    return velocity_fn


def combine_cfg(v_neg: Tensor, v_pos: Tensor, cfg_scale: float) -> Tensor:
    """v_neg + cfg_scale * (v_pos - v_neg). Ho and Salimans 2022."""
    return v_neg + cfg_scale * (v_pos - v_neg)


def rescale_guidance(guided: Tensor, v_pos: Tensor, rescale: float) -> Tensor:
    """Bring the standard deviation of each guided video back to that of its positive branch, by the part `rescale`.

    guided, v_pos: [B, ...]; the deviation is over all but B. Lin et al. 2023, "Common Diffusion Noise Schedules and
    Sample Steps are Flawed", section 3.4.
    """
    if rescale == 0.0:
        return guided
    dims = tuple(range(1, guided.ndim))
    spread = guided.std(dims, keepdim=True).clamp_min(torch.finfo(guided.dtype).tiny)
    matched = guided * (v_pos.std(dims, keepdim=True) / spread)
    return rescale * matched + (1.0 - rescale) * guided


def _branch_of(conditioning: Conditioning, latents: Tensor) -> _Branch:
    """The conditioning on the device of the latents, one row per video."""
    given, wanted = len(conditioning.text_embeds), len(latents)
    if given not in (1, wanted):
        raise InvalidSetting(f"{given} prompts were encoded for {wanted} videos. Encode one, or one per video.")
    rows = (conditioning.text_embeds, conditioning.text_mask, conditioning.pooled_embeds)
    return _Branch(*(row.to(latents.device).expand(wanted, *row.shape[1:]) for row in rows))


def _stack_branches(first: _Branch, second: _Branch) -> _Branch:
    """Both in one batch, first before second; the shorter text is padded on the right and masked there."""
    length = max(first.text_mask.shape[1], second.text_mask.shape[1])
    return _Branch(
        torch.cat([F.pad(b.text_embeds, (0, 0, 0, length - b.text_embeds.shape[1])) for b in (first, second)]),
        torch.cat([F.pad(b.text_mask, (0, length - b.text_mask.shape[1])) for b in (first, second)]),
        torch.cat([first.pooled_embeds, second.pooled_embeds]),
    )


def _check_range(name: str, value: float, low: float, high: float, advice: str) -> None:
    if not low <= value <= high:
        raise InvalidGuidance(f"{name} is {value}, but must be from {low:g} to {high:g}. {advice}")
