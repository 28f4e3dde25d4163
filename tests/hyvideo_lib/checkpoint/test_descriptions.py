"""What a file says of each layer's storage decides, in the recogniser, the loaders and conversions alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyvideo_lib.checkpoint import inspect_file, load_text_encoder, load_transformer
from hyvideo_lib.checkpoint.convert import convert_file
from hyvideo_lib.checkpoint.rewrite import LAYOUTS, Request
from hyvideo_lib.errors import UnsupportedFile
from hyvideo_lib.quant import PRODUCTS
from hyvideo_lib.transformer.ops import Linear
from tests.hyvideo_lib.checkpoint import text_files
from tests.hyvideo_lib.checkpoint.layouts import TRANSFORMER_LAYOUTS

Weights = dict[str, Tensor]
Entry = dict[str, Any]
GOLDENS = Path(__file__).parents[2] / "goldens"
TABLE = "_quantization_metadata"
FOUR = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]).double() / 2
SIXTEEN = torch.kron(FOUR, FOUR)

FLAT: Entry = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}
NESTED: Entry = {"format": "int8_tensorwise", "params": {"convrot": True, "convrot_groupsize": 16}}
PLAIN: Entry = {"format": "int8_tensorwise", "per_row": True}


def hadamard(width: int) -> Tensor:
    return torch.block_diag(*[SIXTEEN] * (width // 16))


def quantised(weight: Tensor, is_rotated: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(int8 numbers, a scale for each row, the dense weight in float32 that they stand for)."""
    turn = hadamard(weight.shape[1]) if is_rotated else torch.eye(weight.shape[1]).double()
    turned = weight.double() @ turn.T
    scale = (turned.abs().amax(1, keepdim=True) / 127).float()
    numbers = (turned / scale).round().to(torch.int8)
    return numbers, scale, (numbers * scale.double() @ turn).float()


def text(entry: Any) -> Tensor:
    return torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8)


def model(
    is_quantised: Callable[[str, Tensor], bool], weights: Weights, rotated: Entry
) -> tuple[Weights, Weights, Any]:
    """(stored tensors, dense weights, entries by layer): every second of the layers rotated, the others plain int8."""
    stored, dense, entries = dict(weights), {name: tensor.float() for name, tensor in weights.items()}, {}
    chosen = [name for name, tensor in weights.items() if is_quantised(name, tensor)]
    for i, name in enumerate(chosen):
        stored[name], scale, dense[name] = quantised(weights[name], i % 2 == 0)
        stored[name.replace(".weight", ".weight_scale")] = scale
        entries[name.removesuffix(".weight")] = rotated if i % 2 == 0 else PLAIN
    return stored, dense, entries


def renamed(
    layout: Callable[[Weights], Weights], weights: Weights, stored: Weights, entries: Any
) -> tuple[Weights, Any]:
    """The stored tensors and the entries under another layout's names."""
    sizes = {name: tensor for name, tensor in weights.items() if name == "img_in.proj.bias"}  # some layouts go by it
    tensors, table = layout({name: stored[name] for name in weights}), {}
    for layer, entry in entries.items():
        for name, scale in layout({**sizes, f"{layer}.weight": stored[f"{layer}.weight_scale"]}).items():
            if name not in layout(sizes):
                tensors[name.replace(".weight", ".weight_scale")] = scale
                table[name.removesuffix(".weight")] = entry
    return tensors, table


def in_a_block(name: str, tensor: Tensor) -> bool:
    return name.startswith(("double_blocks", "single_blocks")) and tensor.ndim == 2 and name.endswith("weight")


def transformer_weights() -> Weights:
    return load_file(GOLDENS / "dit_headdim128_t2v.weights.safetensors")


def write(path: Path, tensors: Weights, table: Any, where: str, prefix: str = "", **metadata: str) -> Path:
    """where: "beside" the weights, "metadata", or "bare metadata" whose names lack the prefix."""
    tensors = {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}
    if where == "beside":
        tensors |= {f"{prefix}{layer}.comfy_quant": text(entry) for layer, entry in table.items()}
    else:
        before = "" if where == "bare metadata" else prefix
        layers = {before + layer: entry for layer, entry in table.items()}
        metadata[TABLE] = json.dumps({"format_version": "1.0", "layers": layers})
    save_file(tensors, path, metadata or None)
    return path


WHERE = [
    ("beside", ""),
    ("beside", "model.diffusion_model."),
    ("metadata", ""),
    ("metadata", "model.diffusion_model."),
    ("bare metadata", "diffusion_model."),
]


@pytest.mark.parametrize("layout", TRANSFORMER_LAYOUTS)
@pytest.mark.parametrize("rotated", [FLAT, NESTED], ids=["flat", "nested"])
@pytest.mark.parametrize(("where", "prefix"), WHERE)
def test_each_layer_of_a_transformer_is_what_its_own_entry_says(
    tmp_path: Path, layout: str, rotated: Entry, where: str, prefix: str
) -> None:
    weights = transformer_weights()
    stored, dense, entries = model(in_a_block, weights, rotated)
    tensors, table = renamed(TRANSFORMER_LAYOUTS[layout], weights, stored, entries)
    path = write(tmp_path / "model.safetensors", tensors, table, where, prefix)
    report = inspect_file(path)
    assert (report.supported, report.quantization, report.reason) == (True, "comfyui_quant", "")
    loaded = load_transformer(path, compute_dtype=torch.float32)
    for name, layer in loaded.named_modules():
        if isinstance(layer, Linear) and f"{name}.weight" in dense:
            expected = dense[f"{name}.weight"]
            torch.testing.assert_close(layer.dense_weight(torch.float32), expected, rtol=0, atol=1e-6)
            part = layer.dense_weight(torch.float32, slice(1, None))
            torch.testing.assert_close(part, expected[1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("where", "prefix"), WHERE)
@pytest.mark.parametrize("target", LAYOUTS)
def test_conversions_write_the_weights_that_the_entries_tell(
    tmp_path: Path, where: str, prefix: str, target: str
) -> None:
    weights = transformer_weights()
    stored, dense, entries = model(in_a_block, weights, NESTED)
    tensors, table = renamed(TRANSFORMER_LAYOUTS["comfyui"], weights, stored, entries)
    path = write(tmp_path / "old.safetensors", tensors, table, where, prefix)
    convert_file(path, tmp_path / "new.safetensors", Request(layout=target, storage="float32"))
    found, expected = load_file(tmp_path / "new.safetensors"), TRANSFORMER_LAYOUTS[target](dense)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].float(), tensor, rtol=0, atol=1e-6, msg=name)


def test_descriptions_beside_the_weights_are_kept_and_those_in_the_metadata_cannot_be(tmp_path: Path) -> None:
    stored, _, entries = model(in_a_block, transformer_weights(), NESTED)
    path = write(tmp_path / "beside.safetensors", stored, entries, "beside")
    convert_file(path, tmp_path / "new.safetensors", Request(layout="comfyui"))
    before, after = (
        load_transformer(file, compute_dtype=torch.float32) for file in (path, tmp_path / "new.safetensors")
    )
    for (name, layer), other in zip(before.named_modules(), after.modules(), strict=True):
        if isinstance(layer, Linear):
            assert torch.equal(layer.dense_weight(torch.float32), other.dense_weight(torch.float32)), name
    path = write(tmp_path / "metadata.safetensors", stored, entries, "metadata")
    with pytest.raises(UnsupportedFile, match="only its metadata tell"):
        convert_file(path, tmp_path / "other.safetensors", Request(layout="comfyui"))


def test_what_keeps_its_names_keeps_what_is_said_of_them(tmp_path: Path) -> None:
    stored, _, entries = model(in_a_block, transformer_weights(), NESTED)
    path = write(tmp_path / "old.safetensors", stored, entries, "metadata", "model.diffusion_model.")
    convert_file(path, tmp_path / "new.safetensors", Request(component="any"))
    assert inspect_file(tmp_path / "new.safetensors").metadata == inspect_file(path).metadata
    load_transformer(tmp_path / "new.safetensors")


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_rotated_weights_can_rest_in_another_storage(tmp_path: Path, storage: torch.dtype) -> None:
    stored, dense, entries = model(in_a_block, transformer_weights(), NESTED)
    path = write(tmp_path / "model.safetensors", stored, entries, "metadata")
    loaded = load_transformer(path, storage_dtype=storage, compute_dtype=torch.float32)
    name = next(
        name for name, entry in entries.items() if entry is NESTED and name.endswith(("linear1", "fc1", "attn_qkv"))
    )
    found, expected = loaded.get_submodule(name).dense_weight(torch.float32), dense[f"{name}.weight"]
    error = (found - expected).norm() / expected.norm()
    assert error <= {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float8_e4m3fn: 0.05}[storage]


def test_products_in_int8_rotate_the_tokens(tmp_path: Path) -> None:
    stored, dense, entries = model(in_a_block, transformer_weights(), FLAT)
    path = write(tmp_path / "model.safetensors", stored, entries, "beside")
    loaded = load_transformer(path, compute_dtype=torch.float32, product="int8")
    name = next(n for n, entry in entries.items() if entry is FLAT and n.endswith(("linear1", "fc1", "attn_qkv")))
    layer = loaded.get_submodule(name)
    assert layer.product is PRODUCTS["int8"]
    x = torch.randn(40, layer.in_features, generator=torch.Generator().manual_seed(0))
    expected = x @ dense[f"{name}.weight"].T
    assert (layer(x) - layer.bias - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize("layout", text_files.LLAMA_LAYOUTS)
@pytest.mark.parametrize("where", ["beside", "metadata"])
def test_each_layer_of_a_text_encoder_is_what_its_own_entry_says(tmp_path: Path, layout: str, where: str) -> None:
    weights = load_file(GOLDENS / "te_llama_tiny.weights.safetensors")

    def is_matrix(name: str, tensor: Tensor) -> bool:
        return tensor.ndim == 2 and tensor.shape[1] % 16 == 0

    stored, dense, entries = model(is_matrix, weights, NESTED)
    assert any("embed" in name for name in entries)
    tensors, table = renamed(text_files.LLAMA_LAYOUTS[layout], weights, stored, entries)
    sizes = {"hyvideo.config": json.dumps({"head_dim": 8})}
    path = write(tmp_path / "model.safetensors", tensors, table, where, **sizes)
    plain = write(tmp_path / "plain.safetensors", dense, {}, "beside", **sizes)

    def states(file: Path) -> Tensor:
        encoder = load_text_encoder(file, text_files.LLAMA_TOKENIZER, compute_dtype=torch.float32)
        with torch.no_grad():
            return encoder.encode(encoder.tokenize(["a cat", "dogs"]))[0]

    assert inspect_file(path).reason == ""
    torch.testing.assert_close(states(path), states(plain), rtol=0, atol=1e-4)


REFUSED: dict[str, Any] = {
    "an unknown key": {**PLAIN, "smooth": True},
    "an unknown key under params": {**NESTED, "params": {**NESTED["params"], "hadamard": "left"}},
    "an unknown format": {"format": "int8_of_tomorrow"},
    "another format": {"format": "float8_e4m3fn"},
    "a group that does not fit": {**FLAT, "convrot_groupsize": 4096},
    "a group of no power of four": {**FLAT, "convrot_groupsize": 32},
    "two answers": {**NESTED, "convrot": False},
    "no table": [1],
}


@pytest.mark.parametrize("entry", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize(("where", "prefix"), WHERE)
def test_what_is_not_understood_is_refused_by_all(tmp_path: Path, entry: Any, where: str, prefix: str) -> None:
    stored, _, entries = model(in_a_block, transformer_weights(), FLAT)
    path = write(tmp_path / "old.safetensors", stored, {**entries, next(iter(entries)): entry}, where, prefix)
    report = inspect_file(path)
    assert not report.supported
    assert report.reason
    with pytest.raises(UnsupportedFile, match="cannot be used"):
        load_transformer(path)
    with pytest.raises(UnsupportedFile, match="cannot be converted"):
        convert_file(path, tmp_path / "new.safetensors", Request(storage="bfloat16"))


def test_layers_that_the_table_leaves_out_are_refused_in_int8(tmp_path: Path) -> None:
    stored, _, entries = model(in_a_block, transformer_weights(), FLAT)
    del entries[next(iter(entries))]
    path = write(tmp_path / "old.safetensors", stored, entries, "metadata")
    assert "nor the metadata says" in inspect_file(path).reason
    with pytest.raises(UnsupportedFile, match="nor the metadata says"):
        load_transformer(path)


def test_what_is_said_of_another_model_in_the_file_does_not_count(tmp_path: Path) -> None:
    stored, _, entries = model(in_a_block, transformer_weights(), FLAT)
    prefix = "model.diffusion_model."
    layers = {prefix + layer: entry for layer, entry in entries.items()} | {"text_encoders.a.b": {"format": "nvfp4"}}
    path = tmp_path / "model.safetensors"
    save_file({prefix + name: tensor for name, tensor in stored.items()}, path, {TABLE: json.dumps({"layers": layers})})
    assert inspect_file(path).supported
    load_transformer(path)


def test_long_descriptions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, _, entries = model(in_a_block, transformer_weights(), FLAT)
    path = write(tmp_path / "old.safetensors", stored, entries, "beside")
    monkeypatch.setattr("hyvideo_lib.checkpoint.descriptions.MAX_DESCRIPTION_BYTES", 100)
    assert "over 100 bytes" in inspect_file(path).reason
