from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hyvideo_lib.checkpoint.read import _maps_read_only, map_tensors, read_header
from hyvideo_lib.errors import BadInput, FileMissing, FileTruncated, FileUnreadable, UnsupportedFile

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    tensors = {
        "weight": torch.randn(4, 6),
        "half": torch.randn(3, 5).bfloat16(),
        "eight": torch.randn(7).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
        "ids": torch.arange(5),
    }
    save_file(tensors, path, metadata={"made": "here"})
    return path


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(header, data, length): a file with this header (bytes, or a table for JSON) and a true or false length."""

    def write(header: bytes | dict[str, Any], data: bytes = bytes(24), length: int | None = None) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / "made.safetensors"
        path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
        return path

    return write


def test_mapped_tensors_equal_those_of_the_safetensors_package(small_file: Path) -> None:
    mapped, expected = map_tensors(read_header(small_file)), load_file(small_file)
    assert mapped.keys() == expected.keys()
    for name, tensor in expected.items():
        assert mapped[name].dtype == tensor.dtype
        assert mapped[name].shape == tensor.shape
        assert torch.equal(mapped[name].float(), tensor.float()), name


def test_header_tells_sizes_and_metadata(small_file: Path) -> None:
    header = read_header(str(small_file))
    assert header.metadata == {"made": "here"}
    assert header.file_size == small_file.stat().st_size
    assert (header.tensors["half"].dtype, header.tensors["half"].shape) == ("bfloat16", (3, 5))
    assert (header.tensors["half"].numel, header.tensors["half"].num_bytes) == (15, 30)
    assert header.shape("weight") == (4, 6)
    assert header.shape("nothing") is None


def test_tensors_share_one_mapping(tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    save_file({f"w{i}": torch.randn(64, 64) for i in range(8)}, path)
    tensors = map_tensors(read_header(path)).values()
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    assert next(iter(tensors)).untyped_storage().nbytes() == path.stat().st_size


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of the process from /proc")
def test_mapping_and_reading_takes_no_anonymous_memory(tmp_path: Path) -> None:
    def anonymous_bytes() -> int:
        line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    path = tmp_path / "large.safetensors"
    size = 96 * 2**20
    save_file({"w": torch.ones(size, dtype=torch.uint8)}, path)
    before = anonymous_bytes()
    tensor = map_tensors(read_header(path))["w"]
    assert tensor[::4096].sum() > 0
    assert anonymous_bytes() - before < size // 3


@pytest.mark.skipif(_maps_read_only(), reason="files are mapped for reading alone here")
def test_writing_into_a_tensor_leaves_the_file_alone(small_file: Path) -> None:
    before = small_file.read_bytes()
    tensors = map_tensors(read_header(small_file))
    tensors["weight"].zero_()
    assert tensors["weight"].eq(0).all()
    assert small_file.read_bytes() == before


@pytest.mark.parametrize("where", ["Windows", "AMD's PyTorch"])
def test_where_a_mapping_for_writing_costs_something_it_is_for_reading_alone(
    where: str, small_file: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    if where == "Windows":
        monkeypatch.setattr(sys, "platform", "win32")
    else:
        monkeypatch.setattr(torch.version, "hip", "7.2")
    tensors = map_tensors(read_header(small_file))
    monkeypatch.undo()
    if Path("/proc/self/maps").exists():
        lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(small_file))]
        assert [line.split()[1] for line in lines] == ["r--s"]
    for name, tensor in load_file(small_file).items():
        assert torch.equal(tensors[name].float(), tensor.float())
    assert not recwarn.list


def test_tensors_outlive_the_file_and_the_dict(small_file: Path) -> None:
    expected = load_file(small_file)["weight"].clone()
    weight = map_tensors(read_header(small_file)).pop("weight")
    os.unlink(small_file)
    assert torch.equal(weight, expected)


def test_only_misaligned_tensors_are_copied_and_the_log_says_so(
    write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    header = {
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "odd": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-(len(text)) % 8)
    numbers = torch.tensor([1.5, -2.0])
    path = write(text, data=b"\x07" + numbers.numpy().tobytes())
    tensors = map_tensors(read_header(path))
    assert torch.equal(tensors["odd"], numbers)
    assert tensors["byte"].untyped_storage().nbytes() == path.stat().st_size
    assert tensors["odd"].untyped_storage().nbytes() == 8
    assert "misaligned" in caplog.text


def test_a_header_of_fewer_tensors_maps_those_under_its_names(write: Callable[..., Path]) -> None:
    header = {
        "model.a": ENTRY,
        "other": {"dtype": "F32", "shape": [1], "data_offsets": [24, 28]},
    }
    whole = read_header(write(header, bytes(28)))
    assert list(map_tensors(replace(whole, tensors={"a": whole.tensors["model.a"]}))) == ["a"]


def test_a_file_that_grew_since_is_refused(small_file: Path) -> None:
    header = read_header(small_file)
    with small_file.open("ab") as file:
        file.write(b"more")
    with pytest.raises(FileTruncated, match="changed"):
        map_tensors(header)


@pytest.mark.parametrize("name", ["absent.safetensors", "no/such/folder.safetensors", "nul\0.safetensors"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileMissing, match="Check the name"):
        read_header(tmp_path / name)


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileUnreadable, match="is a folder"):
        read_header(tmp_path)


def test_every_truncation_is_told_with_what_is_missing(small_file: Path, tmp_path: Path) -> None:
    whole, cut = small_file.read_bytes(), tmp_path / "cut.safetensors"
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for size in {0, 1, 7, 8, 9, 20, header_end - 1, header_end, header_end + 1, len(whole) - 1}:
        cut.write_bytes(whole[:size])
        with pytest.raises(FileTruncated) as caught:
            read_header(cut)
        if size >= header_end:
            assert f"{len(whole) - size} are missing" in str(caught.value)


def test_unfinished_download_of_zeros_is_told(tmp_path: Path) -> None:
    path = tmp_path / "zeros.safetensors"
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(FileTruncated, match="never finished"):
        read_header(path)


BAD_HEADERS = {
    "not JSON": b"{hello",
    "a list": b"[1, 2]",
    "cut JSON": b'{"a": {"dtype": "F32", "shape": [2',
    "not UTF-8": b'{"\xff\xfe": 1}',
    "lone surrogate": b'{"\\ud800": ' + json.dumps(ENTRY).encode() + b"}",
    "nested": b'{"a":' + b"[" * 200_000,
    "named twice": b'{"a": %b, "a": %b}' % ((json.dumps(ENTRY).encode(),) * 2),
    "long name": {"a" * 5000: ENTRY},
    "huge number": b'{"a": {"dtype": "F32", "shape": [' + b"9" * 6000 + b'], "data_offsets": [0, 24]}}',
    "number": {"a": 5},
    "no dtype": {"a": {"shape": [6], "data_offsets": [0, 24]}},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 24]}},
    "no offsets": {"a": {"dtype": "F32", "shape": [6]}},
    "one offset": {"a": ENTRY | {"data_offsets": [24]}},
    "three offsets": {"a": ENTRY | {"data_offsets": [0, 12, 24]}},
    "text shape": {"a": ENTRY | {"shape": "2x3"}},
    "float shape": {"a": ENTRY | {"shape": [2.0, 3.0]}},
    "bool shape": {"a": ENTRY | {"shape": [True, 6]}},
    "negative shape": {"a": ENTRY | {"shape": [-2, -3]}},
    "wide shape": {"a": ENTRY | {"shape": [1] * 1000}},
    "negative offset": {"a": ENTRY | {"data_offsets": [-24, 0]}},
    "backward offsets": {"a": ENTRY | {"data_offsets": [24, 0]}},
    "too few bytes": {"a": ENTRY | {"data_offsets": [0, 20]}},
    "too many bytes": {"a": ENTRY | {"shape": [2, 2]}},
    "overlap": {"a": ENTRY, "b": ENTRY},
    "hole": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [20, 24]}},
    "nothing described": {},
}


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_damaged_header_is_unreadable(write: Callable[..., Path], header: bytes | dict[str, Any]) -> None:
    with pytest.raises(FileUnreadable) as caught:
        read_header(write(header))
    assert len(str(caught.value)) < 400


def test_offsets_beyond_the_file_are_a_truncation(write: Callable[..., Path]) -> None:
    with pytest.raises(FileTruncated, match="16 are missing"):
        read_header(write({"a": ENTRY | {"shape": [10], "data_offsets": [0, 40]}}))


def test_unknown_dtype_is_named(write: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedFile, match=r"made\.safetensors: 'a' is stored as 'Q4_K'"):
        read_header(write({"a": ENTRY | {"dtype": "Q4_K"}}))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001])
def test_absurd_header_length_is_not_believed(write: Callable[..., Path], length: int) -> None:
    with pytest.raises(FileUnreadable, match="not a safetensors file"):
        read_header(write({"a": ENTRY}, length=length))


def test_header_longer_than_the_file_is_a_truncation(write: Callable[..., Path]) -> None:
    with pytest.raises(FileTruncated, match="inside its header"):
        read_header(write({"a": ENTRY}, length=20_000_000))


def test_200_000_tensors_are_refused_before_they_are_parsed(write: Callable[..., Path]) -> None:
    entry = b'"t%07d": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}'
    header = b"{" + b", ".join(entry % i for i in range(200_000)) + b"}"
    with pytest.raises(FileUnreadable, match="describes 200000 tensors"):
        read_header(write(header, data=b""))


def test_a_header_of_nothing_but_brackets_is_refused_before_it_is_parsed(write: Callable[..., Path]) -> None:
    with pytest.raises(FileUnreadable, match="2000002 commas and brackets"):
        read_header(write(b'{"a": [' + b"{}," * 1_000_000 + b"0]}", data=b""))


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_flipped_bits_load_or_fail_in_words(small_file: Path, data: st.DataObject) -> None:
    """Whatever bits of the header flip: a checked header with tensors inside the file, or one of our errors."""
    whole = bytearray(small_file.read_bytes())
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, header_end - 1))] ^= 1 << data.draw(st.integers(0, 7))
    flipped = small_file.with_name("flipped.safetensors")
    flipped.write_bytes(whole)
    try:
        header = read_header(flipped)
        tensors = map_tensors(header)
    except BadInput:
        return
    assert all(info.end <= len(whole) for info in header.tensors.values())
    assert sum(tensor.nbytes for tensor in tensors.values()) < len(whole)
