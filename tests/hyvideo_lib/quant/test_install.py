from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf_file import entry, write_gguf
from safetensors.torch import save_file
from torch import nn

from hyvideo_lib.checkpoint.read import map_tensors, read_header
from hyvideo_lib.errors import InvalidSetting, UnsupportedFile
from hyvideo_lib.quant import SCHEMES, cast_fp8, dequantize_ggml, install, quantize_fp8, restore
from hyvideo_lib.quant.ggml import GGML_FORMATS
from hyvideo_lib.quant.linear import BlockLinear, ScaledLinear
from hyvideo_lib.quant.stored import BlockWeight
from hyvideo_lib.transformer import HunyuanVideoTransformer, TransformerConfig
from hyvideo_lib.transformer.ops import Linear

CONFIG = TransformerConfig(
    in_channels=4, out_channels=4, hidden_size=64, num_heads=2, num_double_blocks=1, num_single_blocks=1,
    rope_axes=(8, 12, 12), text_dim=32, pooled_dim=32, num_refiner_blocks=1,
)  # fmt: skip
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2

Tensors = dict[str, torch.Tensor]
Stored = tuple[Tensors, Tensors, dict[str, Any]]
"""Tensors as a file has them, the dense weights they stand for (float32), and further arguments of `install`."""


def meta_model() -> HunyuanVideoTransformer:
    with torch.device("meta"):
        return HunyuanVideoTransformer(CONFIG)


def weights() -> Tensors:
    torch.manual_seed(0)
    return {name: tensor.detach() for name, tensor in HunyuanVideoTransformer(CONFIG).state_dict().items()}


def is_block_matrix(name: str, tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and "blocks." in name


def scaled(scale_name: str, dtype: torch.dtype = E4M3, shape: tuple[int, ...] = ()) -> tuple[Tensors, Tensors]:
    tensors: Tensors = {}
    dense: Tensors = {}
    for name, tensor in weights().items():
        if is_block_matrix(name, tensor):
            tensors[name], scale = quantize_fp8(tensor, dtype)
            tensors[name.replace(".weight", f".{scale_name}")] = scale.reshape(shape)
            dense[name] = tensors[name].float() * scale
        else:
            tensors[name] = dense[name] = tensor
    return tensors, dense


def of_none() -> Stored:
    return weights(), weights(), {}


def of_fp8_cast() -> Stored:
    tensors = {name: cast_fp8(tensor) if tensor.ndim == 2 else tensor for name, tensor in weights().items()}
    return tensors, {name: tensor.float() for name, tensor in tensors.items()}, {}


def of_fp8_scale() -> Stored:
    tensors, dense = scaled("fp8_scale", shape=(1,))
    return {"fp8_scale": torch.zeros(0), **tensors}, dense, {}


def of_comfyui_scaled() -> Stored:
    tensors, dense = scaled("scale_weight", E5M2)
    inputs = {name.replace("scale_weight", "scale_input"): torch.tensor(0.5) for name in tensors if "scale_w" in name}
    return {"scaled_fp8": torch.zeros(0, dtype=E5M2), **tensors, **inputs}, dense, {}


def of_comfyui_quant() -> Stored:
    tensors, dense = scaled("weight_scale")
    text = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    layers = [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]
    tensors[f"{layers[0]}.weight"] = tensors[f"{layers[0]}.weight"].view(torch.uint8)  # as older files have it
    return {**tensors, **{f"{layer}.comfy_quant": text.clone() for layer in layers}}, dense, {}


def of_int8() -> Stored:
    tensors: Tensors = {}
    dense: Tensors = {}
    layers: dict[str, Any] = {}
    for name, tensor in weights().items():
        tensors[name] = dense[name] = tensor
        if is_block_matrix(name, tensor):
            scale = tensor.abs().amax(dim=1, keepdim=True) / 127
            tensors[name] = (tensor / scale).round().to(torch.int8)
            tensors[name.replace(".weight", ".weight_scale")] = scale
            dense[name] = tensors[name].float() * scale
            layers[f"model.diffusion_model.{name.removesuffix('.weight')}"] = {"format": "int8_tensorwise"}
    return tensors, dense, {"metadata": {"_quantization_metadata": json.dumps({"layers": layers})}}


def of_gguf(ggml_type: str = "Q8_0") -> Stored:
    tensors: Tensors = {}
    dense: Tensors = {}
    dtypes: dict[str, str] = {}
    for name, tensor in weights().items():
        if tensor.ndim == 2:
            raw = gguf.quantize(tensor.numpy(), gguf.GGMLQuantizationType[ggml_type])
            tensors[name], dtypes[name] = torch.from_numpy(raw), ggml_type.lower()
            dense[name] = torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType[ggml_type]))
        else:
            half = torch.float16 if tensor.ndim == 5 else torch.bfloat16
            tensors[name], dtypes[name] = tensor.to(half), str(half).removeprefix("torch.")
            dense[name] = tensors[name].float()
    return tensors, dense, {"dtypes": dtypes}


FILES = {
    "none": ("none", of_none),
    "fp8_cast": ("fp8_cast", of_fp8_cast),
    "fp8_scale": ("fp8_scale", of_fp8_scale),
    "comfyui_fp8_scaled": ("comfyui_fp8_scaled", of_comfyui_scaled),
    "comfyui_quant": ("comfyui_quant", of_comfyui_quant),
    "int8": ("comfyui_quant", of_int8),
    "gguf": ("gguf", of_gguf),
    "gguf q4_0": ("gguf", lambda: of_gguf("Q4_0")),
}


def run(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 1, 4, 4, generator=generator)
    text, pooled = torch.randn(1, 3, 32, generator=generator), torch.randn(1, 32, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([500.0]), text, torch.ones(1, 3, dtype=torch.int64), pooled, guidance=8.0)


def installed(tensors: Tensors, scheme: str, **options: Any) -> nn.Module:
    model = meta_model()
    model.load_state_dict(install(model, tensors, scheme, **options), strict=True, assign=True)
    return model.requires_grad_(False)


def test_every_scheme_is_tried() -> None:
    assert {scheme for scheme, _ in FILES.values()} == set(SCHEMES)


@pytest.mark.parametrize("file", FILES)
def test_a_model_computes_what_its_dense_weights_compute(file: str) -> None:
    scheme, make = FILES[file]
    tensors, dense, options = make()
    plain = meta_model()
    plain.load_state_dict(dense, strict=True, assign=True)
    assert torch.equal(run(installed(tensors, scheme, **options)), run(plain))


@pytest.mark.parametrize("file", FILES)
def test_storage_is_that_of_the_file(file: str) -> None:
    scheme, make = FILES[file]
    tensors, _, options = make()
    model = installed(tensors, scheme, **options)
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == tensors[name].data_ptr(), name


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_restored_as_numbers_it_is_the_dense_weights(file: str, dtype: torch.dtype) -> None:
    scheme, make = FILES[file]
    tensors, dense, options = make()
    found = dict(restore(tensors, scheme, dtype, **options))
    assert found.keys() == dense.keys()
    for name, tensor in found.items():
        if tensor.ndim < 2:
            assert tensor is tensors[name]
            continue
        assert tensor.dtype == dtype
        if dtype == torch.float32:
            assert torch.equal(tensor, dense[name]), name
        else:
            torch.testing.assert_close(tensor.float(), dense[name], rtol=2**-7, atol=1e-30)


@pytest.mark.parametrize("file", FILES)
def test_restored_as_plain_fp8_it_loads_again(file: str) -> None:
    scheme, make = FILES[file]
    tensors, dense, options = make()
    found = dict(restore(tensors, scheme, E4M3, **options))
    name, kept = "double_blocks.0.img_mlp.fc1.weight", "txt_in.individual_token_refiner.blocks.0.mlp.fc1.weight"
    assert found[name].dtype == E4M3
    is_kept_scaled = tensors[name].dtype == E4M3 and f"{name[:-7]}.fp8_scale" in found
    scale = found[f"{name[:-7]}.fp8_scale"] if is_kept_scaled else 1.0
    expected = dense[name] if tensors[name].dtype == E4M3 else cast_fp8(dense[name]).float()
    assert torch.equal(found[name].float() * scale, expected)
    assert found[kept].dtype in (torch.bfloat16, tensors[kept].dtype)
    run(installed(found, "fp8_scale"))


@pytest.mark.parametrize("file", FILES)
def test_a_file_installs_as_it_lies(file: str, tmp_path: Path) -> None:
    scheme, make = FILES[file]
    tensors, dense, options = make()
    path = tmp_path / "model"
    if scheme == "gguf":
        widths = {name: dense[name].shape[-1] for name in tensors}
        blocks = {name: dtype for name, dtype in options["dtypes"].items() if dtype in GGML_FORMATS}
        write_gguf(path, {name: entry(t, blocks.get(name, ""), widths[name]) for name, t in tensors.items()})
    else:
        save_file(tensors, path, options.get("metadata"))
    header = read_header(path)
    mapped = map_tensors(header)
    dtypes = {name: info.dtype for name, info in header.tensors.items()}
    model = installed(mapped, scheme, dtypes=dtypes, metadata=header.metadata)
    for name, layer in model.named_modules():
        if isinstance(layer, Linear):
            assert torch.equal(layer.dense_weight(torch.float32), dense[f"{name}.weight"]), name
            assert torch.equal(layer.bias.float(), dense[f"{name}.bias"]), name
    storages = [tensor.untyped_storage() for tensor in mapped.values() if tensor.nbytes]
    ((begin, size),) = {(storage.data_ptr(), storage.nbytes()) for storage in storages}
    assert size == path.stat().st_size
    assert all(begin <= parameter.data_ptr() < begin + size for parameter in model.parameters())


def test_restoring_makes_one_tensor_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, _, options = of_gguf()
    made = []
    monkeypatch.setattr(BlockWeight, "dense", lambda self, dtype: made.append(self) or torch.zeros(self.shape))
    name = next(name for name, _ in restore(tensors, "gguf", torch.float32, **options) if tensors[name].ndim == 2)
    assert name.endswith(".weight")
    assert len(made) == 1


def test_layers_are_those_of_the_storage() -> None:
    tensors, _, options = of_gguf()
    model = installed(tensors, "gguf", **options)
    assert type(model.double_blocks[0].img_mlp.fc1) is BlockLinear
    assert type(model.img_in.proj) is not BlockLinear
    tensors, _, options = of_comfyui_scaled()
    model = installed(tensors, "comfyui_fp8_scaled", **options)
    assert type(model.double_blocks[0].img_mlp.fc1) is ScaledLinear
    assert type(model.final_layer.linear) is Linear


def test_the_scale_of_activations_is_kept_where_a_file_has_it() -> None:
    for file, expected in (("fp8_scale", None), ("comfyui_fp8_scaled", 0.5)):
        scheme, make = FILES[file]
        tensors, _, options = make()
        assert installed(tensors, scheme, **options).double_blocks[0].img_mlp.fc1.input_scale == expected


def test_a_marker_of_two_elements_forbids_products_in_8_bits() -> None:
    tensors, _, _ = of_comfyui_scaled()
    model = installed({**tensors, "scaled_fp8": torch.zeros(2, dtype=E5M2)}, "comfyui_fp8_scaled")
    assert model.double_blocks[0].img_mlp.fc1.full_precision
    assert not installed(tensors, "comfyui_fp8_scaled").double_blocks[0].img_mlp.fc1.full_precision


def test_a_layer_may_forbid_products_in_8_bits() -> None:
    tensors, _, _ = of_comfyui_quant()
    layer = "double_blocks.0.img_mlp.fc1"
    text = b'{"format": "float8_e4m3fn", "full_precision_matrix_mult": true}'
    tensors[f"{layer}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
    model = installed(tensors, "comfyui_quant")
    assert model.double_blocks[0].img_mlp.fc1.full_precision
    assert not model.double_blocks[0].img_mlp.fc2.full_precision


@pytest.mark.parametrize("ggml_type", GGML_FORMATS)
def test_other_layers_than_linears_take_blocks_dense(ggml_type: str) -> None:
    raw = torch.zeros(5, GGML_FORMATS[ggml_type].num_bytes, dtype=torch.uint8)
    with torch.device("meta"):
        model = nn.Sequential(nn.Embedding(5, GGML_FORMATS[ggml_type].numbers))
    state = install(model, {"0.weight": raw}, "gguf", dtypes={"0.weight": ggml_type}, dense_dtype=torch.bfloat16)
    assert torch.equal(state["0.weight"], dequantize_ggml(raw, ggml_type, torch.bfloat16))


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(InvalidSetting, match="'nf4', but must be one of none, fp8_cast, fp8_scale"):
        install(meta_model(), weights(), "nf4")


NAME = "double_blocks.0.img_mlp.fc1"


def test_missing_tensors_are_listed() -> None:
    tensors, _, options = of_gguf()
    del tensors[f"{NAME}.bias"]
    with pytest.raises(UnsupportedFile, match=rf"Missing tensors \(1\): {NAME}\.bias"):
        install(meta_model(), tensors, "gguf", **options)


def test_numbers_that_mean_nothing_without_a_scale_are_refused() -> None:
    tensors = weights()
    tensors[f"{NAME}.weight"] = torch.ones(256, 64, dtype=torch.int8)
    with pytest.raises(UnsupportedFile, match="int8 without a scale"):
        install(meta_model(), tensors, "comfyui_quant")


def test_a_stored_weight_of_another_shape_is_refused() -> None:
    tensors, _, options = of_gguf()
    tensors[f"{NAME}.weight"] = tensors[f"{NAME}.weight"][:-1]
    with pytest.raises(UnsupportedFile, match=rf"{NAME}\.weight is \[255, 64\], expected \[256, 64\]"):
        install(meta_model(), tensors, "gguf", **options)


def test_a_layer_that_is_kept_in_parts_is_refused() -> None:
    class Joined(Linear):
        pass

    tensors, _, options = of_fp8_scale()
    model = meta_model()
    with torch.device("meta"):
        model.double_blocks[0].img_mlp.fc1 = Joined(64, 256)
    with pytest.raises(UnsupportedFile, match="kept in parts and quantised"):
        install(model, tensors, "fp8_scale", **options)
