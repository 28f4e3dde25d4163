"""One prompt in its template as token ids, with the two numbers that depend on the tokenizer: crop and limit.

The crop is where the prompt's own tokens begin. It is read off the ids: as many leading tokens as the filled template
shares with its opening alone. With Tencent's templates that is the whole opening (95 tokens for video, 36 for image, in
the Llama-3 vocabulary); where a tokenizer joins the opening's last character and the prompt's first into one token,
that token counts as prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InvalidSetting, InvalidTemplate, UnsupportedFile
from .templates import PromptTemplate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BEGIN_OF_TEXT = "<|begin_of_text|>"
_CONTROL_TOKEN = re.compile(r"<\|\w+\|>")


@dataclass(frozen=True)
class PromptTokens:
    """A prompt ready for the language model.

    ids: the whole filled template, cut to the limit. crop_start: first id that belongs to the prompt, < len(ids).
    tokens_cut: how many ids the limit took from the end (the closing token of the template among them).
    """

    ids: tuple[int, ...]
    crop_start: int
    tokens_cut: int


def tokenize_prompt(tokenizer: Tokenizer, prompt: str, template: PromptTemplate, max_length: int = 256) -> PromptTokens:
    """Fill the template and tokenize it, beginning-of-text token included, at most opening + max_length ids.

    The limit cuts from the end without mercy, so a prompt that is too long loses the closing `<|eot_id|>` first, as in
    the reference. Raises InvalidTemplate if the template's control tokens are no tokens here, InvalidSetting.
    """
    if max_length < 1:
        raise InvalidSetting(f"max_length is {max_length}, but a prompt needs room for at least 1 token. Usual is 256.")
    check_control_tokens(tokenizer, template)
    ids = text_ids(tokenizer, template.fill(prompt))
    limit = max_length + len(opening_ids(tokenizer, template.cut_like or template))
    kept = ids[:limit]
    # One row must stay: the transformer cannot read a prompt of no tokens at all.
    crop_start = min(_shared_prefix(opening_ids(tokenizer, template), kept), len(kept) - 1)
    return PromptTokens(tuple(kept), crop_start, len(ids) - len(kept))


def opening_ids(tokenizer: Tokenizer, template: PromptTemplate) -> list[int]:
    """Ids of what stands before the prompt. Without an opening there is nothing to cut, not even the first token."""
    return text_ids(tokenizer, template.prefix) if template.prefix else []


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text after one beginning-of-text token.

    That token is put in front here rather than by the tokenizer file, because files of the same vocabulary differ in
    whether theirs does it. Raises UnsupportedFile for a tokenizer without that token.
    """
    begin = tokenizer.token_to_id(BEGIN_OF_TEXT)
    if begin is None:
        raise UnsupportedFile(
            f"the tokenizer has no {BEGIN_OF_TEXT} token, so it is not a Llama-3 tokenizer (its vocabulary has "
            f"{tokenizer.get_vocab_size()} entries). Use the tokenizer.json that came with the language model."
        )
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids if ids[:1] == [begin] else [begin, *ids]


def check_control_tokens(tokenizer: Tokenizer, template: PromptTemplate) -> None:
    unknown = [name for name in _CONTROL_TOKEN.findall(template.text) if tokenizer.token_to_id(name) is None]
    if unknown:
        raise InvalidTemplate(
            f"the prompt template uses {', '.join(dict.fromkeys(unknown))}, which the tokenizer does not know. "
            "Use the tokenizer.json that came with the language model, or a template without these tokens."
        )


def _shared_prefix(first: list[int], second: list[int]) -> int:
    """How many leading ids two lists have in common."""
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count
