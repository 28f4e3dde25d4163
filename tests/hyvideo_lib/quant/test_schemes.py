from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from hyvideo_lib.errors import UnsupportedFile
from hyvideo_lib.quant.schemes import StoredTensors, unpack
from hyvideo_lib.quant.stored import ScaledWeight

E4M3 = torch.float8_e4m3fn
FP8 = torch.ones(4, 16).to(E4M3)
INT8 = torch.ones(4, 16, dtype=torch.int8)
SCALE_NAMES = {"fp8_scale": "fp8_scale", "comfyui_fp8_scaled": "scale_weight", "comfyui_quant": "weight_scale"}


def json_tensor(value: Any) -> torch.Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def only(scheme: str, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> ScaledWeight:
    """The one stored weight of a file."""
    unpacked = unpack(scheme, StoredTensors(tensors, metadata=metadata or {}))
    assert unpacked.plain == {}
    [(layer, weight)] = unpacked.stored.items()
    assert layer == "a"
    assert isinstance(weight, ScaledWeight)
    return weight


@pytest.mark.parametrize("scheme", SCALE_NAMES)
@pytest.mark.parametrize(
    ("shape", "kept"), [((), (1,)), ((1,), (1,)), ((1, 1), (1,)), ((4,), (4, 1)), ((4, 1), (4, 1))]
)
def test_a_scale_is_one_number_or_one_for_each_row(scheme: str, shape: tuple[int, ...], kept: tuple[int, ...]) -> None:
    scale = torch.full(shape, 0.5)
    weight = only(scheme, {"a.weight": FP8, f"a.{SCALE_NAMES[scheme]}": scale})
    assert weight.scale.shape == kept
    assert torch.equal(weight.dense(torch.float32), torch.full((4, 16), 0.5))


@pytest.mark.parametrize("scheme", SCALE_NAMES)
@pytest.mark.parametrize("shape", [(2,), (16,), (1, 4), (4, 2), (2, 8), (0,)])
def test_scales_of_other_shapes_are_refused(scheme: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedFile, match="or one for each of 4 rows"):
        only(scheme, {"a.weight": FP8, f"a.{SCALE_NAMES[scheme]}": torch.ones(shape)})


@pytest.mark.parametrize("scheme", SCALE_NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(scheme: str, value: float) -> None:
    with pytest.raises(UnsupportedFile, match="not a finite number"):
        only(scheme, {"a.weight": FP8, f"a.{SCALE_NAMES[scheme]}": torch.tensor(value)})


@pytest.mark.parametrize("scheme", SCALE_NAMES)
def test_a_scale_without_its_weight_is_refused(scheme: str) -> None:
    with pytest.raises(UnsupportedFile, match="belongs to a weight that is not in the file"):
        unpack(scheme, StoredTensors({f"a.{SCALE_NAMES[scheme]}": torch.ones(1)}))


@pytest.mark.parametrize("scheme", ["fp8_scale", "comfyui_fp8_scaled"])
def test_a_scale_of_a_weight_that_is_not_fp8_is_refused(scheme: str) -> None:
    tensors = {"a.weight": torch.ones(4, 16).bfloat16(), f"a.{SCALE_NAMES[scheme]}": torch.ones(1)}
    with pytest.raises(UnsupportedFile, match="has a scale but is bfloat16"):
        unpack(scheme, StoredTensors(tensors))


@pytest.mark.parametrize("name", ["scaled_fp8", "model.diffusion_model.scaled_fp8"])
@pytest.mark.parametrize("elements", [0, 2])
def test_markers_are_no_weights(name: str, elements: int) -> None:
    tensors = {name: torch.zeros(elements), "a.weight": FP8, "a.scale_weight": torch.ones(1)}
    weight = only("comfyui_fp8_scaled", tensors)
    assert weight.full_precision == (elements == 2)


def test_weights_without_a_scale_stay_plain() -> None:
    tensors = {"scaled_fp8": torch.zeros(0), "a.weight": FP8, "a.bias": torch.ones(4)}
    unpacked = unpack("comfyui_fp8_scaled", StoredTensors(tensors))
    assert unpacked.stored == {}
    assert unpacked.plain.keys() == {"a.weight", "a.bias"}


def test_input_scales_are_kept() -> None:
    tensors = {"a.weight": FP8, "a.weight_scale": torch.tensor(2.0), "a.input_scale": torch.tensor(0.25)}
    assert torch.equal(only("comfyui_quant", tensors).entries()["input_scale"], torch.tensor([0.25]))


def metadata(entry: Any, layer: str = "model.a", **others: Any) -> dict[str, str]:
    """A file's metadata that describe one layer, and others under a name of another prefix."""
    table = {
        "format_version": "1.0",
        "layers": {**{f"b.{name}": other for name, other in others.items()}, layer: entry},
    }
    return {"_quantization_metadata": json.dumps(table)}


FP8_BYTES = FP8.view(torch.uint8)
CONVROT = {"convrot": True, "convrot_groupsize": 16}
ACCEPTED: dict[str, tuple[torch.Tensor, Any, dict[str, str], torch.dtype]] = {
    "fp8 by its dtype": (FP8, None, {}, E4M3),
    "fp8 by its description": (FP8, {"format": "float8_e4m3fn"}, {}, E4M3),
    "fp8 as bytes": (FP8_BYTES, {"format": "float8_e4m3fn"}, {}, E4M3),
    "e5m2 as bytes": (FP8_BYTES, {"format": "float8_e5m2"}, {}, torch.float8_e5m2),
    "int8 by its description": (INT8, {"format": "int8_tensorwise"}, {}, torch.int8),
    "int8 by the metadata": (INT8, None, metadata({"format": "int8"}, c={"format": "float8_e4m3fn"}), torch.int8),
    "int8 by its own line": (INT8, None, metadata({"format": "int8"}, "a", a={"format": "float8_e4m3fn"}), torch.int8),
    "fp8 by the metadata": (FP8, None, metadata({"format": "float8_e4m3fn"}), E4M3),
    "fp8 that the metadata leave out": (FP8, None, metadata({"format": "int8"}, "c"), E4M3),
    "both": (INT8, {"format": "int8_tensorwise"}, metadata({"params": {}, "format": "int8_tensorwise"}), torch.int8),
    "not rotated": (INT8, {"format": "int8_tensorwise", "convrot": False, "convrot_groupsize": 256}, {}, torch.int8),
    "harmless keys": (
        INT8,
        {"format": "int8_tensorwise", "per_row": True, "orig_dtype": "torch.bfloat16", "orig_shape": [4, 16]},
        {},
        torch.int8,
    ),
}


@pytest.mark.parametrize(("weight", "description", "table", "dtype"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_formats_are_told(weight: torch.Tensor, description: Any, table: dict[str, str], dtype: torch.dtype) -> None:
    tensors = {"a.weight": weight, "a.weight_scale": torch.ones(())}
    if description is not None:
        tensors["a.comfy_quant"] = json_tensor(description)
    assert only("comfyui_quant", tensors, table).weight.dtype == dtype


REFUSED: dict[str, tuple[torch.Tensor, Any, dict[str, str], str]] = {
    "nvfp4": (FP8_BYTES, {"format": "nvfp4"}, {}, r"a\.comfy_quant says .* nvfp4, which is not read here .* GGUF file"),
    "mxfp8": (FP8, {"format": "mxfp8"}, {}, "mxfp8"),
    "nvfp4 in the metadata": (FP8, None, metadata({"format": "nvfp4"}), r"of model\.a says .* nvfp4"),
    "nvfp4 under params": (FP8_BYTES, {"params": {"format": "nvfp4"}}, {}, "nvfp4"),
    "rotated in other groups": (INT8, {"format": "int8_tensorwise", "convrot": True}, {}, "groups of 256"),
    "rotated fp8": (FP8, {"format": "float8_e4m3fn", **CONVROT}, {}, "rotated"),
    "rotated int8 of another name": (INT8, {"format": "int8", **CONVROT}, {}, "rotated"),
    "groups of no power of four": (
        INT8,
        {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 8},
        {},
        "convrot_groupsize: 8, which is not understood",
    ),
    "groups in words": (
        INT8,
        {"format": "int8_tensorwise", "params": {"convrot": True, "convrot_groupsize": "16"}},
        {},
        "convrot_groupsize: 16, which is not understood",
    ),
    "perhaps rotated": (INT8, {"format": "int8_tensorwise", "convrot_groupsize": 16}, {}, "not say clearly"),
    "rotated and not": (
        INT8,
        {"format": "int8_tensorwise", "convrot": False, "params": {"convrot": True}},
        {},
        "two things of convrot",
    ),
    "rotated by one key": (
        INT8,
        {"format": "int8_tensorwise", "convrot": True, "weight_rotated": False},
        {},
        "clearly",
    ),
    "rotated in words": (INT8, {"format": "int8_tensorwise", "convrot": "true"}, {}, "convrot: true, which is not"),
    "rotated as a number": (INT8, {"format": "int8_tensorwise", "convrot": 1}, {}, "convrot: 1, which is not"),
    "an unknown key": (INT8, {"format": "int8_tensorwise", "smooth": 1}, {}, "the key 'smooth', which is not"),
    "an unknown key of params": (
        FP8,
        None,
        metadata({"format": "float8_e4m3fn", "params": {"group_size": 16}}),
        "the key 'group_size', which is not",
    ),
    "params in params": (FP8, {"format": "float8_e4m3fn", "params": {"params": {}}}, {}, "the key 'params'"),
    "params of another kind": (FP8, {"format": "float8_e4m3fn", "params": [1]}, {}, "params: "),
    "precision in words": (FP8, {"format": "float8_e4m3fn", "full_precision_matrix_mult": "no"}, {}, "not understood"),
    "a filled up weight": (INT8, {"format": "int8_tensorwise", "orig_shape": [4, 15]}, {}, r"\[4, 16\], .* \[4, 15\]"),
    "beside it and in the metadata": (
        INT8,
        {"format": "int8_tensorwise"},
        metadata({"format": "int8_tensorwise", **CONVROT}),
        "say two things of a",
    ),
    "two lines of the metadata": (
        INT8,
        None,
        metadata({"format": "int8"}, a={"format": "int8_tensorwise"}),
        "two things",
    ),
    "a key of the table": (
        FP8,
        None,
        {"_quantization_metadata": '{"layers": {}, "convrot": true}'},
        "the key 'convrot', which is not",
    ),
    "a later version": (
        FP8,
        None,
        {"_quantization_metadata": '{"layers": {}, "format_version": "2.0"}'},
        "version 2.0",
    ),
    "a long table": (
        FP8,
        None,
        {"_quantization_metadata": '{"layers": {}}' + " " * 10_000_000},
        "no table of layers",
    ),
    "no format": (FP8, {}, {}, "stored as None"),
    "a list": (FP8, [1], {}, "stored as None"),
    "int8 of unknown meaning": (INT8, None, {}, "neither a.comfy_quant nor the metadata says"),
    "int8 in a table of others": (INT8, None, metadata({"format": "int8"}, "c"), "neither"),
    "another dtype in the metadata": (
        INT8,
        None,
        metadata({"format": "float8_e4m3fn"}),
        "description says float8_e4m3fn",
    ),
    "bytes of unknown meaning": (FP8_BYTES, None, {}, "neither"),
    "another dtype": (INT8, {"format": "float8_e4m3fn"}, {}, "is int8, but its description says float8_e4m3fn"),
    "metadata not JSON": (FP8, None, {"_quantization_metadata": "{"}, "no table of layers"),
    "metadata a list": (FP8, None, {"_quantization_metadata": "[]"}, "no table of layers"),
    "metadata nested": (FP8, None, {"_quantization_metadata": "[" * 200_000}, "no table of layers"),
}


@pytest.mark.parametrize(("weight", "description", "table", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_formats_that_are_not_read_are_named(
    weight: torch.Tensor, description: Any, table: dict[str, str], words: str
) -> None:
    tensors = {"a.weight": weight, "a.weight_scale": torch.ones(())}
    if description is not None:
        tensors["a.comfy_quant"] = json_tensor(description)
    with pytest.raises(UnsupportedFile, match=words):
        only("comfyui_quant", tensors, table)


ROTATED = {
    "beside it": ({"format": "int8_tensorwise", **CONVROT}, {}),
    "beside it under params": ({"format": "int8_tensorwise", "params": CONVROT}, {}),
    "beside it, some under params": (
        {"format": "int8_tensorwise", "convrot": True, "params": {"convrot_groupsize": 16}},
        {},
    ),
    "in the metadata": (None, metadata({"format": "int8_tensorwise", **CONVROT})),
    "in the metadata under params": (None, metadata({"format": "int8_tensorwise", "params": CONVROT}, "a")),
    "in both": (
        {"format": "int8_tensorwise", **CONVROT},
        metadata({"format": "int8_tensorwise", "params": {**CONVROT, "weight_rotated": True}}),
    ),
}


@pytest.mark.parametrize(("description", "table"), ROTATED.values(), ids=ROTATED.keys())
@pytest.mark.parametrize("scale_shape", [(), (4, 1)])
def test_rotated_weights_are_turned_back(description: Any, table: dict[str, str], scale_shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    numbers, scale = torch.randint(-127, 128, (4, 32), dtype=torch.int8), torch.rand(scale_shape)
    four = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]).double() / 2
    hadamard = torch.block_diag(torch.kron(four, four), torch.kron(four, four))
    tensors = {"a.weight": numbers, "a.weight_scale": scale}
    if description is not None:
        tensors["a.comfy_quant"] = json_tensor(description)
    weight = only("comfyui_quant", tensors, table)
    expected = numbers.double() * scale.double() @ hadamard
    torch.testing.assert_close(weight.dense(torch.float32).double(), expected, rtol=0, atol=1e-5)
    assert (expected - numbers * scale).norm() > 0.5 * expected.norm()


def test_the_usual_size_of_groups_is_256() -> None:
    tensors = {"a.weight": torch.ones(4, 512, dtype=torch.int8), "a.weight_scale": torch.ones(4, 1)}
    tensors["a.comfy_quant"] = json_tensor({"format": "int8_tensorwise", "convrot": True})
    assert only("comfyui_quant", tensors).rotation == 256


@pytest.mark.parametrize("weight", [INT8, FP8_BYTES, torch.ones(4, 16)], ids=["int8", "bytes", "float32"])
@pytest.mark.parametrize("name", ["int8_tensorwise", "float8_e4m3fn"])
def test_a_description_of_a_weight_without_a_scale_is_refused(weight: torch.Tensor, name: str) -> None:
    with pytest.raises(UnsupportedFile, match=r"its description says|weight_scale is not in the file"):
        unpack("comfyui_quant", StoredTensors({"a.weight": weight}, metadata=metadata({"format": name})))


def test_fp8_without_a_scale_may_be_described() -> None:
    contents = StoredTensors({"a.weight": FP8}, metadata=metadata({"format": "float8_e4m3fn"}))
    assert unpack("comfyui_quant", contents).plain.keys() == {"a.weight"}


@pytest.mark.parametrize(
    "description",
    [torch.tensor([0xFF], dtype=torch.uint8), torch.ones(3), torch.zeros(100_000, dtype=torch.uint8)],
    ids=["not UTF-8", "not bytes", "too long"],
)
def test_a_description_that_is_no_short_json_is_refused(description: torch.Tensor) -> None:
    with pytest.raises(UnsupportedFile, match="JSON"):
        only("comfyui_quant", {"a.weight": FP8, "a.weight_scale": torch.ones(()), "a.comfy_quant": description})


def test_blocks_of_something_else_than_a_weight_are_refused() -> None:
    raw = torch.zeros(34, dtype=torch.uint8)
    with pytest.raises(UnsupportedFile, match=r"a\.bias is stored as Q8_0"):
        unpack("gguf", StoredTensors({"a.bias": raw}, {"a.bias": "q8_0"}))
