from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_file import Entry, entry, gguf_bytes, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyvideo_lib.checkpoint.gguf import GGML_TYPES, PLAIN_BYTES, read_gguf_metadata
from hyvideo_lib.checkpoint.read import map_tensors, read_header
from hyvideo_lib.errors import BadInput, FileTruncated, FileUnreadable, UnsupportedFile
from hyvideo_lib.quant.ggml import GGML_FORMATS

VECTOR = entry(torch.arange(6, dtype=torch.float32))
METADATA: dict[str, Any] = {
    "general.architecture": "hyvid",
    "general.file_type": 7,
    "some.rate": 0.5,
    "some.flag": True,
    "some.sizes": [1, 2, 3],
    "some.long": list(range(200)),
    "tokenizer.ggml.tokens": ["<a>", "b", "ü"],
}


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    """One tensor of each kind, with metadata of each kind."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "weight": entry(torch.randint(0, 256, (3, 2 * 34), dtype=torch.uint8, generator=generator), "q8_0", 64),
        "bias": VECTOR,
        "half": entry(torch.randn(2, 5).half()),
        "brain": entry(torch.randn(4, 3).bfloat16()),
        "scalar": entry(torch.tensor([2.5])),
    }
    return write_gguf(tmp_path / "small.gguf", tensors, METADATA)


def test_header_tells_names_shapes_dtypes_and_metadata(small_file: Path) -> None:
    header = read_header(small_file)
    assert header.format == "gguf"
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == {
        "weight": ("q8_0", (3, 64)),
        "bias": ("float32", (6,)),
        "half": ("float16", (2, 5)),
        "brain": ("bfloat16", (4, 3)),
        "scalar": ("float32", (1,)),
    }
    assert header.metadata == {
        "general.architecture": "hyvid",
        "general.file_type": "7",
        "some.rate": "0.5",
        "some.flag": "true",
        "some.sizes": "[1, 2, 3]",
        "some.long": "(200 numbers)",
        "tokenizer.ggml.tokens": "(3 texts)",
    }


def test_long_arrays_come_when_asked_for(small_file: Path) -> None:
    assert read_gguf_metadata(small_file) == METADATA


def test_mapped_tensors_equal_what_the_gguf_package_reads(small_file: Path) -> None:
    mapped = map_tensors(read_header(small_file))
    expected = {tensor.name: tensor for tensor in gguf.GGUFReader(small_file).tensors}
    assert mapped.keys() == expected.keys()
    for name, tensor in mapped.items():
        assert tensor.contiguous().view(torch.uint8).numpy().tobytes() == expected[name].data.tobytes(), name
    assert mapped["weight"].dtype == torch.uint8
    assert mapped["weight"].shape == (3, 68)
    assert mapped["brain"].dtype == torch.bfloat16
    assert len({tensor.untyped_storage().data_ptr() for tensor in mapped.values()}) == 1


@pytest.mark.parametrize("use_temp_file", [False, True])
def test_files_of_the_gguf_packages_own_writer_are_read(tmp_path: Path, use_temp_file: bool) -> None:
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "hyvid", use_temp_file=use_temp_file)
    writer.add_array("comfy.gguf.orig_shape.conv.weight", [2, 4, 1, 2, 2])
    writer.add_float32("some.rate", 0.25)
    weight = np.random.default_rng(0).standard_normal((8, 64), dtype=np.float32)
    packed = gguf.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("linear.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("conv.weight", np.arange(32, dtype=np.float16).reshape(2, 16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(path)
    assert header.shape("linear.weight") == (8, 64)
    assert header.shape("conv.weight") == (2, 4, 1, 2, 2)
    tensors = map_tensors(header)
    assert tensors["linear.weight"].numpy().tobytes() == packed.tobytes()
    assert torch.equal(tensors["conv.weight"].flatten(), torch.arange(32).half())


def test_five_dimensions_may_stand_in_the_file_itself(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "made.gguf", {"conv.weight": entry(torch.randn(2, 4, 1, 2, 3))})
    assert read_header(path).shape("conv.weight") == (2, 4, 1, 2, 3)


@pytest.mark.parametrize("version", [2, 3])
def test_both_current_versions_are_read(tmp_path: Path, version: int) -> None:
    assert read_header(write_gguf(tmp_path / "made.gguf", {"a": VECTOR}, version=version)).shape("a") == (6,)


def test_alignment_of_the_file_is_used(tmp_path: Path) -> None:
    tensors = {"a": VECTOR, "b": VECTOR}
    path = write_gguf(tmp_path / "made.gguf", tensors, {"general.alignment": 128}, alignment=128)
    header = read_header(path)
    assert header.tensors["b"].start == header.tensors["a"].start + 128
    assert torch.equal(map_tensors(header)["b"], torch.arange(6.0))


def test_types_are_those_of_the_gguf_package() -> None:
    plain = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
    for number, name in GGML_TYPES.items():
        theirs = plain.get(name, name.removeprefix("int")).upper()
        theirs = f"I{theirs}" if theirs.isdigit() else theirs
        kind = gguf.GGMLQuantizationType(number)
        assert kind.name == theirs
        block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
        if name in GGML_FORMATS:
            assert (GGML_FORMATS[name].numbers, GGML_FORMATS[name].num_bytes) == (block, num_bytes)
        elif name in PLAIN_BYTES:
            assert (1, PLAIN_BYTES[name]) == (block, num_bytes)


UNSUPPORTED = {
    "first version": (gguf_bytes({"a": VECTOR}, version=1), "version is 1; versions 2 and 3"),
    "big-endian": (gguf_bytes({"a": VECTOR}, version=0x03000000), "byte order of other processors"),
    "block format unknown here": (gguf_bytes({"a": Entry((256,), 16, bytes(66))}), "'a' is stored as IQ2_XXS"),
    "type unknown to all": (gguf_bytes({"a": Entry((256,), 99, bytes(66))}), "GGML type 99.*Q8_0, Q6_K"),
    "part": (gguf_bytes({"a": VECTOR}, {"split.count": 3}), "one part of 3"),
    "vocabulary": (gguf_bytes({}, METADATA), "without tensors"),
    "broken rows": (gguf_bytes({"a": Entry((48, 2), 8, bytes(102))}), "rows of 48, which are not whole blocks of 32"),
}


@pytest.mark.parametrize(("content", "words"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_what_cannot_be_used_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "made.gguf"
    path.write_bytes(content)
    with pytest.raises(UnsupportedFile, match=words) as caught:
        read_header(path)
    assert str(caught.value).startswith("made.gguf cannot be used: ")


def array(element: int, count: int, content: bytes = b"") -> bytes:
    return struct.pack("<IIQ", 9, element, count) + content


DAMAGED = {
    "tensor named twice": (gguf_bytes([("a", VECTOR), ("a", VECTOR)]), "stands in it twice"),
    "entry named twice": (gguf_bytes({"a": VECTOR}, [("k", 1), ("k", 2)]), "in its metadata twice"),
    "overlap": (gguf_bytes([("a", VECTOR), ("b", Entry((6,), 0, VECTOR.data, offset=0))]), "overlaps"),
    "hole": (gguf_bytes([("a", VECTOR), ("b", Entry((6,), 0, VECTOR.data, offset=64))]), "leaves a hole"),
    "unaligned": (gguf_bytes([("a", VECTOR), ("b", Entry((6,), 0, VECTOR.data, offset=24))]), "overlaps"),
    "surplus": (gguf_bytes({"a": VECTOR}) + bytes(32), "32 bytes more"),
    "huge tensor count": (gguf_bytes({"a": VECTOR}, counts=(2**62, 0)), "claims 4611686018427387904 tensors"),
    "huge entry count": (gguf_bytes({"a": VECTOR}, counts=(1, 2**62)), "metadata entries"),
    "huge key": (b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 2**63), "a text of 9223372036854775808 bytes"),
    "huge value": (gguf_bytes({"a": VECTOR}, {"k": struct.pack("<IQ", 8, 2**40)}), "a text of 1099511627776 bytes"),
    "huge text array": (gguf_bytes({"a": VECTOR}, {"k": array(8, 2**40)}), "more than 1000000 texts"),
    "huge number array": (gguf_bytes({"a": VECTOR}, {"k": array(5, 2**60)}), "claims more than 100000000 bytes"),
    "array of arrays": (gguf_bytes({"a": VECTOR}, {"k": array(9, 1, array(4, 0))}), "an array of arrays"),
    "unknown value": (gguf_bytes({"a": VECTOR}, {"k": struct.pack("<I", 13)}), "unknown type 13"),
    "unknown element": (gguf_bytes({"a": VECTOR}, {"k": array(13, 1)}), "elements of the unknown type 13"),
    "key not UTF-8": (gguf_bytes({"a": VECTOR}, [(b"\xff", 1)]), "not UTF-8"),
    "name not UTF-8": (gguf_bytes([(b"\xff", VECTOR)]), "not UTF-8"),
    "long name": (gguf_bytes({"n" * 300: VECTOR}), "a tensor's name has 300 characters"),
    "many dimensions": (gguf_bytes({"a": Entry((1,) * 20, 0, bytes(4))}), "20 dimensions"),
    "absurd size": (gguf_bytes({"a": Entry((2**63,), 0, b"")}), "an absurd size"),
    "alignment 0": (gguf_bytes({"a": VECTOR}, {"general.alignment": 0}), "alignment is 0"),
    "alignment 24": (gguf_bytes({"a": VECTOR}, {"general.alignment": 24}), "alignment is 24"),
    "alignment huge": (gguf_bytes({"a": VECTOR}, {"general.alignment": 2**31}), "alignment is 2147483648"),
    "alignment text": (gguf_bytes({"a": VECTOR}, {"general.alignment": "32"}), "alignment is '32'"),
    "shape of other numbers": (gguf_bytes({"a": VECTOR}, {"comfy.gguf.orig_shape.a": [2, 4]}), "do not fill it"),
    "shape below zero": (gguf_bytes({"a": VECTOR}, {"comfy.gguf.orig_shape.a": [-2, -3]}), "the shape \\[-2, -3\\]"),
    "shape of text": (gguf_bytes({"a": VECTOR}, {"comfy.gguf.orig_shape.a": "2x3"}), "the shape 2x3"),
}


@pytest.mark.parametrize(("content", "words"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_header_is_unreadable(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "made.gguf"
    path.write_bytes(content)
    with pytest.raises(FileUnreadable, match=words) as caught:
        read_header(path)
    assert "made.gguf" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_every_truncation_is_told(small_file: Path, tmp_path: Path) -> None:
    whole, cut = small_file.read_bytes(), tmp_path / "cut.gguf"
    last = max(info.end for info in read_header(small_file).tensors.values())
    for size in range(4, last):
        cut.write_bytes(whole[:size])
        with pytest.raises(FileTruncated, match=r"cut\.gguf"):
            read_header(cut)


def test_padding_after_the_last_tensor_may_be_missing(small_file: Path) -> None:
    last = max(info.end for info in read_header(small_file).tensors.values())
    small_file.write_bytes(small_file.read_bytes()[:last])
    assert torch.equal(map_tensors(read_header(small_file))["scalar"], torch.tensor([2.5]))


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_flipped_bits_load_or_fail_in_words(small_file: Path, data: st.DataObject) -> None:
    whole = bytearray(small_file.read_bytes())
    header_end = min(info.start for info in read_header(small_file).tensors.values())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, header_end - 1))] ^= 1 << data.draw(st.integers(0, 7))
    flipped = small_file.with_name("flipped.gguf")
    flipped.write_bytes(whole)
    try:
        header = read_header(flipped)
        tensors = map_tensors(header)
    except BadInput:
        return
    assert all(info.end <= len(whole) for info in header.tensors.values())
    assert sum(tensor.nbytes for tensor in tensors.values()) < len(whole)


SWOLLEN = {
    "texts": lambda: array(8, 1_000_000, (struct.pack("<Q", 16) + bytes(16)) * 1_000_000),
    "numbers": lambda: array(0, 40_000_000, bytes(40_000_000)),
}


@pytest.mark.skipif(sys.platform == "win32", reason="asks Unix for the memory of the process")
@pytest.mark.parametrize("kind", SWOLLEN)
def test_long_arrays_are_stepped_over_without_memory(tmp_path: Path, kind: str) -> None:
    path = write_gguf(tmp_path / "swollen.gguf", {"a": VECTOR}, {"k": SWOLLEN[kind]()})
    code = (
        "import sys, resource; from hyvideo_lib.checkpoint.read import read_header\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert len(read_header(sys.argv[1]).tensors) == 1\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    root = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=root, capture_output=True, text=True, check=True
    )
    assert int(result.stdout) * 1024 < path.stat().st_size


def test_a_table_of_200_000_tensors_is_refused_before_it_is_read(tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 200_000, 0)
    table = b"".join(
        struct.pack("<Q", 8) + f"t{i:07}".encode() + struct.pack("<IQIQ", 1, 1, 0, 32 * i) for i in range(200_000)
    )
    path = tmp_path / "many.gguf"
    path.write_bytes(head + table)
    with pytest.raises(FileUnreadable, match="claims 200000 tensors"):
        read_header(path)
