"""CLIP's tokenizer from the two files that older folders carry: vocab.json and merges.txt.

Text is composed (NFC), its white space made single and its letters small; words, digits one by one, and runs of signs
are then spelled in bytes and joined by the merges, the last piece of each marked `</w>`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FileUnreadable, UnsupportedFile
from .clip import END_OF_TEXT, START_OF_TEXT

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"
_WORD_END = "</w>"
_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def build_clip_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a folder with CLIP's vocab.json and merges.txt; it adds start and end of text.

    Raises FileUnreadable, or UnsupportedFile for another model's pair of these files.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    folder = Path(folder)
    vocab = _read_vocab(folder / VOCAB_FILE)
    merges = _read_merges(folder / MERGES_FILE)
    try:
        bpe = models.BPE(vocab=vocab, merges=merges, unk_token=END_OF_TEXT, end_of_word_suffix=_WORD_END)
    except Exception as error:  # the library raises nothing more specific
        raise FileUnreadable(
            f"{MERGES_FILE} and {VOCAB_FILE} in {folder} do not belong together ({error}). Take both from one folder."
        ) from error
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # What the pattern matches are the pieces; white space between them is dropped.
            pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([START_OF_TEXT, END_OF_TEXT])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START_OF_TEXT} $A {END_OF_TEXT}",
        special_tokens=[(name, vocab[name]) for name in (START_OF_TEXT, END_OF_TEXT)],
    )
    return tokenizer


def _read_vocab(file: Path) -> dict[str, int]:
    try:
        vocab = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileUnreadable(f"{file} is not a table of tokens in JSON ({error}). Download it again.") from error
    if not isinstance(vocab, dict) or not all(type(index) is int and index >= 0 for index in vocab.values()):
        raise FileUnreadable(f"{file} is not a table from tokens to their numbers. Download it again.")
    unknown = [name for name in (START_OF_TEXT, END_OF_TEXT) if name not in vocab]
    if not any(token.endswith(_WORD_END) for token in vocab):
        unknown.append(f"token that ends in {_WORD_END}")
    if unknown:
        raise UnsupportedFile(
            f"{file} is not CLIP's vocabulary: it has no {unknown[0]}. "
            "Use the vocab.json and merges.txt of CLIP ViT-L/14, or its tokenizer.json."
        )
    return vocab


def _read_merges(file: Path) -> list[tuple[str, str]]:
    """Pairs of pieces, most urgent first; the first line may name the version."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise FileUnreadable(f"{file} is not a text of merges ({error}). Download it again.") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        line = line.strip("\r ")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not right or " " in right:
            raise FileUnreadable(f"{file} has no pair of pieces in line {number}: {line[:60]!r}. Download it again.")
        pairs.append((left, right))
    return pairs
