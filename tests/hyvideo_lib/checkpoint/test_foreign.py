from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest

from hyvideo_lib.checkpoint.foreign import FOREIGN, recognise_foreign
from hyvideo_lib.checkpoint.read import read_header
from hyvideo_lib.errors import BadInput, FileUnreadable, UnsupportedFile


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    return buffer.getvalue()


FILES: dict[str, tuple[bytes, type[BadInput], str]] = {
    "torch zip": (zip_bytes(), UnsupportedFile, "never opened"),
    "old pickle": (pickle.dumps({"a": 1}, protocol=2), UnsupportedFile, "never opened"),
    "pickle": (pickle.dumps(list(range(100))), UnsupportedFile, "never opened"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        FileUnreadable,
        "git lfs pull",
    ),
    "web page": (b"\n  <!DOCTYPE html><html><body>Sign in</body></html>", FileUnreadable, "web page"),
    "bare web page": (b"<HTML><body>404</body></HTML>", FileUnreadable, "web page"),
    "shard index": (b'{"metadata": {"total_size": 1}, "weight_map": {}}', FileUnreadable, "not its index"),
    "mp4": (b"\x00\x00\x00\x20ftypisom" + bytes(64), FileUnreadable, "a video"),
    "noise": (bytes(range(200, 240)), FileUnreadable, "it begins with c8 c9"),
}


@pytest.mark.parametrize(("content", "error", "words"), FILES.values(), ids=FILES.keys())
def test_foreign_file_is_named_with_advice(tmp_path: Path, content: bytes, error: type[BadInput], words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(error, match=words) as caught:
        read_header(path)
    assert "model.safetensors" in str(caught.value)


def test_every_row_recognises_its_own_signature_first() -> None:
    for row in FOREIGN:
        assert recognise_foreign(bytes(row.offset) + row.signature + bytes(20)) is row


def test_safetensors_header_is_not_foreign() -> None:
    assert recognise_foreign((1000).to_bytes(8, "little") + b'{"a": {}}') is None
