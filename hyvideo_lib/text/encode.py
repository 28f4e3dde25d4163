"""Prompts to everything the transformer is told about them: `encode_prompt` and the `TextEmbeds` it returns."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import EmptyPrompt
from ..finite import check_finite
from .clip import ClipTextEncoder
from .llm import LlamaTextEncoder
from .plain import plain_text
from .templates import TEMPLATES, PromptTemplate

if TYPE_CHECKING:
    from ..host import Host

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TextEmbeds:
    """A batch of encoded prompts.

    text_embeds: [B, L, D] states of the prompt's tokens, zero outside the mask. text_mask: [B, L] int64, ones first.
    pooled_embeds: [B, P]. tokens_cut: per prompt, how many tokens were over the limit.
    """

    text_embeds: Tensor
    text_mask: Tensor
    pooled_embeds: Tensor
    tokens_cut: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.text_embeds)

    def __repr__(self) -> str:
        lengths = self.text_mask.sum(dim=1).tolist()
        return f"TextEmbeds(prompts={len(self)}, tokens={lengths}, tokens_cut={list(self.tokens_cut)})"

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> TextEmbeds:
        """Moved and, where it is a floating number, cast; the mask stays an integer."""
        return replace(
            self,
            text_embeds=self.text_embeds.to(device=device, dtype=dtype),
            text_mask=self.text_mask.to(device=device),
            pooled_embeds=self.pooled_embeds.to(device=device, dtype=dtype),
        )

    def row(self, index: int) -> TextEmbeds:
        """One prompt as a batch of its own, trimmed to its real length."""
        index = range(len(self))[index]
        length = int(self.text_mask[index].sum())
        return TextEmbeds(
            self.text_embeds[index : index + 1, :length],
            self.text_mask[index : index + 1, :length],
            self.pooled_embeds[index : index + 1],
            self.tokens_cut[index : index + 1],
        )

    def repeat(self, count: int) -> TextEmbeds:
        """Every prompt `count` times in a row: a, a, b, b."""
        return TextEmbeds(
            self.text_embeds.repeat_interleave(count, dim=0),
            self.text_mask.repeat_interleave(count, dim=0),
            self.pooled_embeds.repeat_interleave(count, dim=0),
            tuple(cut for cut in self.tokens_cut for _ in range(count)),
        )


def stack_embeds(*parts: TextEmbeds) -> TextEmbeds:
    """Several batches as one, in order, padded to the longest; for guidance that is (negative, positive)."""
    longest = max(part.text_mask.shape[1] for part in parts)

    def widen(part: TextEmbeds) -> tuple[Tensor, Tensor]:
        extra = longest - part.text_mask.shape[1]
        return F.pad(part.text_embeds, (0, 0, 0, extra)), F.pad(part.text_mask, (0, extra))

    text_embeds, text_masks = zip(*map(widen, parts), strict=True)
    return TextEmbeds(
        torch.cat(text_embeds),
        torch.cat(text_masks),
        torch.cat([part.pooled_embeds for part in parts]),
        tuple(cut for part in parts for cut in part.tokens_cut),
    )


def encode_prompt(
    prompts: str | Sequence[str],
    llm: LlamaTextEncoder,
    clip: ClipTextEncoder,
    template: PromptTemplate = TEMPLATES["video"],
    max_length: int = 256,
    host: Host | None = None,
) -> TextEmbeds:
    """Encode one prompt or several, without gradients; an empty string is a prompt too (the unconditional one).

    The template is for the language model; CLIP reads the bare prompt. max_length: tokens after the template's opening.
    Each part stays on its encoder's device and in its dtype. Asks `host` for interruption before either encoder.
    Raises EmptyPrompt for no prompt at all, InvalidSetting for one that is not text (`plain_text`), InvalidTemplate,
    UnsupportedFile, NonFiniteOutput.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise EmptyPrompt(
            "there is no prompt to encode: the list is empty. Give at least one; it may be an empty string."
        )
    named = (
        ["The prompt"] if len(prompts) == 1 else [f"Prompt {n} of {len(prompts)}" for n in range(1, len(prompts) + 1)]
    )
    prompts = [plain_text(prompt, what) for prompt, what in zip(prompts, named, strict=True)]
    tokens = llm.tokenize(prompts, template, max_length)
    for number, item in enumerate(tokens, start=1):
        if item.tokens_cut:
            logger.warning(
                "prompt %d of %d is too long: its last %d tokens are not used (limit %d). Shorten it.",
                *(number, len(tokens), item.tokens_cut, len(item.ids) - item.crop_start),
            )
    with torch.no_grad():
        _check_interrupt(host)
        text_embeds, text_mask = llm.encode(tokens)
        _check_interrupt(host)
        pooled_embeds = clip.encode(prompts)
    check_finite(text_embeds, "text", "The language model's text_embeds")
    check_finite(pooled_embeds, "text", "CLIP's pooled_embeds")
    return TextEmbeds(text_embeds, text_mask, pooled_embeds, tuple(item.tokens_cut for item in tokens))


def _check_interrupt(host: Host | None) -> None:
    if host is not None:
        host.check_interrupt()
