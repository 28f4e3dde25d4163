"""What the report says beyond the verdict: choices among equals, hints of names, groups, complaints in own names."""

from __future__ import annotations

import math
from pathlib import Path

import checkpoint_headers as headers
import pytest
from checkpoint_headers import STORAGES, prefixed, released

from hyvideo_lib.checkpoint import inspect_file
from hyvideo_lib.checkpoint.variants import VARIANTS, choose_variant, possible_variants
from hyvideo_lib.cli import main
from hyvideo_lib.demo import assets

SAME = ("t2v", "i2v_token_replace", "custom_reference")
# channels in, channels out -> what it can be
CHANNELS = {
    (16, 16): SAME,
    (33, 16): ("i2v_latent_concat",),
    (32, 16): ("i2v_concat_no_mask", "keyframe_host"),
    (4, 4): SAME,
    (9, 4): ("i2v_latent_concat",),
    (17, 16): ("other",),
    (8, 16): ("other",),
}


@pytest.mark.parametrize(("channels", "variants"), CHANNELS.items())
def test_channels_tell_what_a_transformer_can_be(channels: tuple[int, int], variants: tuple[str, ...]) -> None:
    assert possible_variants(*channels) == variants
    assert set(variants) <= VARIANTS.keys()


@pytest.mark.parametrize(
    ("file_name", "choice", "variant", "warned"),
    [
        ("hunyuan.safetensors", None, "t2v", ()),
        ("hunyuan_t2v_720.safetensors", None, "t2v", ()),
        ("hunyuan_I2V_fixed.safetensors", None, "t2v", ("Its name says i2v_token_replace", "makes poor videos")),
        ("hunyuan_i2v.safetensors", "i2v_token_replace", "i2v_token_replace", ()),
        ("hunyuan_t2v.safetensors", "i2v_token_replace", "i2v_token_replace", ("Its name says t2v",)),
        (
            "hunyuan_custom.safetensors",
            None,
            "t2v",
            ("Its name says custom_reference", "the tensors fit both", "makes poor videos"),
        ),
        ("hunyuan_custom.safetensors", "custom_reference", "custom_reference", ()),
        ("skyreels.safetensors", None, "t2v", ("the tensors count, not the name",)),
    ],
)
def test_choice_and_name_are_weighed(file_name: str, choice: str | None, variant: str, warned: tuple[str, ...]) -> None:
    found, notes, complaint = choose_variant(SAME, file_name, choice)
    assert (found, complaint) == (variant, "")
    warning = next((note for note in notes if note.startswith("Its name")), "")
    assert all(words in warning for words in warned)
    assert bool(warning) == bool(warned)
    assert any("cannot tell" in note for note in notes) == (choice is None)


@pytest.mark.parametrize("choice", ["t2v", "nonsense"])
def test_a_choice_that_tensors_contradict_is_told(choice: str, tmp_path: Path) -> None:
    path = headers.write_safetensors(tmp_path / "model.safetensors", released("comfy_transformer_i2v_v1_latent_concat"))
    report = inspect_file(path, variant=choice)
    assert report.variant == "i2v_latent_concat"
    assert any("by its tensors the file is i2v_latent_concat" in note for note in report.notes)


def test_the_choice_is_in_the_report(tmp_path: Path) -> None:
    path = headers.write_safetensors(tmp_path / "model.safetensors", released("diffusers_transformer_t2v"))
    assert inspect_file(path, variant="i2v_token_replace").variant == "i2v_token_replace"


def test_groups_tell_storage_and_scheme(tmp_path: Path) -> None:
    entries = STORAGES["tencent fp8"][1](released("tencent_transformer_t2v"))
    report = inspect_file(headers.write_safetensors(tmp_path / "model.safetensors", prefixed("model.", entries)))
    groups = {(group.name, group.dtype, group.scheme): group for group in report.groups}
    assert groups["double_blocks", "float8_e4m3fn", "fp8_scale"].tensors == 200
    assert groups["double_blocks", "float32", "fp8_scale"].tensors == 200
    assert groups["single_blocks", "float8_e4m3fn", "fp8_scale"].parameters == 40 * 3072 * 3072 * 15
    assert groups["txt_in", "bfloat16", "none"].tensors > 0
    assert sum(group.tensors for group in report.groups) == len(entries)
    assert sum(group.num_bytes for group in report.groups) < report.file_size


def test_a_missing_part_is_named_as_in_the_file(tmp_path: Path) -> None:
    """In diffusers' layout q, k and v are three; that two of them stand without the third is one fault, not three."""
    entries = released("diffusers_transformer_t2v")
    del entries["transformer_blocks.3.attn.to_k.weight"]
    del entries["single_transformer_blocks.7.proj_out.bias"]
    entries["proj_out.bias"] = ([63], "bfloat16")
    entries["transformer_blocks.0.extra"] = ([2], "bfloat16")
    path = headers.write_safetensors(tmp_path / "model.safetensors", prefixed("transformer.", entries))
    report = inspect_file(path)
    assert not report.supported
    assert set(report.missing) == {
        "transformer_blocks.3.attn.to_k.weight",
        "single_transformer_blocks.7.proj_out.bias",
    }
    assert report.unexpected == ("transformer_blocks.0.extra",)
    assert report.wrong_shapes == ("proj_out.bias is [63], expected [64]",)


def test_complaints_on_comfyui_files_are_in_their_names(tmp_path: Path) -> None:
    entries = released("comfy_transformer_t2v")
    del entries["double_blocks.4.img_attn.norm.query_norm.scale"]
    report = inspect_file(headers.write_safetensors(tmp_path / "model.safetensors", entries))
    assert report.missing == ("double_blocks.4.img_attn.norm.query_norm.scale",)
    assert report.unexpected == ()


def test_parameters_are_counted_in_every_layout(tmp_path: Path) -> None:
    for name in ("tencent_transformer_t2v", "comfy_transformer_t2v", "diffusers_transformer_t2v"):
        report = inspect_file(headers.write_safetensors(tmp_path / "model.safetensors", released(name)))
        assert report.num_parameters == 12_821_012_544
        assert report.config is not None
        assert math.prod(report.config["patch_size"]) == 4


def test_unscaled_fp8_in_a_scaled_file_is_told(tmp_path: Path) -> None:
    entries = STORAGES["scaled"][1](released("comfy_transformer_t2v"))
    del entries["double_blocks.0.img_attn.qkv.scale_weight"]
    report = inspect_file(headers.write_safetensors(tmp_path / "model.safetensors", entries))
    assert any("without a scale in a scaled file: 1" in note for note in report.notes)


def test_fp8_without_its_scale_map_is_told(tmp_path: Path) -> None:
    """Weights of Tencent's fp8 file and of a plain cast look alike, but only in the first is the last layer not fp8."""
    path = tmp_path / "model.safetensors"
    report = inspect_file(headers.write_safetensors(path, released("tencent_transformer_t2v_fp8")))
    assert any("scale map" in note for note in report.notes)
    headers.write_safetensors(
        tmp_path / "model_map.safetensors", released("tencent_transformer_t2v_fp8", "map_entries")
    )
    assert inspect_file(path).notes[0] == "Its fp8 scales lie beside it, and are used."
    (tmp_path / "model_map.safetensors").unlink()
    report = inspect_file(headers.write_safetensors(path, released("kijai_transformer_t2v_fp8_e4m3fn")))
    assert not any("scale map" in note for note in report.notes)


def test_formats_named_in_the_metadata_count(tmp_path: Path) -> None:
    path, entries = tmp_path / "model.safetensors", released("comfy_transformer_t2v")
    for text, scheme in (
        ('{"layers": {"double_blocks.0.img_mlp.0": {"format": "nvfp4"}}}', "nvfp4"),
        ('{"layers": {"double_blocks.0.img_mlp.0": {"format": "float8_e4m3fn"}}}', "comfyui_quant"),
        ('{"layers": {"double_blocks.0.img_mlp.0": {"format": "int8_blockwise"}}}', "int8_blockwise"),
        ('{"layers": {"double_blocks.0.img_mlp.0": {"format": "int3_of_tomorrow"}}}', "comfyui_other"),
        ('{"layers": {"double_blocks.0.img_mlp.0": {"format": "mxfp8"}}}', "mxfp8"),
        ("not json", "none"),
        ('{"layers": [1]}', "none"),
        ("[" * 100_000, "none"),
    ):
        headers.write_safetensors(path, entries, {"_quantization_metadata": text})
        report = inspect_file(path)
        assert (report.quantization, report.supported) == (scheme, scheme == "none")  # the layer named is in bf16


def test_an_odd_vocabulary_is_told(tmp_path: Path) -> None:
    entries = released("llama_hf") | {"embed_tokens.weight": ([32768, 4096], "float16")}
    report = inspect_file(headers.write_safetensors(tmp_path / "model.safetensors", entries))
    assert report.supported
    assert any("32768 words" in note for note in report.notes)


def test_the_command_line_shows_groups_and_complaints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = STORAGES["scaled"][1](released("comfy_transformer_t2v"))
    del entries["img_in.proj.bias"]
    path = headers.write_safetensors(tmp_path / "model.safetensors", entries)
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "cannot be used: Missing tensors (1): img_in.proj.bias." in text
    assert "missing: img_in.proj.bias" in text
    lines = [line.split(maxsplit=1) for line in text.splitlines()]
    parts = [rest for name, *rest in filter(None, lines) if name == "double_blocks"]
    assert len(parts) == 3  # fp8 weights, their scales, and what stayed as it was
    assert sum("(comfyui_fp8_scaled)" in part for (part,) in parts) == 2


def test_names_without_dots_are_grouped_by_what_comes_before_their_number() -> None:
    report = inspect_file(assets.LORAS["kohya"])
    assert {group.name for group in report.groups} == {"lora_unet_double_blocks", "lora_unet_single_blocks"}
    assert sum(group.tensors for group in report.groups) == report.num_tensors
