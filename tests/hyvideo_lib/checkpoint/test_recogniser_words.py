"""The recogniser's sentences, whole: they are all that a user sees of it."""

from __future__ import annotations

from pathlib import Path

import checkpoint_headers as headers
import pytest
import torch
from checkpoint_headers import released

from hyvideo_lib.checkpoint import inspect_file
from hyvideo_lib.checkpoint.variants import VARIANTS, choose_variant, hinted_variants, name_contradiction

SAME = ("t2v", "i2v_token_replace", "custom_reference")
TITLES = (
    "t2v (text to video) / i2v_token_replace (image to video, token replace) / "
    "custom_reference (HunyuanCustom, with a reference image)"
)
PICKED = "Its tensors are the same for " + TITLES + "; they cannot tell. Choose another variant if it is one."


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
        "choose i2v_token_replace if that is so."
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


def test_an_unknown_file_says_what_was_looked_for(tmp_path: Path) -> None:
    names = [f"some.{letter}.weight" for letter in "abcdefghijkl"]
    report = report_of(tmp_path, {name: ([2], "float32") for name in names})
    found = report.reason.partition(" Its tensors: ")
    assert found[0].startswith("It holds nothing known here (looked for ")
    assert found[0].endswith(").")
    known = found[0].removeprefix("It holds nothing known here (looked for ").removesuffix(").")
    assert len(known.split(", ")) >= 5
    assert found[2] == ", ".join(names[:10]) + "."


def test_an_empty_file_has_no_tensors_to_name(tmp_path: Path) -> None:
    assert report_of(tmp_path, {}).reason.endswith(" Its tensors: none.")


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


def test_sizes_that_do_not_fit_say_where_they_may_stand(tmp_path: Path) -> None:
    entries = released("tencent_transformer_t2v")
    entries["double_blocks.0.img_attn_q_norm.weight"] = ([100], "bfloat16")
    report = report_of(tmp_path, entries)
    assert not report.supported
    assert report.config is None


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
def test_an_fp8_vae_is_accepted(tmp_path: Path, dtype: str) -> None:
    entries = {name: (shape, dtype) for name, (shape, _) in released("vae_tencent_diffusers").items()}
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
