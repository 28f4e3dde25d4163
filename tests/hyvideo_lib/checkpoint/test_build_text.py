"""Text encoders from every layout and storage form: the same numbers as the plain file's."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hyvideo_lib.checkpoint import load_text_encoder
from hyvideo_lib.errors import InvalidSetting, UnsupportedFile, WrongKind
from hyvideo_lib.memory import Offloader
from hyvideo_lib.text import ClipTextEncoder, LlamaTextEncoder
from tests.hyvideo_lib.checkpoint import text_files as files
from tests.hyvideo_lib.checkpoint.text_files import CLIP_LAYOUTS, FP8, LLAMA_LAYOUTS, weights_of, write

GOLDENS = Path(__file__).parents[2] / "goldens"
PROMPTS = ["a cat walks on the grass", "the quick brown fox"]


def load(path: Path, **settings: Any) -> LlamaTextEncoder | ClipTextEncoder:
    """In float32, with the tiny model's tokenizer."""
    is_clip = "clip" in path.name
    tokenizer = files.clip_tokenizer() if is_clip else files.LLAMA_TOKENIZER
    return load_text_encoder(path, tokenizer, **{"compute_dtype": torch.float32} | settings)


def encode(encoder: LlamaTextEncoder | ClipTextEncoder) -> Tensor:
    with torch.no_grad():
        if isinstance(encoder, LlamaTextEncoder):
            return encoder.encode(encoder.tokenize(PROMPTS))[0]
        return encoder.encode(["w1 w2", "w3"])


def spans(module: nn.Module) -> set[int]:
    """Where the storages begin that a module's matrices lie in."""
    return {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values() if tensor.ndim > 1}


# Layouts


@pytest.mark.parametrize("layout", LLAMA_LAYOUTS)
@pytest.mark.parametrize("storage", [dict, files.fp8_cast, files.comfyui_scaled, files.comfyui_quant])
def test_every_llama_layout_encodes_alike(tmp_path: Path, layout: str, storage: files.Change) -> None:
    stored = storage(weights_of("llama"))
    plain = load(write(tmp_path / "plain.safetensors", "llama", files.dense(stored)))
    renamed = LLAMA_LAYOUTS[layout](stored)
    if "scaled_fp8" in stored:  # the marker stands bare, whatever the prefix
        renamed["scaled_fp8"] = stored["scaled_fp8"]
    found = load(write(tmp_path / "file.safetensors", "llama", renamed))
    assert isinstance(found, LlamaTextEncoder)
    assert torch.equal(encode(found), encode(plain))


@pytest.mark.parametrize("layout", CLIP_LAYOUTS)
@pytest.mark.parametrize("storage", [dict, files.fp8_cast, files.comfyui_scaled, files.comfyui_quant])
def test_every_clip_layout_encodes_alike(tmp_path: Path, layout: str, storage: files.Change) -> None:
    stored = storage(weights_of("clip"))
    plain = load(write(tmp_path / "clip.safetensors", "clip", files.dense(stored)))
    found = load(write(tmp_path / "clip_file.safetensors", "clip", CLIP_LAYOUTS[layout](stored)))
    assert isinstance(found, ClipTextEncoder)
    assert torch.equal(encode(found), encode(plain))


def test_the_plain_forms_are_the_references(tmp_path: Path) -> None:
    golden = load_file(GOLDENS / "te_llama_tiny.io.safetensors")
    llama = load(write(tmp_path / "plain.safetensors", "llama", weights_of("llama")))
    valid = golden["video.attention_mask_full"].bool()
    states = llama(golden["video.input_ids"])[valid]
    wanted = golden["video.hidden_states.3"][valid]
    assert (states - wanted).abs().max() <= 2e-5 * wanted.abs().max()
    golden = load_file(GOLDENS / "te_clip_tiny.io.safetensors")
    clip = load(write(tmp_path / "clip.safetensors", "clip", weights_of("clip")))
    assert (clip(golden["input_ids"]) - golden["pooler_output"]).abs().max() <= 2e-5


@pytest.mark.parametrize("form", ["float32", "float16", *files.BLOCKS])
def test_gguf_encodes_as_the_weights_it_stands_for(tmp_path: Path, form: str) -> None:
    weights = weights_of("llama", torch.float16 if form == "float16" else torch.float32)
    is_block = form in files.BLOCKS
    dense = {n: files.BLOCKS[form](t)[1] if is_block and t.ndim == 2 else t.float() for n, t in weights.items()}
    plain = encode(load(write(tmp_path / "plain.safetensors", "llama", dense)))
    encoder = load(files.write_gguf(tmp_path / "llama.gguf", weights, form))
    found = encode(encoder)
    # The rows of q and k stand in another order; the products are the same sums.
    assert (found - plain).abs().max() <= 1e-6 * plain.abs().max()
    assert encoder.config.head_dim == 8


def test_gguf_tells_its_sizes(tmp_path: Path) -> None:
    metadata = files.LLAMA_METADATA | {
        "llama.rope.freq_base": 10000.0,
        "llama.attention.key_length": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-3,
    }
    config = load(files.write_gguf(tmp_path / "llama.gguf", weights_of("llama"), metadata=metadata)).config
    assert (config.head_dim, config.num_heads, config.num_kv_heads) == (4, 8, 4)
    assert config.rope_theta == 10000.0
    assert config.rms_norm_eps == pytest.approx(1e-3)


def test_scaled_rope_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = files.write_gguf(tmp_path / "llama31.gguf", weights_of("llama"), **{"rope_freqs.weight": torch.ones(4)})
    with caplog.at_level(logging.WARNING):
        load(path)
    assert "Llama 3.1" in caplog.text


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder with two shards, config and tokenizer."""
    weights = weights_of("llama")
    names = sorted(weights)
    for part, chosen in enumerate((names[::2], names[1::2]), 1):
        save_file({name: weights[name] for name in chosen}, tmp_path / f"model-{part:05}-of-00002.safetensors")
    config = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "rope_theta": 500000.0}
    (tmp_path / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    (tmp_path / "tokenizer.json").write_text(files.LLAMA_TOKENIZER.read_text())
    return tmp_path


def test_a_folder_of_shards_loads_with_its_tokenizer(folder: Path) -> None:
    plain = encode(load(write(folder / "one" / "plain.safetensors", "llama", weights_of("llama"))))
    for name in ("", "model-00002-of-00002.safetensors"):
        assert torch.equal(encode(load_text_encoder(folder / name, compute_dtype=torch.float32)), plain)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1234.0}},
        {"model_type": "llava", "text_config": {"model_type": "llama", "head_dim": 8, "rope_theta": 1234.0}},
    ],
    ids=["transformers 5", "llava"],
)
def test_config_json_tells_what_tensors_cannot(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    assert load_text_encoder(folder).config.rope_theta == 1234.0


def test_without_config_json_the_released_heads_are_assumed(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(UnsupportedFile, match="num_heads"):
        load_text_encoder(folder)


# Storage and memory


@pytest.mark.parametrize("storage", [dict, files.fp8_cast, files.comfyui_scaled, files.comfyui_quant])
def test_matrices_are_the_mapped_file(tmp_path: Path, storage: files.Change) -> None:
    encoder = load(write(tmp_path / "file.safetensors", "llama", storage(weights_of("llama", torch.bfloat16))))
    ours = {name: tensor for name, tensor in encoder.model.state_dict().items() if tensor.ndim > 1}
    assert len(spans(encoder.model)) == 1
    assert {tensor.dtype for tensor in ours.values()} <= {torch.bfloat16, FP8}


def test_a_gguf_files_blocks_are_the_mapped_file(tmp_path: Path) -> None:
    encoder = load(files.write_gguf(tmp_path / "llama.gguf", weights_of("llama"), "q8_0"))
    assert len(spans(encoder.model)) == 1
    assert encoder.model.embed_tokens.weight.dtype == torch.uint8


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of the process from /proc")
@pytest.mark.parametrize("name", ["llava_llama3_comfy_fp16", "llava_llama3_comfy_fp8_scaled", "llama_hf"])
def test_the_8b_model_takes_no_memory_to_load(
    name: str, tmp_path: Path, write_sparse: Callable[..., Path], entries_of: Callable[..., Any]
) -> None:
    def anonymous_bytes() -> int:
        line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    tiny = load_text_encoder(write(tmp_path / "t.safetensors", "llama", weights_of("llama")), files.LLAMA_TOKENIZER)
    path = write_sparse(entries_of(name))
    before = anonymous_bytes()
    with pytest.MonkeyPatch.context() as patch:  # the tiny tokenizer is not Llama-3's; what counts here are the weights
        patch.setattr("hyvideo_lib.checkpoint.build_text.find_tokenizer", lambda *args: tiny.tokenizer)
        encoder = load_text_encoder(path, compute_dtype=torch.bfloat16)
    assert anonymous_bytes() - before < 0.1e9
    assert sum(tensor.numel() for tensor in encoder.state_dict().values() if tensor.ndim == 2) > 6.9e9


@pytest.mark.parametrize("storage_dtype", [torch.bfloat16, torch.float32, FP8])
@pytest.mark.parametrize("storage", [dict, files.fp8_cast, files.comfyui_scaled])
def test_matrices_rest_in_the_storage_dtype(tmp_path: Path, storage_dtype: torch.dtype, storage: files.Change) -> None:
    path = write(tmp_path / "file.safetensors", "llama", storage(weights_of("llama")))
    encoder = load(path, storage_dtype=storage_dtype)
    for name, tensor in encoder.model.state_dict().items():
        if tensor.ndim > 1 and not (storage_dtype == FP8 and "embed" in name):
            assert tensor.dtype == storage_dtype, name
    exact, found = encode(load(path)), encode(encoder)
    assert (found - exact).abs().max() <= {FP8: 0.3, torch.bfloat16: 0.05}.get(storage_dtype, 1e-6) * exact.abs().max()


def test_fp8_embeddings_with_a_scale_are_multiplied_with_it(tmp_path: Path) -> None:
    stored = files.comfyui_scaled(weights_of("llama"), with_embedding=True)
    assert stored["embed_tokens.weight"].dtype == FP8
    plain = load(write(tmp_path / "plain.safetensors", "llama", files.dense(stored)))
    found = load(write(tmp_path / "file.safetensors", "llama", stored))
    assert found.model.embed_tokens.weight.dtype == FP8
    assert torch.equal(encode(found), encode(plain))


@pytest.mark.parametrize(
    ("storage", "compute"), [(torch.float16, torch.float16), (torch.float32, torch.float32), (FP8, torch.bfloat16)]
)
def test_it_computes_in_what_most_of_the_file_is_stored_in(
    tmp_path: Path, storage: torch.dtype, compute: torch.dtype
) -> None:
    path = write(tmp_path / "file.safetensors", "llama", {n: t.to(storage) for n, t in weights_of("llama").items()})
    assert encode(load(path, compute_dtype=None)).dtype == compute
    assert encode(
        load(files.write_gguf(tmp_path / "l.gguf", weights_of("llama"), "q8_0"), compute_dtype=None)
    ).dtype == (torch.bfloat16)


@pytest.mark.parametrize("kind", ["llama", "clip"])
def test_cast_on_use_equals_cast_on_load(tmp_path: Path, kind: str) -> None:
    half = {name: tensor.half() for name, tensor in weights_of(kind).items()}
    rounded = {name: tensor.bfloat16() for name, tensor in half.items()}
    on_use = load(write(tmp_path / f"{kind}1.safetensors", kind, half), compute_dtype=torch.bfloat16)
    on_load = load(write(tmp_path / f"{kind}2.safetensors", kind, rounded), compute_dtype=torch.bfloat16)
    assert torch.equal(encode(on_use), encode(on_load))


@pytest.mark.parametrize("kind", ["llama", "clip"])
@pytest.mark.parametrize("storage", [files.fp8_cast, files.comfyui_scaled])
def test_it_moves_and_comes_home_whole(tmp_path: Path, kind: str, storage: files.Change) -> None:
    encoder = load(write(tmp_path / f"{kind}.safetensors", kind, storage(weights_of(kind))))
    before, home = encode(encoder), {name: tensor.data_ptr() for name, tensor in encoder.state_dict().items()}
    offloader = Offloader(encoder, copy_fn=lambda tensor, device: tensor.clone())
    offloader.load("cpu")
    assert all(tensor.data_ptr() != home[name] for name, tensor in encoder.state_dict().items())
    assert torch.equal(encode(encoder), before)
    offloader.go_home()
    assert {name: tensor.data_ptr() for name, tensor in encoder.state_dict().items()} == home
    assert offloader.num_bytes >= sum(tensor.nbytes for tensor in encoder.state_dict().values())


def test_a_change_of_dtype_is_a_change_of_what_it_computes_in(tmp_path: Path) -> None:
    path = write(tmp_path / "file.safetensors", "llama", files.comfyui_scaled(weights_of("llama")))
    cast = load(path).to(torch.bfloat16)
    assert encode(cast).dtype == torch.bfloat16
    assert torch.equal(encode(cast), encode(load(path, compute_dtype=torch.bfloat16)))


# What is refused


def test_another_kind_is_named(tmp_path: Path) -> None:
    save_file(load_file(GOLDENS / "vae_tiny.weights.safetensors"), tmp_path / "vae.safetensors")
    with pytest.raises(WrongKind, match="but a Llama text encoder or a CLIP text encoder is needed"):
        load_text_encoder(tmp_path / "vae.safetensors")


@pytest.mark.parametrize(
    ("kind", "lost"), [("llama", "layers.1.mlp.up_proj.weight"), ("clip", "final_layer_norm.bias")]
)
def test_an_incomplete_file_lists_what_is_missing(tmp_path: Path, kind: str, lost: str) -> None:
    tensors = {name: tensor for name, tensor in weights_of(kind).items() if not name.endswith(lost)}
    with pytest.raises(UnsupportedFile, match=rf"Missing tensors \(1\): .*{lost}"):
        load(write(tmp_path / f"{kind}.safetensors", kind, tensors))


@pytest.mark.parametrize("settings", [{"storage_dtype": torch.int8}, {"compute_dtype": FP8}])
def test_unusable_dtypes_are_refused_before_the_file_is_touched(settings: dict[str, torch.dtype]) -> None:
    with pytest.raises(InvalidSetting, match="must be one of"):
        load_text_encoder("absent.safetensors", **settings)
