"""The tokenizer that belongs to a text encoder's file: named, beside it, inside it, or elsewhere on this machine.

Folders are shared (ComfyUI keeps all text encoders in one), so what lies beside a file may be another model's. A
tokenizer that is found is held to what is known of its model; one that does not fit is passed over with a warning, and
one that was named is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from ..errors import BadInput, FileMissing, FileUnreadable, UnsupportedFile
from ..text import build_llama3_tokenizer, check_clip_tokenizer, check_llama3_tokenizer, load_tokenizer
from ..text.known_ids import CLIP_VOCAB_SIZE, LLAMA3_MIN_VOCAB_SIZE
from ..text.llama3_tokenizer import llama3_from_merges
from ..text.tokenizer import MAX_BYTES, TOKENIZER_FILE, tokenizer_files_in, tokenizer_from_bytes
from .examine import Findings
from .folder import map_header
from .gguf import read_gguf_metadata
from .read import Header

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

PathLike = str | Path
TOKENIZER_TENSOR = "tokenizer"
_GGUF_CONTROL, _GGUF_USER_DEFINED = 3, 4  # kinds of tokens that stand for themselves
_GGUF_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")


@dataclass(frozen=True)
class _Place:
    """Somewhere a tokenizer may be. read: gives it, or raises BadInput."""

    origin: str
    read: Callable[[], Tokenizer]


def find_tokenizer(
    header: Header,
    findings: Findings,
    tokenizer: Tokenizer | PathLike | None,
    places: Iterable[PathLike] = (),
    is_told: bool = True,
) -> Tokenizer:
    """The tokenizer of a recognised text encoder, checked.

    header: with all tensors of the file. tokenizer: one that is loaded, or the file or folder that has it; None looks
    for `<stem>.tokenizer.json` beside the file, inside it (the tensor `tokenizer`, or a GGUF file's metadata), through
    its folder, through `places` (files or folders), and for Llama-3 into the package llama-models.
    is_told: whether it is logged which was taken, and why others were not.
    Raises FileMissing if there is none, UnsupportedFile if it belongs to another model, FileUnreadable, MissingPackage.
    """
    if isinstance(tokenizer, str | Path):
        found = load_tokenizer(tokenizer)
        _check(findings, found, str(tokenizer))
        return found
    if tokenizer is not None:
        _check(findings, tokenizer, "the tokenizer given")
        return tokenizer
    refused: list[BadInput] = []
    for place in _places(header, findings, places):
        try:
            found = place.read()
            _check(findings, found, place.origin)
        except BadInput as error:
            refused.append(error)
            continue
        for complaint in refused if is_told else ():
            logger.warning("%s A tokenizer that fits was taken instead: %s", complaint, place.origin)
        if is_told:
            logger.info("%s: tokenizer from %s", header.path.name, place.origin)
        return found
    if refused:
        raise refused[0]
    raise FileMissing(
        f"{header.path.name} has no tokenizer in it and none beside it (looked for {_named_after(header.path).name}, "
        f"{TOKENIZER_FILE}, and vocab.json with merges.txt). Put the {TOKENIZER_FILE} of the same model there, or name "
        "it."
    )


def _check(findings: Findings, tokenizer: Tokenizer, origin: str) -> None:
    """Hold it to the real vocabularies' known ids, where the encoder has as many embeddings as those have words."""
    vocab_size = findings.config.vocab_size
    if findings.kind == "llama" and vocab_size >= LLAMA3_MIN_VOCAB_SIZE:
        check_llama3_tokenizer(tokenizer, origin)
    if findings.kind == "clip" and vocab_size == CLIP_VOCAB_SIZE:
        check_clip_tokenizer(tokenizer, origin)


def _places(header: Header, findings: Findings, elsewhere: Iterable[PathLike]) -> Iterator[_Place]:
    """Everywhere that has one, the likeliest first."""
    folder = header.path if header.path.is_dir() else header.path.parent
    named = _named_after(header.path)
    if named.is_file():
        yield _at(named)
    yield from _inside(header, findings)
    around = [folder]
    if folder.name.startswith("text_encoder"):  # a pipeline's folders: text_encoder_2 and, beside it, tokenizer_2
        around.append(folder.with_name(folder.name.replace("text_encoder", "tokenizer")))
    for path in (*around, *map(Path, elsewhere)):
        yield from map(_at, tokenizer_files_in(path) if path.is_dir() else [path] if path.is_file() else [])
    if findings.kind == "llama" and findings.config.vocab_size >= LLAMA3_MIN_VOCAB_SIZE:
        yield _Place("the package llama-models", build_llama3_tokenizer)


def _named_after(path: Path) -> Path:
    """The tokenizer that carries the name of a checkpoint's file."""
    return path.with_name(f"{path.stem}.{TOKENIZER_FILE}")


def _at(path: Path) -> _Place:
    return _Place(str(path), partial(load_tokenizer, path))


def _inside(header: Header, findings: Findings) -> Iterator[_Place]:
    if header.format == "gguf":
        if "tokenizer.ggml.tokens" in header.metadata:
            yield _Place(f"the metadata of {header.path.name}", partial(_from_gguf, header.path))
        return
    own = findings.name_in_file(TOKENIZER_TENSOR)
    for name in dict.fromkeys((own, TOKENIZER_TENSOR, f"model.{TOKENIZER_TENSOR}")):
        info = header.tensors.get(name)
        if info and info.dtype == "uint8" and len(info.shape) == 1:
            yield _Place(f"the tensor {name!r} of {header.path.name}", partial(_from_tensor, header, name))


def _from_tensor(header: Header, name: str) -> Tokenizer:
    info = header.tensors[name]
    origin = f"the tensor {name!r} of {header.path.name}"
    if info.num_bytes > MAX_BYTES:
        raise FileUnreadable(f"{origin} has {info.num_bytes} bytes, too many for a tokenizer.")
    return tokenizer_from_bytes(bytes(map_header(header)[name].numpy().data), origin)


def _from_gguf(path: Path) -> Tokenizer:
    """Llama-3's tokenizer from the lists in a GGUF file's metadata."""
    metadata = read_gguf_metadata(path)
    kind, split = (metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    tokens, merges, kinds = (metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges", "token_type"))
    origin = f"the metadata of {path.name}"
    if kind != "gpt2" or split not in _GGUF_LLAMA3:
        raise UnsupportedFile(
            f"{origin} describes a tokenizer of the kind {kind} / {split}, Llama-3's is gpt2 / {_GGUF_LLAMA3[0]}. "
            "Put the tokenizer.json of the language model beside the file."
        )
    if not (_are_texts(tokens) and _are_texts(merges) and isinstance(kinds, list) and len(kinds) == len(tokens)):
        raise FileUnreadable(
            f"{origin} holds an incomplete tokenizer. Put the tokenizer.json of the language model beside the file."
        )
    standing = (_GGUF_CONTROL, _GGUF_USER_DEFINED)
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind in standing]
    return llama3_from_merges(tokens, merges, control, origin)


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
