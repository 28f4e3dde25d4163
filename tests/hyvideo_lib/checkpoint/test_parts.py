"""The demo's models behind words that nobody knows, and several of them in one file: the same weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyvideo_lib.checkpoint import inspect_file, load_text_encoder, load_transformer, load_vae, read_header
from hyvideo_lib.checkpoint.convert import convert_file
from hyvideo_lib.checkpoint.rewrite import Request
from hyvideo_lib.demo import assets
from hyvideo_lib.errors import BadInput, InvalidSetting, UnsupportedFile, WrongKind
from hyvideo_lib.pipeline.files import check_file

Weights = dict[str, Tensor]
FILES = {"transformer": assets.TRANSFORMER, "vae": assets.VAE, "llm": assets.LLM, "clip": assets.CLIP}
TOKENIZERS = {"llm": assets.LLM.with_name("llm.tokenizer.json"), "clip": assets.CLIP.with_name("clip.tokenizer.json")}
KINDS = {"transformer": "transformer", "vae": "vae", "llm": "llama", "clip": "clip"}


@cache
def weights_of(role: str) -> Weights:
    return load_file(FILES[role])


def write(path: Path, tensors: Weights, *roles: str) -> Path:
    """The tensors with what the metadata of these roles' files say of sizes."""
    sizes: dict[str, object] = {}
    for role in roles:
        sizes |= json.loads(read_header(FILES[role]).metadata["hyvideo.config"])
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, {"hyvideo.config": json.dumps(sizes)})
    return path


def load(role: str, path: Path) -> Weights:
    if role == "transformer":
        return dict(load_transformer(path).state_dict())
    if role == "vae":
        return dict(load_vae(path).state_dict())
    encoder = load_text_encoder(path, TOKENIZERS[role], kind=KINDS[role])
    return dict(encoder.named_as_files.state_dict())


@cache
def expected(role: str) -> Weights:
    return load(role, FILES[role])


def equal(found: Weights, wanted: Weights) -> bool:
    assert found.keys() == wanted.keys()
    return all(torch.equal(found[name].float(), tensor.float()) for name, tensor in wanted.items())


def within(word: str, place: int) -> Callable[[str], str]:
    """A word put into names after so many others, where a name has more."""

    def change(name: str) -> str:
        words = name.split(".")
        return ".".join([*words[:place], word, *words[place:]]) if len(words) > place + 1 else name

    return change


WORDS: dict[str, Callable[[str], str]] = {
    "peft": lambda name: f"transformer.base_model.model.{name}",
    "net": lambda name: f"net.{name}",
    "several": lambda name: f"model.model.anything.at_all.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled blocks": within("_orig_mod", 2),
    "fsdp": lambda name: (
        f"student._fsdp_wrapped_module.{within('_fsdp_wrapped_module._checkpoint_wrapped_module', 2)(name)}"
    ),
    "base layers": lambda name: f"{name.rpartition('.')[0]}.base_layer.{name.rpartition('.')[2]}",
    "inner": within("inner", 1),
}


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("role", FILES)
def test_known_layers_are_found_behind_unknown_words(role: str, words: str, tmp_path: Path) -> None:
    renamed = {WORDS[words](name): tensor for name, tensor in weights_of(role).items()}
    path = write(tmp_path / "a.safetensors", renamed, role)
    report = inspect_file(path)
    assert (report.kind, report.supported, report.reason) == (KINDS[role], True, "")
    assert equal(load(role, path), expected(role))


@pytest.mark.parametrize("words", ["peft", "compiled blocks", "fsdp"])
@pytest.mark.parametrize("role", ["transformer", "vae"])
def test_a_conversion_writes_the_bare_names(role: str, words: str, tmp_path: Path) -> None:
    renamed = {WORDS[words](name): tensor for name, tensor in weights_of(role).items()}
    path = write(tmp_path / "a.safetensors", renamed, role)
    manifest = convert_file(path, tmp_path / "b.safetensors")
    assert load_file(tmp_path / "b.safetensors").keys() == weights_of(role).keys()
    assert {name for entry in manifest["tensors"] for name in entry["from"]} == renamed.keys()
    assert manifest["dropped"] == []


def test_blocks_of_which_some_are_wrapped_are_one_model(tmp_path: Path) -> None:
    renamed = {
        within("_orig_mod", 2)(name) if name.startswith("single_blocks.1.") else name: tensor
        for name, tensor in weights_of("transformer").items()
    }
    assert equal(
        load("transformer", write(tmp_path / "a.safetensors", renamed, "transformer")), expected("transformer")
    )


@pytest.mark.parametrize("prefix", ["", "net."])
def test_two_names_that_become_one_are_refused_by_their_own_names(prefix: str, tmp_path: Path) -> None:
    tensors = {prefix + name: tensor for name, tensor in weights_of("vae").items()}
    tensors[f"{prefix}decoder._orig_mod.conv_in.conv.bias"] = torch.zeros(32)
    path = write(tmp_path / "a.safetensors", tensors, "vae")
    report = inspect_file(path)
    assert (report.kind, report.supported) == ("vae", False)
    assert f"{prefix}decoder._orig_mod.conv_in.conv.bias" in report.reason
    for refused in (load_vae, lambda path: convert_file(path, tmp_path / "b.safetensors")):
        with pytest.raises(UnsupportedFile):
            refused(path)


def test_a_model_twice_behind_unknown_words_is_refused(tmp_path: Path) -> None:
    tensors = {
        f"{word}.{name}": tensor for word in ("student", "teacher") for name, tensor in weights_of("vae").items()
    }
    path = write(tmp_path / "a.safetensors", tensors, "vae")
    with pytest.raises(UnsupportedFile, match=r"student\. and teacher\."):
        load_vae(path)


def test_a_complaint_names_the_tensor_of_the_file(tmp_path: Path) -> None:
    tensors = {within("_orig_mod", 2)(f"net.{name}"): tensor for name, tensor in weights_of("vae").items()}
    tensors["net.decoder._orig_mod.extra.weight"] = torch.zeros(4)
    report = inspect_file(write(tmp_path / "a.safetensors", tensors, "vae"))
    assert report.unexpected == ("decoder._orig_mod.extra.weight",)


ALL_IN_ONE = {
    "comfyui": (
        "model.diffusion_model.",
        "vae.",
        "text_encoders.llama.transformer.model.",
        "text_encoders.clip_l.transformer.",
    ),
    "older": (
        "model.diffusion_model.",
        "first_stage_model.",
        "cond_stage_model.llama.model.",
        "conditioner.embedders.0.transformer.",
    ),
    "unknown": ("one.", "two.", "some.three.", "four.module."),
    "bare": ("", "vae.", "text_encoder.", "text_encoder_2."),
}


@pytest.fixture(params=ALL_IN_ONE)
def all_in_one(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    prefixes = dict(zip(FILES, ALL_IN_ONE[request.param], strict=True))
    tensors = {prefix + name: tensor for role, prefix in prefixes.items() for name, tensor in weights_of(role).items()}
    return write(tmp_path / "all.safetensors", tensors, *FILES)


def test_the_model_that_is_asked_for_is_taken_of_several(all_in_one: Path) -> None:
    report = inspect_file(all_in_one)
    assert (report.kind, report.supported) == ("transformer", True)
    assert [part.kind for part in report.parts] == ["transformer", "vae", "clip", "llama"]
    assert any("4 models" in note for note in report.notes)
    for role in FILES:
        found = check_file(role, all_in_one)
        assert (found.kind, found.quantization) == (KINDS[role], inspect_file(FILES[role]).quantization)
        assert equal(load(role, all_in_one), expected(role))


@pytest.mark.parametrize("component", FILES)
def test_a_conversion_takes_one_model_of_several(component: str, all_in_one: Path, tmp_path: Path) -> None:
    convert_file(all_in_one, tmp_path / "new.safetensors", Request(component=component))
    assert load_file(tmp_path / "new.safetensors").keys() == weights_of(component).keys()
    assert equal(load(component, tmp_path / "new.safetensors"), expected(component))


def test_two_text_encoders_in_one_file_are_told_apart(tmp_path: Path) -> None:
    tensors = {f"text_encoders.llama.transformer.model.{name}": tensor for name, tensor in weights_of("llm").items()}
    tensors |= {f"text_encoders.clip_l.transformer.{name}": tensor for name, tensor in weights_of("clip").items()}
    path = write(tmp_path / "a.safetensors", tensors, "llm", "clip")
    for role in ("llm", "clip"):
        assert equal(load(role, path), expected(role))
    with pytest.raises(WrongKind):
        check_file("vae", path)


def decoder_only() -> Weights:
    return {
        name: tensor for name, tensor in weights_of("vae").items() if not name.startswith(("encoder.", "quant_conv."))
    }


@pytest.mark.parametrize("has_quant_conv", [False, True])
def test_a_vae_with_only_a_decoder_decodes_and_says_that_it_cannot_encode(has_quant_conv: bool, tmp_path: Path) -> None:
    tensors = decoder_only()
    if has_quant_conv:
        tensors |= {name: tensor for name, tensor in weights_of("vae").items() if name.startswith("quant_conv.")}
    path = write(tmp_path / "a.safetensors", tensors, "vae")
    assert any("only a decoder" in note for note in inspect_file(path).notes)
    vae, whole = load_vae(path), load_vae(assets.VAE)
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(vae.decode(latents), whole.decode(latents))
    with pytest.raises(InvalidSetting, match="only a decoder"):
        vae.encode(torch.zeros(1, 3, 5, 32, 32))


IDLE: dict[str, dict[str, Tensor]] = {
    "transformer": {"global_step": torch.tensor(7), "num_updates": torch.tensor([7]), "decay": torch.tensor(0.99)},
    "vae": {"loss.counter": torch.tensor(3), "logvar.num_batches_tracked": torch.tensor(3)},
    "llm": {f"layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(24) for i in range(2)},
    "clip": {"logit_scale": torch.tensor(4.6), "text_model.embeddings.position_ids": torch.arange(77)[None]},
}


@pytest.mark.parametrize("role", IDLE)
def test_tensors_that_no_layer_needs_are_ignored_and_told(role: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {**weights_of(role), **IDLE[role]}, role)
    report = inspect_file(path)
    assert (report.supported, report.unexpected) == (True, ())
    if role != "clip":
        assert any("no layer needs" in note and max(IDLE[role]) in note for note in report.notes)
    assert equal(load(role, path), expected(role))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("double_blocks.0.img_attn_qkv.zero_point", torch.tensor(3)),
        ("double_blocks.0.extra.weight", torch.zeros(4, 4)),
        ("double_blocks.0.global_step", torch.zeros(4)),
        ("betas", torch.zeros(4, 4)),
        ("double_blocks.0.betas", torch.zeros(4)),
    ],
)
def test_what_could_be_a_weight_stays_a_complaint(name: str, tensor: Tensor, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {**weights_of("transformer"), name: tensor}, "transformer")
    assert inspect_file(path).unexpected == (name,)
    with pytest.raises(BadInput):
        load_transformer(path)
