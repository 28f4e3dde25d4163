"""One small model in every layout, storage and prefix: the same outputs, to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyvideo_lib.checkpoint import load_transformer, load_vae
from hyvideo_lib.checkpoint.joined import JoinedLinear
from hyvideo_lib.errors import UnsupportedFile
from hyvideo_lib.memory import Offloader
from hyvideo_lib.quant import plain_fp8_state_dict, quantize_fp8
from hyvideo_lib.transformer import HunyuanVideoTransformer
from tests.hyvideo_lib.checkpoint.layouts import TRANSFORMER_LAYOUTS, VAE_LAYOUTS, as_diffusers
from tests.tiny import manifest

Weights = dict[str, Tensor]
GOLDENS = Path(__file__).parents[2] / "goldens"
MODELS = ("dit_tiny_t2v", "dit_tiny_t2v_noguidance", "dit_tiny_i2v_latent_concat")


def axes_of(name: str) -> dict[str, str]:
    """Metadata that tells how the heads of a recorded model are split."""
    return {"hyvideo.config": json.dumps({"rope_axes": manifest()[name]["config"]["rope_dim_list"]})}


AXES = axes_of("dit_tiny_t2v")


def in_dtype(dtype: torch.dtype) -> Callable[[Weights], Weights]:
    return lambda weights: {name: tensor.to(dtype) for name, tensor in weights.items()}


STORAGES: dict[str, Callable[[Weights], Weights]] = {
    "bfloat16": in_dtype(torch.bfloat16),
    "float16": in_dtype(torch.float16),
    "float32": in_dtype(torch.float32),
    "float8_e4m3fn": plain_fp8_state_dict,
    "float8_e5m2": lambda weights: plain_fp8_state_dict(weights, torch.float8_e5m2),
}


def write(folder: Path, weights: Weights, metadata: dict[str, str] | None = None, prefix: str = "") -> Path:
    path = folder / "model.safetensors"
    save_file({prefix + name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata)
    return path


def golden_weights(name: str) -> Weights:
    return load_file(GOLDENS / f"{name}.weights.safetensors")


def run(model: Any) -> Tensor:
    config, generator = model.config, torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    with torch.no_grad():
        return model(
            noise(1, config.in_channels, 2, 4, 6),
            torch.tensor([500.0]),
            noise(1, 5, config.text_dim),
            torch.tensor([[1, 1, 1, 1, 0]]),
            noise(1, config.pooled_dim),
            guidance=8.0 if config.has_guidance else None,
        )


def aligned(model: HunyuanVideoTransformer) -> HunyuanVideoTransformer:
    """The model with its weights copied out of the file.

    Where in a file a float32 weight begins decides which loop of the CPU's library runs, and with it the last bit.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@pytest.fixture(params=["comfyui", "diffusers"])
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("storage", STORAGES)
def test_outputs_are_those_of_tencents_layout(tmp_path: Path, name: str, storage: str, layout: str) -> None:
    weights = STORAGES[storage](golden_weights(name))
    metadata = axes_of(name)
    expected = run(aligned(load_transformer(write(tmp_path, weights, metadata), compute_dtype=torch.float32)))
    path = write(tmp_path, TRANSFORMER_LAYOUTS[layout](weights), metadata)
    model = aligned(load_transformer(path, compute_dtype=torch.float32))
    assert expected.isfinite().all()
    assert torch.equal(run(model), expected)
    stored = {tensor.dtype for tensor in model.state_dict().values()}
    assert stored == {tensor.dtype for tensor in weights.values()}


@pytest.mark.parametrize("prefix", ["model.model.", "model.diffusion_model.", "diffusion_model.", "module."])
def test_prefixes_change_nothing(tmp_path: Path, prefix: str, layout: str) -> None:
    weights = golden_weights("dit_tiny_t2v")
    expected = run(load_transformer(write(tmp_path, weights, AXES)))
    path = write(tmp_path, TRANSFORMER_LAYOUTS[layout](weights), AXES, prefix)
    assert torch.equal(run(load_transformer(path)), expected)


def test_a_renamed_file_is_mapped_whole(tmp_path: Path) -> None:
    path = write(tmp_path, TRANSFORMER_LAYOUTS["comfyui"](golden_weights("dit_tiny_t2v")), AXES)
    storages = {tensor.untyped_storage().nbytes() for tensor in load_transformer(path).state_dict().values()}
    assert storages == {path.stat().st_size}


def test_split_weights_stay_in_the_mapped_file(tmp_path: Path) -> None:
    path = write(tmp_path, as_diffusers(golden_weights("dit_tiny_t2v")), AXES)
    model = load_transformer(path)
    size, copied = path.stat().st_size, 0
    for name, tensor in model.state_dict().items():
        if tensor.untyped_storage().nbytes() != size:
            copied += tensor.nbytes
            assert name.endswith(".bias") or name.startswith("final_layer.adaLN_modulation"), name
    assert copied < size / 50
    assert isinstance(model.get_submodule("single_blocks.0.linear1"), JoinedLinear)


def test_rows_of_a_joined_weight_are_those_of_the_whole() -> None:
    layer = JoinedLinear(3, [2, 2, 4]).requires_grad_(False)
    weight = torch.randn(8, 3)
    layer.load_state_dict(
        {
            "parts.0.weight": weight[:2],
            "parts.1.weight": weight[2:4],
            "parts.2.weight": weight[4:],
            "bias": torch.ones(8),
        }
    )
    assert torch.equal(layer.dense_weight(torch.float32), weight)
    x = torch.randn(5, 3)
    for first in range(8):
        for last in range(first + 1, 9):
            rows = slice(first, last)
            assert torch.equal(layer.dense_weight(torch.float32, rows), weight[rows])
            assert torch.equal(layer(x, rows), torch.nn.functional.linear(x, weight[rows], torch.ones(last - first)))
    inside = layer.dense_weight(torch.float32, slice(2, 4))
    assert inside.data_ptr() == layer.parts[1].weight.data_ptr()


def test_parts_move_with_the_block_that_they_are_in(tmp_path: Path) -> None:
    path = write(tmp_path, as_diffusers(golden_weights("dit_tiny_t2v")), AXES)
    model = load_transformer(path)
    blocks = [*model.double_blocks, *model.single_blocks]
    moved: list[int] = []

    def copy(tensor: Tensor, device: torch.device) -> Tensor:
        moved.append(tensor.nbytes)
        return tensor.clone()

    expected = run(model)
    offloader = Offloader(model, blocks, len(model.double_blocks), copy_fn=copy)
    offloader.load("cpu")
    assert sum(moved) == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert torch.equal(run(model), expected)
    offloader.go_home()


def scaled(weights: Weights) -> tuple[Weights, Weights]:
    """(weights with those of the blocks in fp8, their scales by module)."""
    stored, scales = dict(weights), {}
    for name, tensor in weights.items():
        if name.startswith(("double_blocks", "single_blocks")) and tensor.ndim == 2:
            stored[name], scales[name.removesuffix(".weight")] = quantize_fp8(tensor)
    return stored, scales


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_a_scale_map_beside_the_file_is_used(tmp_path: Path, compute_dtype: torch.dtype) -> None:
    stored, scales = scaled(golden_weights("dit_tiny_t2v"))
    beside = stored | {f"{name}.fp8_scale": scale for name, scale in scales.items()}
    expected = run(load_transformer(write(tmp_path, beside, AXES), compute_dtype=compute_dtype))
    path = write(tmp_path, stored, AXES)
    without = run(load_transformer(path, compute_dtype=compute_dtype))
    save_file(scales, tmp_path / "model_map.safetensors")
    assert torch.equal(run(load_transformer(path, compute_dtype=compute_dtype)), expected)
    assert not torch.equal(without, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda scales: {"double_blocks.0.nothing": torch.ones(1)} | scales, "double_blocks.0.nothing', which is no"),
        (lambda scales: dict(list(scales.items())[1:]), "it lacks 'double_blocks"),
        (lambda scales: scales | {"single_blocks.0.linear1": torch.ones(2)}, "linear1', which is no"),
        (
            lambda scales: scales | {"single_blocks.0.linear1": torch.ones(1, dtype=torch.int32)},
            "linear1', which is no",
        ),
    ],
)
def test_a_scale_map_of_something_else_is_refused(
    tmp_path: Path, change: Callable[[Weights], Weights], words: str
) -> None:
    stored, scales = scaled(golden_weights("dit_tiny_t2v"))
    path = write(tmp_path, stored, AXES)
    save_file(change(scales), tmp_path / "model_map.safetensors")
    with pytest.raises(UnsupportedFile, match=words):
        load_transformer(path)


def test_tencents_own_fp8_without_its_map_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored, _ = scaled(golden_weights("dit_tiny_t2v"))
    load_transformer(write(tmp_path, stored, AXES))
    assert not caplog.records
    named = tmp_path / "mp_rank_00_model_states_fp8.safetensors"
    write(tmp_path, stored, AXES).rename(named)
    load_transformer(named)
    assert "its scales are in a file whose name ends in _map.pt" in caplog.text


def test_scales_of_split_weights_stay_with_their_parts(tmp_path: Path) -> None:
    split = as_diffusers(golden_weights("dit_tiny_t2v"))
    stored, dense = dict(split), dict(split)
    for name, tensor in split.items():
        if "transformer_blocks" in name and tensor.ndim == 2:
            weight, scale = quantize_fp8(tensor)
            stored[name], stored[f"{name.removesuffix('weight')}fp8_scale"] = weight, scale
            dense[name] = weight.float() * scale
    expected = run(load_transformer(write(tmp_path, dense, AXES), compute_dtype=torch.float32))
    model = load_transformer(write(tmp_path, stored, AXES), compute_dtype=torch.float32)
    assert model.get_parameter("single_blocks.0.linear1.parts.3.weight").dtype == torch.float8_e4m3fn
    assert torch.equal(run(model), expected)


@pytest.mark.parametrize("storage", ["bfloat16", "float16", "float32"])
def test_both_layouts_of_the_vae_are_one(tmp_path: Path, storage: str) -> None:
    sizes = {"hyvideo.config": json.dumps({"norm_groups": manifest()["vae_tiny"]["config"]["norm_num_groups"]})}
    weights = STORAGES[storage](golden_weights("vae_tiny"))
    latents, video = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 3, 5, 16, 16)
    outputs = []
    for rewrite in VAE_LAYOUTS.values():
        for prefix in ("", "vae."):
            vae = load_vae(write(tmp_path, rewrite(weights), sizes, prefix))
            with torch.no_grad():
                outputs.append((vae.decode(latents), vae.encode(video).mean))
    for decoded, encoded in outputs[1:]:
        assert torch.equal(decoded, outputs[0][0])
        assert torch.equal(encoded, outputs[0][1])


@pytest.mark.parametrize("given", ["", "diffusion_pytorch_model.safetensors.index.json", "{0}"])
def test_diffusers_shards_load_as_one(tmp_path: Path, given: str) -> None:
    weights = golden_weights("dit_tiny_t2v")
    expected = run(load_transformer(write(tmp_path, weights, AXES)))
    folder = tmp_path / "transformer"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"_class_name": "HunyuanVideoTransformer3DModel", "rope_axes_dim": [4, 10, 10]})
    )
    split, table = as_diffusers(weights), {}
    names = [f"diffusion_pytorch_model-0000{part}-of-00003.safetensors" for part in (1, 2, 3)]
    for part, name in enumerate(names):
        shard = {key: tensor for index, (key, tensor) in enumerate(split.items()) if index % 3 == part}
        save_file(shard, folder / name)
        table |= dict.fromkeys(shard, name)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    assert torch.equal(run(load_transformer(folder / given.format(names[1]))), expected)
