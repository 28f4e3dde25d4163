from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hyvideo_lib.checkpoint import load_text_encoder, load_transformer, load_vae, read_header
from hyvideo_lib.errors import InvalidSetting, UnsupportedFile, WrongKind
from hyvideo_lib.quant import PRODUCTS, dequantize_fp8, is_kept_in_plain_fp8, plain_fp8_state_dict, quantize_fp8
from hyvideo_lib.transformer import HunyuanVideoTransformer
from hyvideo_lib.vae import CausalVideoVAE

SaveModel = Callable[..., Path]
EntriesOf = Callable[..., dict[str, tuple[list[int], str]]]
CONFIGS: dict[str, dict[str, Any]] = {
    "dit_tiny_t2v": {"rope_axes": [4, 10, 10]},
    "vae_tiny": {"norm_groups": 4},
    "te_llama_tiny": {"head_dim": 8},
    "te_clip_tiny": {"num_heads": 3},
}
FP8 = torch.float8_e4m3fn


@pytest.fixture
def save_model(tmp_path: Path, goldens: Path) -> SaveModel:
    """save_model(golden, change) -> path: a golden's weights as a file that tells its sizes, changed by a function."""

    def save(name: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None) -> Path:
        tensors = load_file(goldens / f"{name}.weights.safetensors")
        path = tmp_path / f"{name}.safetensors"
        save_file(change(tensors) if change else tensors, path, {"hyvideo.config": json.dumps(CONFIGS[name])})
        return path

    return save


def run(model: HunyuanVideoTransformer) -> torch.Tensor:
    """One small forward of the tiny text-to-video transformer; the same inputs every time.

    Guidance 8.0 is the same number in bfloat16, as 6.0 (times 1000) is not.
    """
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 1, 4, 4, generator=generator)
    text = torch.randn(1, 3, 24, generator=generator)
    pooled = torch.randn(1, 20, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([500.0]), text, torch.ones(1, 3, dtype=torch.int64), pooled, guidance=8.0)


def spans(module: nn.Module) -> set[tuple[int, int]]:
    """Where the storages of a module's tensors begin, and how many bytes they have."""
    storages = [tensor.untyped_storage() for tensor in module.state_dict().values()]
    return {(storage.data_ptr(), storage.nbytes()) for storage in storages}


def test_weights_are_the_mapped_file_and_nothing_else(save_model: SaveModel) -> None:
    path = save_model("dit_tiny_t2v")
    model = load_transformer(path)
    ((_, num_bytes),) = spans(model)
    assert num_bytes == path.stat().st_size
    header = read_header(path)
    for name, parameter in model.named_parameters():
        assert parameter.storage_offset() * parameter.element_size() == header.tensors[name].start
        assert str(parameter.dtype) == f"torch.{header.tensors[name].dtype}"
        assert not parameter.requires_grad
    assert not model.training


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of the process from /proc")
@pytest.mark.parametrize("name", ["kijai_transformer_t2v_fp8_e4m3fn", "tencent_transformer_t2v"])
def test_the_13b_model_takes_no_memory_to_load(name: str, write_sparse: SaveModel, entries_of: EntriesOf) -> None:
    """Not even where the file (13 or 26 GB, of zeros that use no disk) is larger than the machine's memory."""

    def anonymous_bytes() -> int:
        line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    path = write_sparse(entries_of(name))
    before = anonymous_bytes()
    model = load_transformer(path)
    assert anonymous_bytes() - before < 0.1e9
    assert sum(parameter.numel() for parameter in model.parameters()) == 12_821_012_544
    assert len(spans(model)) == 1


def test_transformer_computes_the_same_as_one_filled_by_hand(save_model: SaveModel) -> None:
    path = save_model("dit_tiny_t2v")
    loaded = load_transformer(path, compute_dtype=torch.float32)
    by_hand = HunyuanVideoTransformer(loaded.config)
    by_hand.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    assert torch.equal(run(loaded), run(by_hand))


def test_file_is_unchanged_by_loading_and_running(save_model: SaveModel) -> None:
    path = save_model("dit_tiny_t2v", plain_fp8_state_dict)
    before = path.read_bytes()
    run(load_transformer(path))
    assert path.read_bytes() == before


def test_fp8_file_stays_fp8_in_memory(save_model: SaveModel) -> None:
    path = save_model("dit_tiny_t2v", plain_fp8_state_dict)
    model = load_transformer(path)
    assert len(spans(model)) == 1
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.bfloat16 if is_kept_in_plain_fp8(name) else FP8), name


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_fp8_storage_computes_as_dequantised(save_model: SaveModel, compute_dtype: torch.dtype) -> None:
    path = save_model("dit_tiny_t2v", plain_fp8_state_dict)
    upcast = load_transformer(path, storage_dtype=torch.bfloat16, compute_dtype=compute_dtype)
    assert all(parameter.dtype == torch.bfloat16 for parameter in upcast.parameters())
    found = run(load_transformer(path, compute_dtype=compute_dtype))
    assert found.isfinite().all()
    assert torch.equal(found, run(upcast))


def test_fp8_products_want_fp8_weights(save_model: SaveModel) -> None:
    path = save_model("dit_tiny_t2v")
    with pytest.raises(InvalidSetting, match="need weights in fp8"):
        load_transformer(path, product="fp8")
    model = load_transformer(path, torch.float8_e4m3fn, product="fp8")
    assert model.double_blocks[0].img_mlp.fc1.product is PRODUCTS["fp8"]


def test_storage_in_fp8_equals_an_fp8_file(save_model: SaveModel) -> None:
    cast_on_load = load_transformer(save_model("dit_tiny_t2v"), storage_dtype=FP8).state_dict()
    from_file = load_transformer(save_model("dit_tiny_t2v", plain_fp8_state_dict)).state_dict()
    for name, tensor in from_file.items():
        assert cast_on_load[name].dtype == tensor.dtype
        assert torch.equal(cast_on_load[name].float(), tensor.float()), name


@pytest.mark.parametrize(("stored", "wanted"), [(FP8, torch.float8_e5m2), (torch.float8_e5m2, FP8)])
def test_one_fp8_format_becomes_the_other(save_model: SaveModel, stored: torch.dtype, wanted: torch.dtype) -> None:
    name = "double_blocks.1.img_mlp.fc1.weight"

    def cast(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return plain_fp8_state_dict({**tensors, name: tensors[name] * 1e4}, stored)

    path = save_model("dit_tiny_t2v", cast)
    found = load_transformer(path, storage_dtype=wanted)
    exact = load_file(path)[name].float()
    assert found.get_parameter(name).dtype == wanted
    largest = torch.finfo(wanted).max
    assert exact.abs().max() >= 448
    assert torch.equal(found.get_parameter(name).float(), exact.clamp(-largest, largest).to(wanted).float())


def test_storage_cast_spares_norms_and_biases(save_model: SaveModel) -> None:
    path = save_model("dit_tiny_t2v", lambda tensors: {name: tensor.float() for name, tensor in tensors.items()})
    model = load_transformer(path, storage_dtype=torch.float16)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float16 if parameter.ndim > 1 else torch.float32), name


def test_compute_dtype_is_what_the_model_is_told(save_model: SaveModel) -> None:
    path = save_model("dit_tiny_t2v")
    exact = run(load_transformer(path, compute_dtype=torch.float32)).float()
    rounded = run(load_transformer(path, compute_dtype=torch.bfloat16)).float()
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).abs().max() < 0.1 * exact.abs().max()


def test_prefixed_file_loads_alike(save_model: SaveModel) -> None:
    plain = load_transformer(save_model("dit_tiny_t2v")).state_dict()
    prefixed_file = save_model(
        "dit_tiny_t2v", lambda tensors: {f"model.model.{name}": tensor for name, tensor in tensors.items()}
    )
    prefixed = load_transformer(prefixed_file).state_dict()
    assert plain.keys() == prefixed.keys()
    assert all(torch.equal(plain[name], prefixed[name]) for name in plain)


def test_given_config_replaces_what_the_file_cannot_tell(goldens: Path, save_model: SaveModel) -> None:
    untold = goldens / "dit_tiny_t2v.weights.safetensors"
    with pytest.raises(UnsupportedFile, match="rope_axes"):
        load_transformer(untold)
    config = load_transformer(save_model("dit_tiny_t2v")).config
    assert load_transformer(untold, config=config).config == config


def test_vae_loads_in_its_compute_dtype(save_model: SaveModel) -> None:
    path = save_model("vae_tiny")
    vae = load_vae(path)
    assert isinstance(vae, CausalVideoVAE)
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
    assert vae.decode(torch.zeros(1, 4, 1, 2, 2)).shape == (1, 3, 1, 16, 16)
    assert len(spans(load_vae(path, compute_dtype=torch.bfloat16))) == 1


@pytest.mark.parametrize(
    ("load", "golden", "words"),
    [
        (load_transformer, "vae_tiny", r"vae_tiny\.safetensors is a VAE, but a transformer"),
        (load_vae, "dit_tiny_t2v", r"dit_tiny_t2v\.safetensors is a transformer .*, but a VAE"),
        (load_transformer, "te_llama_tiny", "is a Llama text encoder"),
        (load_text_encoder, "vae_tiny", "but a Llama text encoder or a CLIP text encoder is needed"),
    ],
)
def test_wrong_kind_is_named_as_what_it_is(
    load: Callable[[Path], object], golden: str, words: str, save_model: SaveModel
) -> None:
    with pytest.raises(WrongKind, match=words):
        load(save_model(golden))


def test_incomplete_transformer_lists_what_is_missing(save_model: SaveModel) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in tensors.items() if name != "time_in.mlp.2.bias"}

    with pytest.raises(UnsupportedFile, match=r"Missing tensors \(1\): time_in\.mlp\.2\.bias"):
        load_transformer(save_model("dit_tiny_t2v", drop))


def test_unknown_file_is_refused_with_its_names(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"some.weight": torch.zeros(2)}, path)
    with pytest.raises(UnsupportedFile, match=r"some\.weight"):
        load_vae(path)


@pytest.mark.parametrize(
    ("load", "settings"),
    [
        (load_transformer, {"storage_dtype": torch.int8}),
        (load_transformer, {"compute_dtype": FP8}),
        (load_vae, {"storage_dtype": torch.float16}),
        (load_vae, {"compute_dtype": torch.float64}),
    ],
)
def test_unusable_dtypes_are_refused_before_the_file_is_touched(
    load: Callable[..., object], settings: dict[str, torch.dtype]
) -> None:
    with pytest.raises(InvalidSetting, match="must be one of"):
        load("absent.safetensors", **settings)


def tencent_fp8(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tencent's fp8: the matrices of the blocks scaled, each with its scale beside it."""
    stored = dict(tensors)
    for name, tensor in tensors.items():
        if name.startswith(("double_blocks", "single_blocks")) and tensor.ndim == 2:
            stored[name], stored[name.removesuffix("weight") + "fp8_scale"] = quantize_fp8(tensor)
    return stored


def dequantised(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith("fp8_scale")}
    return {
        name: dequantize_fp8(tensor, scales.get(name.removesuffix("weight") + "fp8_scale"), dtype)
        if tensor.dtype == FP8
        else tensor
        for name, tensor in tensors.items()
        if name not in scales
    }


def test_scales_may_be_scalars(save_model: SaveModel) -> None:
    def as_scalars(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        scaled = tencent_fp8(tensors)
        return {name: tensor[0] if name.endswith("fp8_scale") else tensor for name, tensor in scaled.items()}

    found = run(load_transformer(save_model("dit_tiny_t2v", as_scalars)))
    assert torch.equal(found, run(load_transformer(save_model("dit_tiny_t2v", tencent_fp8))))


def test_a_scale_beside_something_else_than_a_linear_is_refused(save_model: SaveModel) -> None:
    path = save_model("dit_tiny_t2v", lambda tensors: tensors | {"img_in.proj.fp8_scale": torch.ones(1)})
    with pytest.raises(UnsupportedFile, match=r"Unexpected tensors \(1\): img_in\.proj\.fp8_scale"):
        load_transformer(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_fp8_computes_as_dequantised(save_model: SaveModel, dtype: torch.dtype) -> None:
    scaled = load_transformer(save_model("dit_tiny_t2v", tencent_fp8), compute_dtype=dtype)
    assert scaled.get_parameter("single_blocks.0.linear1.weight").dtype == FP8
    found = run(scaled)
    whole_file = save_model("dit_tiny_t2v", lambda tensors: dequantised(tencent_fp8(tensors), dtype))
    assert torch.equal(found, run(load_transformer(whole_file, compute_dtype=dtype)))


@pytest.mark.parametrize(
    ("storage_dtype", "via"), [(torch.bfloat16, torch.bfloat16), (torch.float8_e5m2, torch.float32)]
)
def test_scaled_fp8_is_dequantised_for_another_storage(
    save_model: SaveModel, storage_dtype: torch.dtype, via: torch.dtype
) -> None:
    path = save_model("dit_tiny_t2v", tencent_fp8)
    stored = load_file(path)
    name = "double_blocks.1.img_mlp.fc1"
    found = load_transformer(path, storage_dtype=storage_dtype).get_parameter(f"{name}.weight")
    weight = dequantize_fp8(stored[f"{name}.weight"], stored[f"{name}.fp8_scale"], via)
    assert found.dtype == storage_dtype
    assert torch.equal(found.float(), weight.to(storage_dtype).float())
