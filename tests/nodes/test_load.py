"""Loaders: what is offered, what is refused before the run, and what comes out."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch
from graph import call, run, validate
from safetensors.torch import save_file


@pytest.fixture
def load(pack):
    return pack.nodes.load


@pytest.fixture
def files(pack):
    return pack.nodes.files


@pytest.fixture
def assets(pack):
    return pack.hyvideo_lib.demo.assets


@pytest.fixture
def models(folder, assets):
    """The demo's files as a user's, under names that say nothing."""
    places = {
        "a.safetensors": ("models/diffusion_models", assets.TRANSFORMER),
        "b.safetensors": ("models/vae", assets.VAE),
        "c.safetensors": ("models/text_encoders", assets.LLM),
        "d.safetensors": ("models/clip", assets.CLIP),
    }
    for name, (place, file) in places.items():
        (folder(place) / name).symlink_to(file)
    for name, file in (("c", assets.LLM), ("d", assets.CLIP)):
        target = folder("models/text_encoders") / f"{name}.tokenizer.json"
        target.symlink_to(file.with_suffix(".tokenizer.json"))
    (folder("models/clip") / "d.tokenizer.json").symlink_to(assets.CLIP.with_suffix(".tokenizer.json"))
    return folder


def every_loader(load):
    return {
        load.LoadTransformer: ("file",),
        load.LoadTextEncoders: ("llm", "clip"),
        load.LoadVAE: ("file",),
    }


# What is offered


def test_the_demo_is_offered_on_an_empty_computer_and_is_the_default(load, files):
    for node, names in every_loader(load).items():
        entries = {entry.id: entry for entry in node.define_schema().inputs}
        assert all(entries[name].options == [files.DEMO] for name in names)
        assert validate(node) is True


def test_files_of_the_right_folders_are_offered_and_pickles_never(load, files, models):
    for name in ("x.pt", "x.ckpt", "x.bin", "x.SAFETENSORS"):
        (models("models/vae/inner") / name).touch()
    assert files.list_choices("vae") == ["b.safetensors", "inner/x.SAFETENSORS", files.DEMO]
    assert files.list_choices("text_encoders", "clip", "LLM") == ["c.safetensors", "d.safetensors", files.DEMO]


def test_the_folder_of_older_packs_is_looked_into_known_or_not(load, files, folder, assets):
    (folder("models/LLM") / "l.safetensors").symlink_to(assets.LLM)
    assert files.list_choices(*files.TEXT_KINDS) == ["l.safetensors", files.DEMO]
    assert validate(load.LoadTextEncoders, llm="l.safetensors") is True
    sys.modules["folder_paths"].add_model_folder_path("LLM", str(folder("models/LLM")))
    assert files.list_choices(*files.TEXT_KINDS) == ["l.safetensors", files.DEMO]
    assert validate(load.LoadTextEncoders, llm="l.safetensors") is True


# What is refused before the run


@pytest.mark.parametrize("junk", ["gone.safetensors", "../vae/b.safetensors", "", 5, [], {}, ["a.safetensors"]])
def test_files_that_are_not_offered_are_refused(load, models, junk):
    for node, names in every_loader(load).items():
        for name in names:
            assert f"{name} is {junk!r}, but must be one of" in validate(node, **{name: junk})


@pytest.mark.parametrize("name", ["variant", "storage", "compute_dtype", "attention"])
def test_settings_that_there_are_not_are_refused(load, name):
    assert f"{name} is 'int3'" in validate(load.LoadTransformer, **{name: "int3"})


def test_inputs_over_a_wire_are_left_for_later_and_the_others_are_checked(load):
    for node, names in every_loader(load).items():
        assert validate(node, **dict.fromkeys(names)) is True
    assert "storage is 'int3'" in validate(load.LoadTransformer, file=None, storage="int3")
    assert "fp8_matmul is on, but matmul is int8" in validate(load.LoadTransformer, fp8_matmul=True, matmul="int8")


def test_a_file_of_another_kind_is_refused(load, models, assets):
    (models("models/diffusion_models") / "vae.safetensors").symlink_to(assets.VAE)
    (models("models/vae") / "dit.safetensors").symlink_to(assets.TRANSFORMER)
    assert "vae.safetensors was given as" in validate(load.LoadTransformer, file="vae.safetensors")
    assert "dit.safetensors was given as" in validate(load.LoadVAE, file="dit.safetensors")
    assert "Give another file as llm" in validate(load.LoadTextEncoders, llm="d.safetensors", clip="d.safetensors")


def test_files_that_cannot_be_read_are_refused(load, models, assets):
    place = models("models/vae")
    (place / "half.safetensors").write_bytes(assets.VAE.read_bytes()[:100_000])
    (place / "text.safetensors").write_text("not a model")
    save_file({"a": torch.zeros(1)}, place / "other.safetensors")
    for name in ("half", "text", "other"):
        said = validate(load.LoadVAE, file=f"{name}.safetensors")
        assert f"{name}.safetensors" in said
        assert str(place) not in said


def test_image_to_video_is_refused_until_it_is_built(load, folder, pack):
    config = pack.hyvideo_lib.transformer.TransformerConfig(
        33, 16, 32, 2, 1, 1, rope_axes=(4, 6, 6), text_dim=32, pooled_dim=16
    )
    weights = pack.hyvideo_lib.transformer.HunyuanVideoTransformer(config).state_dict()
    path = folder("models/diffusion_models") / "i2v.safetensors"
    save_file(weights, path, {"hyvideo.config": json.dumps({"rope_axes": [4, 6, 6]})})
    assert "no text-to-video transformer" in validate(load.LoadTransformer, file="i2v.safetensors")
    said = validate(load.LoadTransformer, file="i2v.safetensors", variant="text to video")
    assert "t2v was chosen, but by its tensors the file is i2v_latent_concat" in said
    with pytest.raises(pack.hyvideo_lib.errors.UnsupportedFile, match=r"\[unsupported_file\]$"):
        run(load.LoadTransformer, file="i2v.safetensors")


@pytest.mark.parametrize("variant", ["auto", "text to video"])
def test_a_name_that_says_another_variant_is_a_warning(load, folder, assets, variant, caplog):
    for name in ("image_to_video", "mine"):
        (folder("models/diffusion_models") / f"{name}.safetensors").symlink_to(assets.TRANSFORMER)
        run(load.LoadTransformer, file=f"{name}.safetensors", variant=variant)
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith("image_to_video.safetensors: Its name says i2v")
    assert "taken as t2v" in told


def test_a_variant_that_is_named_decides_where_tensors_cannot_tell(load):
    asked, named = (run(load.LoadTransformer, variant=variant)[0].report.notes for variant in load.VARIANTS)
    assert any("they cannot tell" in note for note in asked)
    assert not any("they cannot tell" in note for note in named)


# Tokenizers


def test_a_tokenizer_is_a_file_or_a_folder_beside_the_encoders(load, files, folder, assets):
    tokenizer = assets.LLM.with_suffix(".tokenizer.json")
    (folder("models/text_encoders/llama") / "tokenizer.json").symlink_to(tokenizer)
    (folder("models/clip") / "mine.json").symlink_to(tokenizer)
    for name in ("llama", "llama/tokenizer.json", "mine.json", " mine.json ", "", files.FOUND):
        assert validate(load.LoadTextEncoders, llm_tokenizer=name) is True, name
    assert files.find_tokenizer("llama").name == "llama"
    assert files.find_tokenizer("") is None


@pytest.mark.parametrize("name", ["nothing.json", "../vae", "/etc/passwd", "llm\0", "text_encoders"])
def test_tokenizers_elsewhere_are_refused(load, folder, name):
    (folder("models/vae") / "tokenizer.json").write_text("{}")
    folder("models/text_encoders")
    for widget in ("llm_tokenizer", "clip_tokenizer"):
        assert isinstance(validate(load.LoadTextEncoders, **{widget: name}), str)


# What comes out


def test_a_users_files_load_as_the_demo_does(load, models, model):
    handle = run(load.LoadTransformer, file="a.safetensors")[0]
    assert handle.name.endswith(".safetensors")
    assert handle.model.config == model.model.config
    assert validate(load.LoadTransformer, file="a.safetensors") is True
    assert validate(load.LoadVAE, file="b.safetensors") is True
    assert validate(load.LoadTextEncoders, llm="c.safetensors", clip="d.safetensors") is True
    assert run(load.LoadTextEncoders, llm="c.safetensors", clip="d.safetensors")[0].llm.config.hidden_size == 192


def test_nothing_is_on_the_device_before_it_is_needed(model, text_encoders, vae, mm):
    managed = (model.managed, *text_encoders.managed, vae.managed)
    assert [entry.loaded_size() for entry in managed] == [0, 0, 0, 0]
    assert mm.loaded_models() == []


def test_dtypes_are_as_the_widgets_say(load):
    handle = run(load.LoadTransformer, storage="bfloat16", compute_dtype="bfloat16")[0]
    assert handle.model.compute_dtype == torch.bfloat16
    assert handle.model.double_blocks[0].img_attn_qkv.weight.dtype == torch.bfloat16
    assert next(run(load.LoadVAE, dtype="bfloat16")[0].vae.parameters()).dtype == torch.bfloat16
    encoders = run(load.LoadTextEncoders, storage="float32")[0]
    assert {p.dtype for p in encoders.llm.parameters()} == {torch.float32}


def test_on_a_graphics_card_the_automatic_dtypes_are_those_of_the_reference(load, mm):
    mm.pretend(device="cuda", text_device="cuda")
    try:
        assert run(load.LoadTransformer)[0].model.compute_dtype == torch.bfloat16
        assert next(run(load.LoadVAE)[0].vae.parameters()).dtype == torch.float16
        handle = run(load.LoadTextEncoders)[0]
        assert handle.managed[0].load_device == torch.device("cuda")
        assert run(load.LoadTextEncoders, device="cpu")[0].managed[0].load_device == torch.device("cpu")
    finally:
        mm.pretend()


def test_block_swap_reaches_the_model(load, pack):
    swap = pack.hyvideo_lib.memory.BlockSwap(1, 2)
    assert run(load.LoadTransformer, block_swap=swap)[0].offloader.swap == swap


def test_encoders_that_are_interchanged_are_named(load, models, pack):
    with pytest.raises(pack.hyvideo_lib.errors.WrongKind, match=r"\[wrong_kind\]$"):
        run(load.LoadTextEncoders, llm="d.safetensors", clip="c.safetensors")


def test_a_file_that_went_away_is_named_without_its_folder(load, pack, tmp_path):
    for node, names in every_loader(load).items():
        with pytest.raises(pack.hyvideo_lib.errors.FileMissing, match=r"^gone\.safetensors.*\[file_missing\]$") as said:
            run(node, **{names[0]: "gone.safetensors"})
        assert str(tmp_path) not in str(said.value)


# When ComfyUI loads again


def test_a_file_is_loaded_again_only_when_it_changed(load, models, tmp_path):
    path = models("models/vae") / "e.safetensors"
    save_file({"a": torch.zeros(1)}, path)

    def said() -> str:
        return call(load.LoadVAE, "fingerprint_inputs", {"file": "e.safetensors", "dtype": "auto"})

    before = said()
    assert said() == before
    os.utime(path, ns=(1, 1))
    assert said() != before
    path.unlink()
    assert said() == "missing"


def test_either_encoder_counts(load, models):
    def said(llm: str, clip: str) -> str:
        return call(load.LoadTextEncoders, "fingerprint_inputs", {"llm": llm, "clip": clip, "device": "auto"})

    both = {said("c.safetensors", "d.safetensors"), said("gone", "d.safetensors"), said("c.safetensors", "gone")}
    assert len(both) == 3


def test_a_choice_over_a_wire_loads_once(load):
    said = call(load.LoadTransformer, "fingerprint_inputs", {"file": None})
    assert said == call(load.LoadTransformer, "fingerprint_inputs", {"file": None})


# Attention


def test_every_backend_can_be_chosen_and_comfyuis_own_as_well(load):
    (widget,) = (widget for widget in load.LoadTransformer.define_schema().inputs if widget.id == "attention")
    assert widget.options[:2] == ["auto", "sdpa"]
    assert {"flash_attn_2", "flash_attn_3", "sage", "xformers", "comfy_kitchen", "comfyui"} <= set(widget.options)


def test_an_attention_that_cannot_run_is_refused_when_the_transformer_is_loaded(load, pack, monkeypatch):
    attention = pack.hyvideo_lib.attention
    broken = attention.Backend("sage", lambda: lambda q, k, v: v, "Mend it.")
    monkeypatch.setitem(attention.BACKENDS, "sage", broken)
    with pytest.raises(pack.hyvideo_lib.errors.InvalidSetting, match=r"attention sage gives wrong numbers.*Mend it"):
        run(load.LoadTransformer, attention="sage")


@pytest.mark.parametrize(
    ("fp8_matmul", "matmul", "product"), [(False, "int8", "int8"), (False, "dense", None), (True, "dense", "fp8")]
)
def test_both_widgets_say_how_the_blocks_multiply(pack, monkeypatch, fp8_matmul, matmul, product):
    tried = []
    monkeypatch.setattr(pack.hyvideo_lib.quant, "probe_product", lambda name, *_: tried.append(name))
    handle = run(pack.nodes.load.LoadTransformer, fp8_matmul=fp8_matmul, matmul=matmul)[0]
    layer = handle.model.double_blocks[0].img_mlp.fc1
    products = pack.hyvideo_lib.quant.PRODUCTS
    assert (layer.product is products[product]) if product else layer.product not in products.values()
    assert tried == [name for name in (product,) if name]


def test_comfyuis_own_attention_is_counted_as_the_most_that_it_may_be(pack):
    backends = pack.hyvideo_lib.attention.BACKENDS
    assert backends["comfyui"].extra == backends["sage"].extra
