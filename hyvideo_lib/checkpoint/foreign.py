"""What a file is when it is neither safetensors nor GGUF: told from its first bytes, named, with advice.

People hand over pickles, Git LFS pointers and saved web pages under the name of a checkpoint. Each has a
signature; the table turns it into the sentence that helps.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BadInput, FileUnreadable, UnsupportedFile

HEAD_BYTES = 512  # as many first bytes as `recognise_foreign` wants to see


@dataclass(frozen=True)
class Foreign:
    """One kind of file that is not safetensors. `signature` stands at byte `offset`, compared without case."""

    signature: bytes
    name: str
    advice: str
    error: type[BadInput] = FileUnreadable
    offset: int = 0


_CONVERT = (
    "Pickles can run code and are never opened here; use the .safetensors version of the file, or make one "
    "with `hyvideo convert`."
)
_DOWNLOAD = "Download the file itself again (a model is gigabytes, not a page of text)."

FOREIGN = (
    Foreign(b"PK\x03\x04", "a PyTorch pickle (.pt, .ckpt, .bin) or another zip archive", _CONVERT, UnsupportedFile),
    Foreign(b"\x80\x02", "an old PyTorch pickle (.pt, .ckpt, .bin)", _CONVERT, UnsupportedFile),
    Foreign(b"\x80\x03", "a Python pickle", _CONVERT, UnsupportedFile),
    Foreign(b"\x80\x04", "a Python pickle", _CONVERT, UnsupportedFile),
    Foreign(b"\x80\x05", "a Python pickle", _CONVERT, UnsupportedFile),
    Foreign(b"\x89HDF", "an HDF5 file", "Use a safetensors file.", UnsupportedFile),
    Foreign(b"version https://git-lfs", "a Git LFS pointer", "Fetch the file it points to with `git lfs pull`."),
    Foreign(b"<!doctype", "a web page", _DOWNLOAD),
    Foreign(b"<html", "a web page", _DOWNLOAD),
    Foreign(b"<?xml", "an XML text", _DOWNLOAD),
    Foreign(b"{", "a JSON text", "Give the .safetensors file, not its index or config."),
    Foreign(b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    Foreign(b"7z\xbc\xaf", "a 7z archive", "Unpack it first."),
    Foreign(b"Rar!", "a RAR archive", "Unpack it first."),
    Foreign(b"\x89PNG", "a PNG picture", "Give a .safetensors file."),
    Foreign(b"\xff\xd8\xff", "a JPEG picture", "Give a .safetensors file."),
    Foreign(b"ftyp", "a video", "Give a .safetensors file.", offset=4),
)


def recognise_foreign(head: bytes) -> Foreign | None:
    """The table's entry for a file that begins with `head` (blanks before text are skipped), or None."""
    candidates = (head, head.lstrip(b"\xef\xbb\xbf \t\r\n"))
    for kind in FOREIGN:
        signature, end = kind.signature.lower(), kind.offset + len(kind.signature)
        if any(candidate[kind.offset : end].lower() == signature for candidate in candidates):
            return kind
    return None
