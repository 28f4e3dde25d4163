"""Which model a LoRA is for: by what trainers write into headers, by names of modules, by the width of layers."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoint_headers as headers
import pytest
from checkpoint_headers import Entries

from hyvideo_lib.checkpoint import FileReport, inspect_file
from hyvideo_lib.checkpoint.lora_models import LORA_MODELS, MAX_ENTRY, lora_model
from hyvideo_lib.checkpoint.read import read_header
from hyvideo_lib.errors import UnsupportedFile
from hyvideo_lib.lora import check_names, read_lora
from hyvideo_lib.lora.read import RELEASED, resolve

RANK = 4
KOHYA = (".lora_down.weight", ".lora_up.weight")
PEFT = (".lora_A.weight", ".lora_B.weight")


def lora(modules: dict[str, tuple[int, int]], endings: tuple[str, str] = PEFT) -> Entries:
    """Pairs of matrices for modules of so many rows and columns."""
    entries: Entries = {}
    for module, (rows, columns) in modules.items():
        entries[module + endings[0]] = ([RANK, columns], "float16")
        entries[module + endings[1]] = ([rows, RANK], "float16")
    return entries


OURS = lora(
    {"lora_unet_double_blocks_0_img_attn_qkv": (9216, 3072), "lora_unet_single_blocks_3_linear1": (21504, 3072)}, KOHYA
)
OURS_DIFFUSERS = lora(
    {
        "lora_unet_transformer_blocks_0_attn_to_q": (3072, 3072),
        "lora_unet_transformer_blocks_0_ff_net_0_proj": (12288, 3072),
        "lora_unet_single_transformer_blocks_5_proj_mlp": (12288, 3072),
    },
    KOHYA,
)


def report_of(folder: Path, entries: Entries, metadata: dict[str, str] | None = None) -> FileReport:
    return inspect_file(headers.write_safetensors(folder / "lora.safetensors", entries, metadata))


# What trainers write: the entry, its value, the model that is named (None: HunyuanVideo's own)
STATED = [
    ("modelspec.architecture", "hunyuan-video/lora", None),  # musubi-tuner, OneTrainer
    ("modelspec.architecture", "hunyuan-video", None),
    ("modelspec.architecture", "hunyuan-video-t2v-720p/lora", None),
    ("ss_base_model_version", "hunyuan_video", None),
    ("ss_base_model_version", "hunyuanvideo of flux", None),
    ("ss_network_module", "networks.lora", None),
    ("modelspec.implementation", "https://github.com/Tencent/HunyuanVideo", None),
    ("modelspec.implementation", "https://github.com/huggingface/diffusers", None),
    ("modelspec.implementation", "https://github.com/kohya-ss/sd-scripts", None),
    ("modelspec.architecture", "", None),
    ("modelspec.architecture", "hunyuan-video-1.5/lora", "hunyuanvideo-1.5"),
    ("ss_base_model_version", "hunyuan_video_1_5", "hunyuanvideo-1.5"),
    ("ss_network_module", "networks.lora_hv_1_5", "hunyuanvideo-1.5"),
    ("modelspec.implementation", "https://github.com/Tencent-Hunyuan/HunyuanVideo-1.5", "hunyuanvideo-1.5"),
    ("modelspec.architecture", "framepack/lora", "framepack"),
    ("ss_base_model_version", "framepack", "framepack"),
    ("ss_network_module", "networks.lora_framepack", "framepack"),
    ("modelspec.implementation", "https://github.com/lllyasviel/FramePack", "framepack"),
    ("modelspec.architecture", "hunyuan-video-i2v/lora", "i2v"),
    ("ss_base_model_version", "hunyuan_video_i2v", "i2v"),
    ("modelspec.architecture", "hunyuan-image-2.1/lora", "hunyuanimage-2.1"),  # sd-scripts
    ("modelspec.architecture", "HunyuanImage-3.0", "hunyuanimage-3"),
    ("modelspec.architecture", "flux-1-dev/lora", "flux"),
    ("modelspec.architecture", "Flux.1-dev/lora", "flux"),
    ("modelspec.architecture", "Flux.2-dev/lora", "flux"),
    ("ss_base_model_version", "flux_kontext", "flux"),
    ("modelspec.architecture", "Kandinsky-5/lora", "kandinsky-5"),
    ("ss_base_model_version", "kandinsky5", "kandinsky-5"),
    ("ss_base_model_version", "minimax_h3_ref2va", "minimax-h3"),  # ai-toolkit
    ("modelspec.architecture", "wan2.1/lora", "wan"),
    ("ss_base_model_version", "wan_2.2_14b", "wan"),
    ("ss_network_module", "networks.lora_wan", "wan"),
    ("modelspec.architecture", "Qwen-Image/lora", "qwen-image"),
    ("ss_base_model_version", "qwen_image", "qwen-image"),
    ("ss_base_model_version", "ltxv", "ltx"),
    ("ss_base_model_version", "ltx2", "ltx"),
    ("ss_base_model_version", "CogVideoX", "cogvideox"),
    ("ss_base_model_version", "mochi-1", "mochi"),
    ("modelspec.architecture", "stable-diffusion-v1/lora", "stable-diffusion"),
    ("ss_base_model_version", "stable_diffusion_2", "stable-diffusion"),
    ("ss_base_model_version", "sd_1.5", "stable-diffusion"),
    ("ss_base_model_version", "sd_v1", "stable-diffusion"),
    ("modelspec.architecture", "stable-diffusion-xl-v1-base/lora", "sdxl"),
    ("ss_base_model_version", "sdxl_base_v1-0", "sdxl"),
    ("ss_base_model_version", "sd3-medium", "sd3"),
    ("modelspec.architecture", "stable-diffusion-3-m", "sd3"),
    ("modelspec.architecture", "Z-Image/lora", "z-image"),
    ("modelspec.architecture", "Krea-2/lora", "krea-2"),
]
USABLE = {"framepack", "i2v"}


@pytest.mark.parametrize(("entry", "value", "variant"), STATED)
def test_a_trainers_word_for_the_model_is_understood(
    entry: str, value: str, variant: str | None, tmp_path: Path
) -> None:
    report = report_of(tmp_path, OURS, {entry: value})
    is_usable = variant is None or variant in USABLE
    assert (report.variant, report.supported) == (variant or "", is_usable), report.reason
    if is_usable:
        assert any(entry in note for note in report.notes) == (variant is not None)
        resolve(read_header(report.path), RELEASED)
    else:
        assert entry in report.reason
        assert "Use one for HunyuanVideo (13B)." in report.reason
        with pytest.raises(UnsupportedFile, match="another model"):
            check_names(report.path)


def test_a_framepack_lora_has_our_names_and_is_named_by_its_header(tmp_path: Path) -> None:
    metadata = {
        "ss_base_model_version": "framepack",
        "ss_network_module": "networks.lora_framepack",
        "modelspec.architecture": "framepack/lora",
    }
    plain = report_of(tmp_path, OURS_DIFFUSERS)
    told = report_of(tmp_path, OURS_DIFFUSERS, metadata)
    assert (plain.supported, plain.variant, plain.notes) == (True, "", ())
    assert (told.supported, told.variant, told.layout) == (True, "framepack", plain.layout)
    assert told.notes == (
        "It was trained on FramePack, whose layers have the names and sizes of HunyuanVideo's: it loads and acts, but "
        "less truly than there. (Its header says 'framepack/lora' (modelspec.architecture).)",
    )


@pytest.mark.parametrize("module", ["clean_x_embedder.proj", "image_projection.up"])
def test_a_framepack_lora_is_named_by_modules_that_only_framepack_has(module: str, tmp_path: Path) -> None:
    entries = lora({f"transformer.{module}": (3072, 64), "transformer.transformer_blocks.0.attn.to_q": (3072, 3072)})
    report = report_of(tmp_path, entries)
    assert (report.supported, report.variant) == (True, "framepack")
    assert resolve(read_header(report.path), RELEASED).unmatched


NAMES = [
    ("ss_sd_model_name", "hunyuan_video_I2V_720_fixed_bf16.safetensors", "i2v"),
    ("ss_sd_model_name", "hunyuan_video_image_to_video_720p_bf16.safetensors", "i2v"),
    ("ss_sd_model_name", "FramePackI2V_HY_bf16.safetensors", "framepack"),
    ("ss_output_name", "my_style_i2v_v2", "i2v"),
    ("base_model_name_or_path", "hunyuanvideo-community/HunyuanVideo-I2V", "i2v"),
    ("base_model_name_or_path", "lllyasviel/FramePackI2V_HY", "framepack"),
    ("ss_sd_model_name", "hunyuan_video_720_cfgdistill_bf16.safetensors", ""),
    ("ss_sd_model_name", "flux1-dev.safetensors", ""),  # a name proves nothing against it
    ("base_model_name_or_path", "tencent/HunyuanVideo", ""),
]


@pytest.mark.parametrize(("entry", "value", "variant"), NAMES)
def test_a_name_in_the_header_hints_and_refuses_nothing(entry: str, value: str, variant: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, OURS, {entry: value})
    assert (report.supported, report.variant) == (True, variant)
    assert any(entry in note for note in report.notes) == bool(variant)


@pytest.mark.parametrize("key", ["base_model_name_or_path", "transformer.base_model_name_or_path"])
def test_pefts_configuration_in_the_header_names_the_model(key: str, tmp_path: Path) -> None:
    metadata = {"lora_adapter_metadata": json.dumps({key: "hunyuanvideo-community/HunyuanVideo-I2V", "r": RANK})}
    assert report_of(tmp_path, OURS, metadata).variant == "i2v"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '["base_model_name_or_path"]',
        '{"base_model_name_or_path": null}',
        "[" * 100_000 + "base_model_name_or_path",
    ],
)
def test_a_damaged_configuration_says_nothing(text: str) -> None:
    assert lora_model({"lora_adapter_metadata": text}, ()) is None


def test_an_entry_is_looked_at_to_a_bound() -> None:
    assert lora_model({"modelspec.architecture": " " * MAX_ENTRY + "flux"}, ()) is None


def test_tencents_own_lora_for_image_to_video_loads_with_a_note(tmp_path: Path) -> None:
    entries = lora({"Hunyuan_video_I2V_lora_double_blocks_0_img_attn_qkv": (9216, 3072)}, KOHYA)
    report = report_of(tmp_path, entries)
    assert (report.supported, report.variant, report.layout) == (True, "i2v", "tencent_i2v")
    assert any("image-to-video" in note for note in report.notes)


def test_the_models_of_the_table_have_different_names() -> None:
    variants = [model.variant for model in LORA_MODELS]
    assert len(set(variants)) == len(variants)


# name -> its modules with rows and columns, words of the verdict
V15, WIDE = 2048, 3072
OTHERS: dict[str, tuple[dict[str, tuple[int, int]], tuple[str, str], str]] = {
    "1.5 musubi": ({"lora_unet_double_blocks_0_img_attn_q": (V15, V15)}, KOHYA, "HunyuanVideo 1.5"),
    "1.5 diffusion-pipe": ({"diffusion_model.double_blocks.7.txt_attn_v": (V15, V15)}, PEFT, "HunyuanVideo 1.5"),
    "1.5 ComfyUI, joined": ({"lora_unet_double_blocks_0_img_attn_qkv": (3 * V15, V15)}, KOHYA, "HunyuanVideo 1.5"),
    "1.5 ComfyUI, all blocks": (
        {f"diffusion_model.double_blocks.{index}.img_attn.qkv": (3 * V15, V15) for index in range(54)},
        PEFT,
        "HunyuanVideo 1.5",
    ),
    "1.5 diffusers": (
        {f"transformer.transformer_blocks.{index}.attn.to_q": (V15, V15) for index in range(54)},
        PEFT,
        "HunyuanVideo 1.5",
    ),
    "1.5 diffusers, one block": ({"transformer.transformer_blocks.0.attn.to_q": (V15, V15)}, PEFT, "HunyuanVideo 1.5"),
    "HunyuanImage 2.1": ({"lora_unet_double_blocks_0_img_attn_proj": (3584, 3584)}, KOHYA, "HunyuanImage 2.1"),
    "HunyuanImage 3": ({"transformer.model.layers.0.mlp.shared_mlp.down_proj": (4096, 3072)}, PEFT, "HunyuanImage 3"),
    "Kandinsky 5": (
        {"lora_unet_visual_transformer_blocks_0_self_attention_to_query": (1792, 1792)},
        KOHYA,
        "Kandinsky 5",
    ),
    "Kandinsky 5, diffusers": (
        {"transformer.visual_transformer_blocks.0.feed_forward.in_layer": (7168, 1792)},
        PEFT,
        "Kandinsky 5",
    ),
    "MiniMax H3": ({"diffusion_model.blocks.0.attn.qkv_proj": (21504, 5376)}, PEFT, "MiniMax H3"),
    "MiniMax H3, diffusers": ({"transformer.transformer_blocks.0.attn.to_k": (7168, 5376)}, PEFT, "MiniMax H3"),
    "Open-Sora 2": ({"diffusion_model.double_blocks.0.img_attn.q_proj": (WIDE, WIDE)}, PEFT, "Open-Sora 2"),
    "Mochi": ({"diffusion_model.blocks.0.attn.qkv_x": (9216, WIDE)}, PEFT, "Mochi"),
    "Mochi, diffusers": ({"transformer.transformer_blocks.0.attn1.add_q_proj": (WIDE, 1536)}, PEFT, "Mochi"),
    "CogVideoX": ({"transformer.transformer_blocks.0.attn1.to_q": (WIDE, WIDE)}, PEFT, "CogVideoX, LTX-Video or Mochi"),
    "LTX": ({"transformer.transformer_blocks.0.attn2.to_q": (2048, 2048)}, PEFT, "LTX-Video"),
    "Qwen-Image": (
        {
            "transformer.transformer_blocks.0.attn.to_q": (WIDE, WIDE),
            "transformer.transformer_blocks.0.img_mlp.net.2": (WIDE, 12288),
        },
        PEFT,
        "Qwen-Image",
    ),
    "60 blocks of our width": (
        {f"transformer.transformer_blocks.{index}.attn.to_q": (WIDE, WIDE) for index in range(60)},
        PEFT,
        "more blocks than HunyuanVideo's 20 and 40",
    ),
    "Flux, diffusers": (
        {f"transformer.transformer_blocks.{index}.attn.to_q": (WIDE, WIDE) for index in range(19)}
        | {f"transformer.single_transformer_blocks.{index}.attn.to_q": (WIDE, WIDE) for index in range(38)},
        PEFT,
        "Flux",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_lora_for_another_model_is_named_without_any_metadata(name: str, tmp_path: Path) -> None:
    modules, endings, words = OTHERS[name]
    report = report_of(tmp_path, lora(modules, endings))
    assert (report.kind, report.supported) == ("lora", False)
    assert f"for another model, {words}" in report.reason or f"for another model, one with {words}" in report.reason
    with pytest.raises(UnsupportedFile, match="for another model"):
        read_lora(report.path, RELEASED)
