"""Long headers, and metadata that is not as the format has it: read past, told, and bounded in memory."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.hostile.files import ALLOWANCE, FACTOR, resident_peak
from benchmarks.hostile.safetensors_files import join
from hyvideo_lib.checkpoint import header_text, inspect_file, load_vae, read_header
from hyvideo_lib.checkpoint.convert import convert_file
from hyvideo_lib.checkpoint.header_text import MAX_KEPT, read_text, structure_of
from hyvideo_lib.demo import assets
from hyvideo_lib.errors import FileUnreadable

ENTRY = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}


def file_of(path: Path, metadata: Any) -> Path:
    path.write_bytes(join(json.dumps({"__metadata__": metadata, "a": ENTRY}, ensure_ascii=False).encode(), b"\0"))
    return path


def read(text: str) -> tuple[str, tuple[str, ...]]:
    data = text.encode()
    return read_text(io.BytesIO(data), len(data))


ODD: dict[str, tuple[Any, dict[str, str]]] = {
    "number": ({"alpha": 16, "a": "b"}, {"alpha": "16", "a": "b"}),
    "null": ({"a": None, "b": "c"}, {"b": "c"}),
    "list and table": ({"a": [1, {"b": None}]}, {"a": '[1, {"b": null}]'}),
    "true": ({"a": True}, {"a": "true"}),
    "no table": ([1, 2], {}),
    "null itself": (None, {}),
    "text itself": ("hello", {}),
}


@pytest.mark.parametrize("case", ODD)
def test_metadata_that_is_no_text_is_read_past_with_a_note(case: str, tmp_path: Path) -> None:
    given, expected = ODD[case]
    header = read_header(file_of(tmp_path / "a.safetensors", given))
    assert dict(header.metadata) == expected
    assert len(header.notes) == 1
    assert inspect_file(tmp_path / "a.safetensors").notes[0] == header.notes[0]


def test_metadata_as_the_format_has_it_needs_no_note(tmp_path: Path) -> None:
    assert read_header(file_of(tmp_path / "a.safetensors", {"a": "b", "\u3042": "\u3042"})).notes == ()


def test_a_text_that_is_no_unicode_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(join(json.dumps({"__metadata__": {"a": "\ud800", "b": "c"}, "a": ENTRY}).encode(), b"\0"))
    assert dict(read_header(path).metadata) == {"b": "c"}


def test_a_model_with_odd_metadata_loads_and_converts(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(load_file(assets.VAE), path, {"hyvideo.config": '{"norm_groups": 4}', "step": "#3"})
    data = path.read_bytes()
    assert b'"#3"' in data
    path.write_bytes(data.replace(b'"#3"', b"   3"))
    assert any("not text" in note for note in inspect_file(path).notes)
    load_vae(path)
    convert_file(path, tmp_path / "b.safetensors")
    assert read_header(tmp_path / "b.safetensors").metadata["step"] == "3"


@pytest.mark.parametrize("piece", [7, 64, 2**17])
def test_what_stands_outside_strings_is_told_from_what_is_inside(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(header_text, "PIECE", piece)
    rng = random.Random(piece)
    for _ in range(200):
        strings = ["".join(rng.choice('ab",[{\\\u3042') for _ in range(rng.randrange(9))) for _ in range(9)]
        text = json.dumps({"a": strings, "b": {"c": [strings]}})
        assert sum("".join(structure_of(text)).count(mark) for mark in ",[{") == 1 + 1 + 8 + 1 + 1 + 1 + 1 + 8


@pytest.mark.parametrize("piece", [16, 64, 2**17])
def test_a_long_text_says_what_it_said(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """Wide signs are written out; inside JSON in JSON they are the same signs once that is parsed."""
    monkeypatch.setattr(header_text, "PIECE", piece)
    monkeypatch.setattr(header_text, "FREE_BYTES", 0)
    monkeypatch.setattr(header_text, "FREE_GROWTH", 10_000)
    rng = random.Random(piece)
    for is_escaped in (False, True):
        inner = {"".join(rng.choice('ab"\\\u3042\U0001f600\xe9') for _ in range(5)): number for number in range(50)}
        text = json.dumps({"a": json.dumps(inner, ensure_ascii=False)}, ensure_ascii=is_escaped)
        found, _ = read("".join((text, " " * 20_000)))
        assert json.loads(json.loads(found)["a"]) == inner


def test_more_than_there_is_room_for_is_shown_as_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_text, "FREE_BYTES", 0)
    monkeypatch.setattr(header_text, "FREE_GROWTH", 5)
    found, notes = read(json.dumps({"a": "x" * 100 + "\u3042\u3042"}, ensure_ascii=False))
    assert json.loads(found) == {"a": "x" * 100 + "??"}
    assert len(notes) == 1


def history() -> str:
    """60 MB as a trainer writes its tags, full of commas, brackets and quotation marks."""
    tags = {f"set {number}": {f"a tag, [of] {tag}": tag for tag in range(60)} for number in range(43_000)}
    return json.dumps(tags)


def write_lora(path: Path, text: str, **more: str) -> Path:
    stem = "diffusion_model.double_blocks.0.img_attn_qkv.lora_"
    tensors = {f"{stem}A.weight": torch.ones(4, 8), f"{stem}B.weight": torch.ones(24, 4)}
    save_file(tensors, path, {"ss_tag_frequency": text, **more})
    return path


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lora(tmp_path_factory.mktemp("long") / "lora.safetensors", history(), rank="4")


def test_a_lora_with_60_mb_of_history_is_read(long_file: Path) -> None:
    assert long_file.stat().st_size > 60_000_000
    report = inspect_file(long_file)
    assert (report.kind, report.metadata) == ("lora", {"rank": "4"})
    assert "ss_tag_frequency" in report.notes[0]


MANY: dict[str, Callable[[], str]] = {
    "one sign of another script": lambda: "\U0001f600" + "x" * 40_000_000,
    "all signs of another script": lambda: "\u3042" * 13_000_000,
    "mixed": lambda: "\u0436" * 20_000_000 + "\U0001f600",
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux only")
@pytest.mark.parametrize("case", ["history", *MANY])
def test_a_long_header_takes_little_more_than_twice_its_size(case: str, long_file: Path, tmp_path: Path) -> None:
    path = long_file if case == "history" else file_of(tmp_path / "a.safetensors", {"a": MANY[case]()})
    assert resident_peak(path, keys_read) <= FACTOR * path.stat().st_size + ALLOWANCE


def keys_read(path: Path) -> str:
    return str(len(inspect_file(path).metadata))


def test_short_metadata_is_kept_and_the_longest_left_out(tmp_path: Path) -> None:
    given = {"long": "x" * MAX_KEPT, "short": "y"}
    header = read_header(file_of(tmp_path / "a.safetensors", given))
    assert dict(header.metadata) == {"short": "y"}
    assert "'long'" in header.notes[0]


def test_a_row_of_backslashes_is_no_header(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(join(b'{"__metadata__":{"a":"' + b"\\" * 3_000_000 + b'"}}', b""))
    with pytest.raises(FileUnreadable, match="backslashes"):
        read_header(path)
