from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import TRANSFORMER, golden
from torch import Tensor

from hyvideo_lib.checkpoint import inspect_file, load_text_encoder, load_transformer, load_vae
from hyvideo_lib.checkpoint.convert import convert_file
from hyvideo_lib.checkpoint.header import Header, TensorInfo
from hyvideo_lib.checkpoint.spelling import respellings
from tests.hyvideo_lib.checkpoint import text_files
from tests.hyvideo_lib.checkpoint.layouts import TRANSFORMER_LAYOUTS, VAE_LAYOUTS

SPELLINGS: dict[str, Callable[[str], str]] = {
    "underscores": lambda name: name.rpartition(".")[0].replace(".", "_") + "." + name.rpartition(".")[2],
    "underscores to the end": lambda name: name.replace(".", "_"),
    "half of them": lambda name: name.replace(".", "_", 1),
    "behind a prefix": lambda name: "net_" + name.rpartition(".")[0].replace(".", "_") + "." + name.rpartition(".")[2],
    "a word that all share": lambda name: name.replace(".0.", ".0.zzz.").replace(".1.", ".1.zzz.", 1),
}
"""Of a name with dots."""


def header_of(names: Mapping[str, object] | list[str]) -> Header:
    return Header(Path("x"), {name: TensorInfo(name, "float32", (1,), 0, 4) for name in names}, {}, 4)


@pytest.mark.parametrize("layout", TRANSFORMER_LAYOUTS)
@pytest.mark.parametrize("spelling", [name for name in SPELLINGS if name != "a word that all share"])
def test_a_transformer_spelled_otherwise_is_the_same_weights(layout: str, spelling: str, tmp_path: Path) -> None:
    tensors = TRANSFORMER_LAYOUTS[layout](golden("dit_tiny_t2v.weights"))
    state = {}
    for name, spelled in (("plain", lambda name: name), ("other", SPELLINGS[spelling])):
        path = tmp_path / f"{name}.safetensors"
        metadata = {"hyvideo.config": '{"rope_axes": [4, 10, 10]}'}
        save_file({spelled(name): tensor.clone() for name, tensor in tensors.items()}, path, metadata)
        assert inspect_file(path).supported, inspect_file(path).reason
        state[name] = load_transformer(path).state_dict()
    assert state["plain"].keys() == state["other"].keys()
    assert all(torch.equal(state["plain"][name], tensor) for name, tensor in state["other"].items())
    convert_file(tmp_path / "other.safetensors", tmp_path / "converted.safetensors")
    converted = load_transformer(tmp_path / "converted.safetensors").state_dict()
    assert all(torch.equal(converted[name], tensor) for name, tensor in state["plain"].items())


@pytest.mark.parametrize("layout", VAE_LAYOUTS)
def test_so_is_a_vae(layout: str, tmp_path: Path) -> None:
    tensors = VAE_LAYOUTS[layout](golden("vae_tiny.weights"))
    path, metadata = tmp_path / "vae.safetensors", {"hyvideo.config": '{"norm_groups": 4}'}
    save_file({SPELLINGS["underscores"](name): tensor.clone() for name, tensor in tensors.items()}, path, metadata)
    assert load_vae(path).config.latent_channels


@pytest.mark.parametrize("kind", ["llama", "clip"])
def test_so_are_the_text_encoders(kind: str, tmp_path: Path) -> None:
    tensors: Mapping[str, Tensor] = text_files.weights_of(kind)
    spelled = {SPELLINGS["underscores"](name): tensor for name, tensor in tensors.items()}
    path = text_files.write(tmp_path / "text.safetensors", kind, spelled)
    tokenizer = text_files.LLAMA_TOKENIZER if kind == "llama" else text_files.clip_tokenizer()
    load_text_encoder(path, tokenizer)


def test_what_is_no_layer_stays_with_its_model(tmp_path: Path) -> None:
    """Else a tensor of another model of the family would count as something else in the file, and be left alone."""
    tensors = {
        f"a_b_{name.replace('.', '_')}": tensor.clone() for name, tensor in golden("dit_tiny_t2v.weights").items()
    }
    path = tmp_path / "x.safetensors"
    save_file(
        tensors | {"a_b_audio_proj_weight": torch.zeros(2)}, path, {"hyvideo.config": '{"rope_axes": [4, 10, 10]}'}
    )
    assert not inspect_file(path).supported
    save_file(tensors, path, {"hyvideo.config": '{"rope_axes": [4, 10, 10]}'})
    assert inspect_file(path).supported


def test_a_word_that_all_blocks_share_is_dropped() -> None:
    header = header_of(
        ["m.double_blocks.0.zzz.img_mlp.fc1.weight", "m.single_blocks.1.zzz.linear1.bias", "m.img_in.x", "n.x.1.y"][:3]
    )
    assert list(next(respellings(header)).tensors) == [
        "m.double_blocks.0.img_mlp.fc1.weight",
        "m.single_blocks.1.linear1.bias",
        "m.img_in.x",
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["double_blocks.0.img_mlp.fc1.weight"],
        ["blocks.0.self_attn.q.weight"],
        ["double_blocks.0.img_mlp.fc1.weight", "double_blocks_0_img_mlp_fc1.weight"],  # two would be one
        ["x"],
        [],
    ],
)
def test_what_needs_no_other_spelling_stays_as_it_is(names: list[str]) -> None:
    header = header_of(names)
    assert list(respellings(header)) == []
    assert TRANSFORMER.num_double_blocks
