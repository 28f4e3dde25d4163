"""Pickles are described from their members and from texts among their opcodes, and nothing in them ever runs."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from hyvideo_lib.checkpoint import inspect_file
from hyvideo_lib.checkpoint.header import MAX_TENSORS
from hyvideo_lib.checkpoint.pickles import MAX_DIRECTORY_BYTES, MAX_OPCODES, PickleFacts, read_pickle

NAMES = (
    "double_blocks.0.img_attn_qkv.weight",
    "txt_in.individual_token_refiner.blocks.0.norm1.weight",
    "img_in.proj.weight",
)


class RunsCode:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("wrapper", [None, "module", "state_dict", "ema"])
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_pickled_transformer_is_described(wrapper: str | None, is_zip: bool, name: str, tmp_path: Path) -> None:
    weights = {key: torch.zeros(2, 2) for key in NAMES}
    path = tmp_path / name
    torch.save({wrapper: weights} if wrapper else weights, path, _use_new_zipfile_serialization=is_zip)
    report = inspect_file(path)
    assert (report.kind, report.supported, report.layout) == ("unknown", False, "torch_zip" if is_zip else "pickle")
    assert "hyvideo convert" in report.reason
    assert set(NAMES) <= set(report.some_names)
    assert any("a transformer (diffusion model) (tencent)" in note for note in report.notes)
    assert report.num_tensors == (3 if is_zip else 0)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_nothing_runs(protocol: int, name: str, tmp_path: Path) -> None:
    trap, path = tmp_path / "trap", tmp_path / name
    bare = pickle.dumps({"a.weight": RunsCode(trap)}, protocol=protocol)
    path.write_bytes(bare)
    assert not inspect_file(path).supported
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bare)
    assert not inspect_file(path).supported
    assert not trap.exists()
    pickle.loads(bare)  # the trap works
    assert trap.exists()


def test_a_compressed_program_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(NAMES[0]) * 100_000)
    facts = read_pickle(path)
    assert facts is not None
    assert (facts.layout, facts.names) == ("torch_zip", ())


@pytest.mark.parametrize("kept", [4, 30, 200, 900])
def test_a_zip_cut_short_is_still_a_zip(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({key: torch.zeros(2, 2) for key in NAMES}, path)
    path.write_bytes(path.read_bytes()[:kept])
    report = inspect_file(path)
    assert (report.layout, report.supported) == ("zip", False)


def test_a_directory_of_any_size_is_not_taken_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({key: torch.zeros(2, 2) for key in NAMES}, path)
    data, spot = path.read_bytes(), path.read_bytes().index(b"PK\x01\x02")
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", *(0,) * 9, 1, *(0,) * 6) + b"x"
    directory = entry * (4 * MAX_DIRECTORY_BYTES // len(entry))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(directory), spot, 0)
    path.write_bytes(data[:spot] + directory + end)
    tracemalloc.start()
    facts = read_pickle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert facts == PickleFacts("zip", 0, ())
    assert peak < 2 * MAX_DIRECTORY_BYTES


def test_a_program_longer_than_a_directory_may_be_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(["x" * (MAX_DIRECTORY_BYTES + 9), NAMES[0]]))
    facts = read_pickle(path)
    assert facts is not None
    assert facts.names == NAMES[:1]


def test_no_more_opcodes_are_looked_at_than_a_model_has(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    for count, names in ((MAX_OPCODES - 2, (NAMES[0],)), (MAX_OPCODES, ())):
        path.write_bytes(b"\x80\x02" + b"N" * count + pickle.dumps(NAMES[0], protocol=2)[2:])
        facts = read_pickle(path)
        assert facts is not None
        assert facts.names == names


def test_no_more_names_are_kept_than_a_model_has(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps([f"a.{i}" for i in range(MAX_TENSORS + 9)], protocol=2))
    facts = read_pickle(path)
    assert facts is not None
    assert len(facts.names) == MAX_TENSORS


def test_odd_escapes_in_a_text_are_nobodys_concern(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"\x80\x02S'\\X'\nX\x03\0\0\0a.b.")  # Python would warn of the escape
    facts = read_pickle(path)
    assert facts is not None
    assert facts.names == ("a.b",)


def test_other_zips_and_programs_are_told(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "a zip archive" in inspect_file(path).reason
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps({}))
        archive.writestr("net/code/__torch__.py", "")
    assert "TorchScript" in inspect_file(path).reason


def test_a_safetensors_header_whose_length_looks_like_a_pickle_is_none(tmp_path: Path) -> None:
    text = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'.ljust(0x280)
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    assert path.read_bytes().startswith(b"\x80\x02")
    assert read_pickle(path) is None
    assert inspect_file(path).some_names == ("a",)
