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


def metadata(*entries: dict[str, Any]) -> dict[str, str]:
    layers = {f"model.layer.{i}": entry for i, entry in enumerate(entries)}
    return {"_quantization_metadata": json.dumps({"layers": layers})}


FP8_BYTES = FP8.view(torch.uint8)
ACCEPTED: dict[str, tuple[torch.Tensor, Any, dict[str, str], torch.dtype]] = {
    "fp8 by its dtype": (FP8, None, {}, E4M3),
    "fp8 by its description": (FP8, {"format": "float8_e4m3fn"}, {}, E4M3),
    "fp8 as bytes": (FP8_BYTES, {"format": "float8_e4m3fn"}, {}, E4M3),
    "e5m2 as bytes": (FP8_BYTES, {"format": "float8_e5m2"}, {}, torch.float8_e5m2),
    "int8 by its description": (INT8, {"format": "int8_tensorwise"}, {}, torch.int8),
    "int8 by the metadata": (INT8, None, metadata({"format": "int8"}, {"format": "float8_e4m3fn"}), torch.int8),
    "fp8 by the metadata": (FP8, None, metadata({"format": "float8_e4m3fn"}), E4M3),
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
    "nvfp4 in the metadata": (FP8, None, metadata({"format": "nvfp4"}), r"model\.layer\.0 says .* nvfp4"),
    "rotated": (INT8, {"format": "int8_tensorwise", "convrot": True}, {}, "rotated"),
    "no format": (FP8, {}, {}, "stored as None"),
    "a list": (FP8, [1], {}, "stored as None"),
    "int8 of unknown meaning": (INT8, None, {}, "neither a.comfy_quant nor the metadata says"),
    "int8 among fp8": (INT8, None, metadata({"format": "float8_e4m3fn"}), "neither"),
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
