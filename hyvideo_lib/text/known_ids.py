"""Whether a tokenizer is the one its encoder was trained with: texts whose ids are known, and where templates are cut.

A tokenizer that is wrong raises nothing by itself. It gives ids of other words, or splits the same words otherwise, and
the video then ignores parts of the prompt. Each text fails first for one cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UnsupportedFile
from .templates import TEMPLATES
from .tokens import opening_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LLAMA3_MIN_VOCAB_SIZE = 128256
"""Embeddings of a language model with Llama-3's vocabulary, at least; with LLaVA's tokens it has 128,320."""
CLIP_VOCAB_SIZE = 49408

_ANOTHER = "It is the tokenizer of another model, or damaged"
_CONTROL = "Its special tokens are missing or have other numbers, as after a conversion that lost `added_tokens`"
_SPLIT = "It splits text otherwise, as after a conversion that lost the pre-tokenizer"
_NORMALIZER = "It prepares text otherwise (case, accents, spaces), as after a conversion that lost the normalizer"


@dataclass(frozen=True)
class Known:
    """A text, its ids without any added at the ends, and what is wrong with a tokenizer that gives others."""

    text: str
    ids: tuple[int, ...]
    fault: str


LLAMA3_IDS = (
    Known("video", (10191,), _ANOTHER),
    Known("<|begin_of_text|>", (128000,), _CONTROL),
    Known("<|start_header_id|>", (128006,), _CONTROL),
    Known("<|end_header_id|>", (128007,), _CONTROL),
    Known("<|eot_id|>", (128009,), _CONTROL),
    Known(" Việt", (101798,), _NORMALIZER),
    Known("Hello, world!", (9906, 11, 1917, 0), _SPLIT),
    Known("\n\n", (271,), _SPLIT),
    Known("1234567", (4513, 10961, 22), _SPLIT),
)
LLAMA3_CROPS = {"video": 95, "image": 36}
"""Tokens before the prompt in Tencent's templates."""

CLIP_IDS = (
    Known("photo", (1125,), _ANOTHER),
    Known("<|startoftext|>", (49406,), _CONTROL),
    Known("<|endoftext|>", (49407,), _CONTROL),
    Known("PHOTO", (1125,), _NORMALIZER),
    Known("東京 café", (48338, 21078, 361, 15304), _NORMALIZER),
    Known("hello, world!", (3306, 267, 1002, 256), _SPLIT),
    Known("it's 1234567", (585, 568, 272, 273, 274, 275, 276, 277, 278), _SPLIT),
    Known("a photo of a cat", (320, 1125, 539, 320, 2368), _SPLIT),
)


def check_llama3_tokenizer(tokenizer: Tokenizer, origin: str) -> None:
    """Hold a tokenizer to known ids of Llama-3 and to the 95 and 36 tokens of Tencent's templates.

    origin: where it is from, for messages. Raises UnsupportedFile.
    """
    advice = (
        "Use the tokenizer.json that came with llava-llama-3-8b (or Meta-Llama-3-8B), or take the wrong one away and "
        "pip install llama-models, which carries the vocabulary."
    )
    _check(tokenizer, origin, "Llama-3", LLAMA3_IDS, advice)
    for name, crop in LLAMA3_CROPS.items():
        found = len(opening_ids(tokenizer, TEMPLATES[name]))
        if found != crop:
            raise UnsupportedFile(
                f"{origin} is not Llama-3's tokenizer: the {name} template's opening has {found} tokens, not {crop}. "
                f"{_SPLIT}. {advice}"
            )


def check_clip_tokenizer(tokenizer: Tokenizer, origin: str) -> None:
    """Hold a tokenizer to known ids of CLIP ViT-L/14. origin: as above. Raises UnsupportedFile."""
    advice = "Use the tokenizer.json of CLIP ViT-L/14, or a folder with its vocab.json and merges.txt."
    _check(tokenizer, origin, "CLIP", CLIP_IDS, advice)


def _check(tokenizer: Tokenizer, origin: str, model: str, known: Sequence[Known], advice: str) -> None:
    for entry in known:
        found = tokenizer.encode(entry.text, add_special_tokens=False).ids
        if found != list(entry.ids):
            raise UnsupportedFile(
                f"{origin} is not {model}'s tokenizer: it reads {entry.text!r} as {_some(found)}, but it must be "
                f"{_some(entry.ids)}. {entry.fault}. {advice}"
            )


def _some(ids: Sequence[int]) -> str:
    return f"[{', '.join(map(str, ids[:9]))}{', ...' if len(ids) > 9 else ''}]"
