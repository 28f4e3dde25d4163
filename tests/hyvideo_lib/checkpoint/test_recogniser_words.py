"""The recogniser's sentences, whole: they are all that a user sees of it."""

from __future__ import annotations

from pathlib import Path

import checkpoint_headers as headers
import pytest
import torch
from checkpoint_headers import released

from hyvideo_lib.checkpoint import inspect_file
from hyvideo_lib.checkpoint.build import recognise
from hyvideo_lib.checkpoint.examine import ACCEPTED_SCHEMES
from hyvideo_lib.checkpoint.schemes import storage_refusal
from hyvideo_lib.checkpoint.variants import (
    VARIANTS,
    choose_variant,
    hinted_variants,
    name_contradiction,
    possible_variants,
)
from hyvideo_lib.errors import WrongKind

SAME = ("t2v", "i2v_token_replace", "custom_reference")
TITLES = (
    "t2v (text to video) / i2v_token_replace (image to video, token replace) / "
    "custom_reference (HunyuanCustom, with a reference image)"
)
OTHERWISE = "One that is not t2v loads all the same, and makes poor videos from text alone."
PICKED = f"Its tensors are the same for {TITLES}; they cannot tell. {OTHERWISE}"


def report_of(tmp_path: Path, entries: headers.Entries, name: str = "model.safetensors"):
    return inspect_file(headers.write_safetensors(tmp_path / name, entries))


# Choosing among what tensors cannot tell apart


@pytest.mark.parametrize(
    ("possible", "name", "choice", "found"),
    [
        (SAME, "a.safetensors", None, ("t2v", ("Text to video.", PICKED), "")),
        (SAME, "a.safetensors", "i2v_token_replace", ("i2v_token_replace", ("Image to video, token replace.",), "")),
        (
            SAME,
            "a.safetensors",
            "i2v_latent_concat",
            ("t2v", (), f"i2v_latent_concat was chosen, but by its tensors the file is {TITLES}."),
        ),
        (
            SAME,
            "a.safetensors",
            "odd",
            ("t2v", (), f"'odd' was chosen, which is no variant, but by its tensors the file is {TITLES}."),
        ),
        (("other",), "a.safetensors", None, ("other", ("No known variant.",), "")),
    ],
)
def test_a_choice_is_answered_in_words(possible, name, choice, found) -> None:
    assert choose_variant(possible, name, choice) == found


def test_a_name_that_says_otherwise_is_told() -> None:
    assert name_contradiction("hunyuan_i2v.safetensors", "t2v", SAME) == (
        "Its name says i2v_token_replace or i2v_latent_concat, but it is taken as t2v: "
        f"the tensors fit both. {OTHERWISE}"
    )
    assert name_contradiction("SkyReels.safetensors", "t2v", SAME) == (
        "Its name says i2v_concat_no_mask, but it is taken as t2v: the tensors count, not the name."
    )


@pytest.mark.parametrize(
    ("name", "hinted"),
    [
        ("hunyuan_video_T2V_720p.safetensors", ("t2v",)),
        ("hunyuan text-to-video.gguf", ("t2v",)),
        ("image2video_texttovideo.safetensors", ("t2v",)),
        ("image_to_video.safetensors", ("i2v_token_replace", "i2v_latent_concat")),
        ("HunyuanCustom.safetensors", ("custom_reference",)),
        ("sky_reels.safetensors", ("i2v_concat_no_mask",)),
        ("keyframe_lora_host.safetensors", ("keyframe_host",)),
        ("model.safetensors", ()),
        ("other.safetensors", ()),
        ("XX(?!).safetensors", ()),
    ],
)
def test_names_hint(name: str, hinted: tuple[str, ...]) -> None:
    assert hinted_variants(name) == hinted


def test_titles_read_as_sentences() -> None:
    for name, variant in VARIANTS.items():
        _, notes, _ = choose_variant((name,), "a.safetensors")
        assert notes == (f"{variant.title[:1].upper()}{variant.title[1:]}.",)


# Complaints


LOOKED_FOR = (
    "It holds nothing known here (looked for a transformer (diffusion model), a VAE, a Llama text encoder, a CLIP text "
    "encoder, a LoRA). Its tensors: "
)


@pytest.mark.parametrize("count", [0, 1, 2, 10, 12])
def test_an_unknown_file_says_what_was_looked_for(tmp_path: Path, count: int) -> None:
    names = [f"some.{letter}.weight" for letter in "abcdefghijkl"[:count]]
    report = report_of(tmp_path, {name: ([2], "float32") for name in names})
    assert report.reason == f"{LOOKED_FOR}{', '.join(names[:10]) or 'none'}."


@pytest.mark.parametrize(
    ("kind", "scheme", "usable"),
    [
        ("transformer", "nvfp4", "bf16, fp16, fp8 or GGUF"),
        ("vae", "nvfp4", "bf16, fp16 or fp8"),
        ("vae", "gguf", "bf16, fp16 or fp8"),
        ("clip", "gguf", "bf16, fp16 or fp8"),
    ],
)
def test_a_refused_storage_names_those_that_this_kind_of_file_may_have(kind: str, scheme: str, usable: str) -> None:
    assert storage_refusal(scheme, ACCEPTED_SCHEMES[kind], ()).endswith(f"Use a {usable} file of the same model.")


def test_all_complaints_are_told_in_order(tmp_path: Path) -> None:
    entries = released("vae_tencent_diffusers")
    del entries["quant_conv.bias"], entries["quant_conv.weight"]
    entries["decoder.extra.weight"] = ([4], "float32")
    entries["decoder.another.weight"] = ([4], "float32")
    entries["decoder.conv_out.conv.bias"] = ([4], "float32")
    assert report_of(tmp_path, entries).reason == (
        "Missing tensors (2): quant_conv.weight, quant_conv.bias. "
        "Unexpected tensors (2): decoder.another.weight, decoder.extra.weight. "
        "Tensors of a wrong shape (1): decoder.conv_out.conv.bias is [4], expected [3]."
    )


@pytest.mark.parametrize(("extra", "end"), [(10, "j.weight."), (11, "j.weight and 1 more.")])
def test_ten_names_are_listed_and_the_rest_counted(tmp_path: Path, extra: int, end: str) -> None:
    entries = released("vae_tencent_diffusers")
    names = [f"decoder.{letter}.weight" for letter in "abcdefghijk"[:extra]]
    report = report_of(tmp_path, {**entries, **{name: ([4], "float32") for name in names}})
    assert report.reason == f"Unexpected tensors ({extra}): {', '.join(names[:9])}, decoder.{end}"


def test_a_joined_tensor_of_a_wrong_shape_names_its_parts(tmp_path: Path) -> None:
    entries = released("diffusers_transformer_t2v")
    stem = "transformer_blocks.3.attn.to_"
    for part in "qkv":
        entries[f"{stem}{part}.weight"] = ([3072, 3071], "bfloat16")
    report = report_of(tmp_path, entries)
    assert report.wrong_shapes == (
        f"{stem}q.weight + {stem}k.weight + {stem}v.weight is [9216, 3071], expected [9216, 3072]",
    )


HEADS_OF_100 = (
    "The heads are 100 wide, which does not tell how they are split over time, height and width. Give "
    "config=TransformerConfig(..., rope_axes=(t, h, w)), or store rope_axes in the metadata under 'hyvideo.config'."
)
SPLIT_IN_30 = (
    "Its sizes do not fit together: hidden_size 3072 cannot be split into 30 heads. What tensors cannot tell may stand "
    "in the metadata under 'hyvideo.config', or be given as config."
)


@pytest.mark.parametrize(
    ("metadata", "reason"), [({}, HEADS_OF_100), ({"hyvideo.config": '{"rope_axes": [20, 40, 40]}'}, SPLIT_IN_30)]
)
def test_sizes_that_do_not_fit_say_where_they_may_stand(tmp_path: Path, metadata, reason: str) -> None:
    entries = released("tencent_transformer_t2v")
    entries["double_blocks.0.img_attn_q_norm.weight"] = ([100], "bfloat16")
    report = inspect_file(headers.write_safetensors(tmp_path / "model.safetensors", entries, metadata))
    assert (report.supported, report.config, report.reason) == (False, None, reason)


def test_something_else_in_the_file_is_counted(tmp_path: Path) -> None:
    entries = {f"vae.{name}": value for name, value in released("vae_tencent_diffusers").items()}
    report = report_of(tmp_path, {**entries, "a.b": ([3], "float32"), "c.d": ([3], "float32")})
    assert "Tensors of something else, ignored: 2." in report.notes
    assert report.supported


@pytest.mark.parametrize(
    ("words", "is_asked"), [(128255, True), *((128256 + i, i > 3) for i in range(5)), (128319, True), (128320, False)]
)
def test_a_language_model_with_other_words_is_asked_about(tmp_path: Path, words: int, is_asked: bool) -> None:
    entries = {
        name: ([words if size == 128320 else size for size in shape], dtype)
        for name, (shape, dtype) in released("llama_hf").items()
    }
    question = f"Its vocabulary has {words} words, LLaVA-Llama-3's 128320: is it another model?"
    assert report_of(tmp_path, entries).notes.count(question) == is_asked


@pytest.mark.parametrize("scheme_file", ["kijai_transformer_t2v_fp8_e4m3fn", "tencent_transformer_t2v"])
def test_storage_is_named(tmp_path: Path, scheme_file: str) -> None:
    report = report_of(tmp_path, released(scheme_file))
    assert report.quantization == ("fp8_cast" if "fp8" in scheme_file else "none")
    assert report.supported


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("name", ["vae_tencent_diffusers", "llama_hf", "clip_l_text", "tencent_transformer_t2v"])
def test_plainly_cast_fp8_is_accepted(tmp_path: Path, name: str, dtype: str) -> None:
    entries = {name: (shape, dtype) for name, (shape, _) in released(name).items()}
    report = report_of(tmp_path, entries)
    assert (report.quantization, report.supported, report.reason) == ("fp8_cast", True, "")


# Pickles


TRANSFORMER_NAMES = (
    "double_blocks.0.img_attn_qkv.weight",
    "txt_in.individual_token_refiner.blocks.0.norm1.weight",
    "img_in.proj.weight",
)


@pytest.mark.parametrize(
    ("names", "is_zip", "notes"),
    [
        (
            TRANSFORMER_NAMES,
            True,
            ("It holds 3 tensors. By its names it holds a transformer (diffusion model) (tencent).",),
        ),
        (TRANSFORMER_NAMES, False, ("By its names it holds a transformer (diffusion model) (tencent).",)),
        (
            ("after_proj_list.0.weight", "blocks.0.attn.weight"),
            True,
            ("It holds 2 tensors. By its names it holds a ControlNet (hunyuandit, native).",),
        ),
        (("a", "b"), True, ("It holds 2 tensors.",)),
        (("a", "b"), False, ()),
    ],
)
def test_what_a_pickle_seems_to_hold(tmp_path: Path, names: tuple[str, ...], is_zip: bool, notes) -> None:
    path = tmp_path / "model.pt"
    torch.save({name: torch.zeros(2) for name in names}, path, _use_new_zipfile_serialization=is_zip)
    report = inspect_file(path)
    assert report.notes == notes
    kind = "a PyTorch pickle (.pt, .ckpt, .bin)" if is_zip else "an old PyTorch or Python pickle"
    assert report.reason == (
        f"It is {kind}. Pickles can run code and are never opened here; use the .safetensors version of the file, or "
        "make one with `hyvideo convert`."
    )
    assert (report.num_parameters, report.quantization, report.variant) == (0, "none", "")
    assert (report.groups, report.missing, report.unexpected, report.wrong_shapes) == ((), (), (), ())


def test_groups_are_counted_to_the_byte(tmp_path: Path) -> None:
    entries = {
        "model.a.1.weight": ([3, 2], "bfloat16"),
        "model.a.2.weight": ([5], "bfloat16"),
        "model.a.2.bias": ([4], "float32"),
        "lora_unet_b_7_c.weight": ([2], "float16"),
    }
    groups = report_of(tmp_path, entries).groups
    assert [
        (group.name, group.dtype, group.tensors, group.parameters, group.num_bytes, group.scheme) for group in groups
    ] == [
        ("lora_unet_b", "float16", 1, 2, 4, "none"),
        ("model", "bfloat16", 2, 11, 22, "none"),
        ("model", "float32", 1, 4, 16, "none"),
    ]


# What a file is called where another kind is needed


STRANGERS = {
    "a transformer (diffusion model)": released("tencent_transformer_t2v"),
    "a VAE": released("vae_tencent_diffusers"),
    "a Llama text encoder": released("llama_hf"),
    "a CLIP text encoder": released("clip_l_text"),
    "a T5 text encoder": {"encoder.block.0.layer.0.SelfAttention.q.weight": ([2, 2], "float16")},
    "an image encoder": {
        "vision_model.encoder.layers.0.mlp.fc1.weight": ([2, 2], "float16"),
        "vision_model.embeddings.class_embedding": ([2], "float16"),
    },
    "a LoRA": {
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": ([4, 3072], "float16"),
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": ([9216, 4], "float16"),
    },
    "a ControlNet": {
        "after_proj_list.0.weight": ([2, 2], "float16"),
        "blocks.0.attn.weight": ([2, 2], "float16"),
    },
    "the scales of fp8 weights": {
        "double_blocks.0.img_attn_qkv": ([], "float32"),
        "single_blocks.0.linear1": ([], "float32"),
    },
}


@pytest.mark.parametrize("words", STRANGERS)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path: Path, words: str) -> None:
    path = headers.write_safetensors(tmp_path / "file.safetensors", STRANGERS[words])
    kinds, needed = (
        (("vae",), "a VAE") if words != "a VAE" else (("llama", "clip"), "a Llama text encoder or a CLIP text encoder")
    )
    with pytest.raises(WrongKind) as caught:
        recognise(path, kinds, None)
    assert str(caught.value) == (
        f"file.safetensors is {words}, but {needed} is needed here. "
        f"Give it where {words} is asked for, and another file here."
    )


@pytest.mark.parametrize(
    ("possible", "titles"),
    [
        (
            possible_variants(33, 16),
            "i2v_latent_concat (image to video, takes noisy latents, image latents and a mask)",
        ),
        (
            possible_variants(32, 16),
            "i2v_concat_no_mask (image to video, SkyReels' kind: takes noisy latents and image latents) / "
            "keyframe_host (host of a keyframe or control LoRA: takes noisy latents and control latents)",
        ),
        (possible_variants(17, 16), "other (no known variant)"),
    ],
)
def test_what_a_transformer_can_be_is_told_in_words(possible: tuple[str, ...], titles: str) -> None:
    assert choose_variant(possible, "a.safetensors", "t2v")[2] == (
        f"t2v was chosen, but by its tensors the file is {titles}."
    )
