"""Tokenizers from files, in the forms in which models carry them.

Everything is the `tokenizers` library underneath `transformers`, used directly: a `tokenizer.json` then means the same
under every version of `transformers`, and counting tokens does not import a model library.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FileMissing, FileUnreadable, UnsupportedFile
from .clip_tokenizer import MERGES_FILE, VOCAB_FILE, build_clip_tokenizer
from .llama3_tokenizer import llama3_from_ranks

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
RANKS_FILE = "tokenizer.model"
MAX_BYTES = 100_000_000  # Llama-3's tokenizer.json has 17 MB
_RANK = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s")
_SENTENCEPIECE = b"\n"  # the first field of its protocol buffer, the pieces


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer, without truncation or padding.

    path: a tokenizer.json, a tokenizer.model with Llama-3's table of ranks, CLIP's vocab.json with merges.txt beside
    it, or a folder that holds one of these. Raises FileMissing, FileUnreadable, UnsupportedFile.
    """
    path = Path(path)
    file = next(iter(tokenizer_files_in(path)), path / TOKENIZER_FILE) if path.is_dir() else path
    if not file.is_file():
        raise FileMissing(
            f"no tokenizer at {file}. A text encoder needs the {TOKENIZER_FILE} of its model: put it in the encoder's "
            "folder, or name the file or folder that has it."
        )
    if file.name in (VOCAB_FILE, MERGES_FILE):
        return build_clip_tokenizer(file.parent)
    if file.stat().st_size > MAX_BYTES:
        raise FileUnreadable(
            f"{file} has {file.stat().st_size} bytes, too many for a tokenizer. Name the {TOKENIZER_FILE} of the model."
        )
    return tokenizer_from_bytes(file.read_bytes(), str(file))


def tokenizer_files_in(folder: Path) -> list[Path]:
    """The files in a folder that tell a tokenizer, one for each form that is complete."""
    forms = ((TOKENIZER_FILE,), (VOCAB_FILE, MERGES_FILE), (RANKS_FILE,))
    return [folder / form[0] for form in forms if all((folder / name).is_file() for name in form)]


def tokenizer_from_bytes(data: bytes, origin: str) -> Tokenizer:
    """A tokenizer from the bytes of a tokenizer.json or of Llama-3's tokenizer.model.

    origin: where they are from, for messages. Raises FileUnreadable, UnsupportedFile.
    """
    if data.startswith(_SENTENCEPIECE):
        raise UnsupportedFile(
            f"{origin} is a SentencePiece model, the tokenizer of Llama-2, T5 and others; Llama-3 and CLIP have none. "
            f"Use the {TOKENIZER_FILE} that came with the text encoder."
        )
    return llama3_from_ranks(data, origin) if _RANK.match(data) else _from_json(data, origin)


def _from_json(data: bytes, origin: str) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8-sig"))
    except Exception as error:  # the library raises nothing more specific
        raise FileUnreadable(
            f"{origin} is not a {TOKENIZER_FILE} that this version of `tokenizers` can read ({error}). "
            "Download it again, or update the package: pip install -U tokenizers transformers"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
