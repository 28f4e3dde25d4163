"""Every way in which LoRA files are written: prefixes, module names and matrix names, in all their combinations."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import checkpoint_headers as headers
import pytest
from checkpoint_headers import LAYOUTS, Entries

from hyvideo_lib.checkpoint import inspect_file

RANK = 16
MODULES = {  # module names -> (rows, columns) of their matrices
    "tencent": {
        "double_blocks.0.img_attn_qkv": (9216, 3072),
        "double_blocks.19.txt_mlp.fc1": (12288, 3072),
        "double_blocks.3.img_mod.linear": (18432, 3072),
        "single_blocks.39.linear1": (21504, 3072),
    },
    "comfyui": {
        "double_blocks.0.img_attn.qkv": (9216, 3072),
        "double_blocks.19.txt_mlp.0": (12288, 3072),
        "double_blocks.3.img_mod.lin": (18432, 3072),
        "single_blocks.39.linear1": (21504, 3072),
        "txt_in.individual_token_refiner.blocks.0.self_attn.qkv": (9216, 3072),
    },
    "diffusers": {
        "transformer_blocks.0.attn.to_q": (3072, 3072),
        "transformer_blocks.19.ff_context.net.0.proj": (12288, 3072),
        "single_transformer_blocks.39.proj_mlp": (12288, 3072),
        "context_embedder.token_refiner.refiner_blocks.1.attn.to_k": (3072, 3072),
    },
}
ENDINGS = {  # name -> (of the matrix that is multiplied first, of the other one)
    "lora_down": (".lora_down.weight", ".lora_up.weight"),
    "lora_A": (".lora_A.weight", ".lora_B.weight"),
    "lora_A.default": (".lora_A.default.weight", ".lora_B.default.weight"),
    "lora_A bare": (".lora_A", ".lora_B"),
    "_lora.down": ("_lora.down.weight", "_lora.up.weight"),
    "lora.down": (".lora.down.weight", ".lora.up.weight"),
    "lora_linear_layer": (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
}
# (prefix, module names) -> family in the recorded table
FAMILIES = {
    ("lora_unet_", "tencent"): "kohya_musubi",
    ("lora_unet_", "comfyui"): "comfy_lora_unet",
    ("diffusion_model.", "tencent"): "diffusion_pipe",
    ("transformer.", "tencent"): "diffusion_pipe",
    ("diffusion_model.", "comfyui"): "comfy_generic",
    ("Hunyuan_video_I2V_lora_", "tencent"): "tencent_i2v",
    ("transformer.", "diffusers"): "diffusers_peft",
    ("base_model.model.", "tencent"): "peft_raw",
    ("base_model.model.", "comfyui"): "peft_raw",
    ("base_model.model.", "diffusers"): "peft_raw",
    ("lora_transformer_", "diffusers"): "onetrainer_lycoris",
    ("lycoris_", "diffusers"): "onetrainer_lycoris",
    ("diffusion_model.", "diffusers"): "fal",
    ("", "tencent"): "fal",
    ("", "diffusers"): "fal",
}


def lora(prefix: str, names: str, endings: tuple[str, str], has_alpha: bool = False) -> Entries:
    entries: Entries = {}
    for module, (rows, columns) in MODULES[names].items():
        path = prefix + (module.replace(".", "_") if prefix.endswith("_") else module)
        entries[path + endings[0]] = ([RANK, columns], "bfloat16")
        entries[path + endings[1]] = ([rows, RANK], "bfloat16")
        if has_alpha:
            entries[f"{path}.alpha"] = ([], "float32")
    return entries


CASES = [(prefix, names, ending) for (prefix, names), ending in itertools.product(FAMILIES, ENDINGS)]


@pytest.mark.parametrize(("prefix", "names", "ending"), CASES)
@pytest.mark.parametrize("has_alpha", [False, True])
def test_a_family_is_named(prefix: str, names: str, ending: str, has_alpha: bool, tmp_path: Path) -> None:
    entries = lora(prefix, names, ENDINGS[ending], has_alpha)
    report = inspect_file(headers.write_safetensors(tmp_path / "lora.safetensors", entries))
    assert (report.kind, report.layout, report.supported) == ("lora", FAMILIES[prefix, names], True), report.reason
    assert report.config == {
        "matrices": ending,
        "module_names": names,
        "modules": len(MODULES[names]),
        "ranks": (RANK,),
        "has_alpha": has_alpha,
        "in_channels": None,
    }


def test_all_recorded_families_are_covered(capsys: pytest.CaptureFixture[str]) -> None:
    recorded = {row["id"] for row in json.loads((LAYOUTS / "lora_layouts.json").read_text())["layouts"]}
    assert recorded == set(FAMILIES.values())
    with capsys.disabled():
        print(f"\n{2 * len(CASES)} synthetic headers of LoRAs")


METHODS = {  # for a matrix of 9216 x 3072
    "DoRA": {".lora_down.weight": [16, 3072], ".lora_up.weight": [9216, 16], ".dora_scale": [9216, 1]},
    "LoHa": {".hada_w1_a": [9216, 4], ".hada_w1_b": [4, 3072], ".hada_w2_a": [9216, 4], ".hada_w2_b": [4, 3072]},
    "LoKr": {".lokr_w1": [96, 48], ".lokr_w2_a": [96, 4], ".lokr_w2_b": [4, 64]},
    "OFT": {".oft_blocks": [96, 96, 96]},
}


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_are_told_and_held_to_the_layers(method: str, tmp_path: Path) -> None:
    path = "lora_unet_double_blocks_0_img_attn_qkv"
    entries: Entries = {path + end: (shape, "bfloat16") for end, shape in METHODS[method].items()}
    report = inspect_file(headers.write_safetensors(tmp_path / "lora.safetensors", entries))
    assert (report.kind, report.supported) == ("lora", True), report.reason
    assert report.config is not None
    assert report.config["matrices"] == method
    for name in entries:
        odd = entries | {name: ([7], "bfloat16")}
        report = inspect_file(headers.write_safetensors(tmp_path / "odd.safetensors", odd))
        assert (report.kind, report.supported) == ("lora", False)
        assert "does not fit this transformer" in report.reason


REFUSED = {"BOFT": ".boft_R", "(IA)3": ".on_input", "GLoRA": ".a1.weight", "replacement weights": ".set_weight"}


@pytest.mark.parametrize(("method", "ending"), REFUSED.items())
def test_methods_that_are_not_applied_are_refused_by_name(method: str, ending: str, tmp_path: Path) -> None:
    for more in (lora("lora_unet_", "tencent", ENDINGS["lora_down"]), {}):
        entries = more | {f"lora_unet_double_blocks_0_img_attn_qkv{ending}": ([16], "bfloat16")}
        report = inspect_file(headers.write_safetensors(tmp_path / "lora.safetensors", entries))
        assert (report.kind, report.supported) == ("lora", False)
        assert f"is {method} (" in report.reason


OTHERS = {
    "wan": "diffusion_model.blocks.0.self_attn.q",
    "wan kohya": "lora_unet_blocks_0_cross_attn_k",
    "wan diffusers": "transformer.blocks.0.attn1.to_q",
    "ltx": "transformer.transformer_blocks.0.attn1.to_q",
    "stable diffusion": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    "1.5": "diffusion_model.double_blocks.53.img_attn_q",
    "unknown": "diffusion_model.layers.0.attention",
}


@pytest.mark.parametrize("module", OTHERS.values(), ids=OTHERS)
def test_loras_for_other_models_are_told(module: str, tmp_path: Path) -> None:
    entries: Entries = {f"{module}.lora_A.weight": ([4, 8], "float16"), f"{module}.lora_B.weight": ([8, 4], "float16")}
    report = inspect_file(headers.write_safetensors(tmp_path / "lora.safetensors", entries))
    assert (report.kind, report.layout, report.supported) == ("lora", "other", False)
    assert "another model" in report.reason


def test_flux_is_told_by_its_blocks(tmp_path: Path) -> None:
    """The modules of the two models have the same names and sizes; only how many there are differs."""
    down, up = ENDINGS["lora_down"]
    modules = {f"lora_unet_double_blocks_{index}_img_mlp_0": 12288 for index in range(19)}
    modules |= {f"lora_unet_single_blocks_{index}_linear1": 21504 for index in range(38)}
    entries: Entries = {f"{module}{down}": ([4, 3072], "float16") for module in modules}
    entries |= {f"{module}{up}": ([rows, 4], "float16") for module, rows in modules.items()}
    path = headers.write_safetensors(tmp_path / "lora.safetensors", entries)
    assert (inspect_file(path).layout, inspect_file(path).supported) == ("flux", False)
    fewer = {name: value for name, value in entries.items() if "single_blocks_37" not in name}
    path = headers.write_safetensors(path, fewer)
    assert (inspect_file(path).layout, inspect_file(path).supported) == ("comfy_lora_unet", True)


def test_what_a_lora_says_of_itself_counts(tmp_path: Path) -> None:
    entries = lora("lora_unet_", "comfyui", ENDINGS["lora_down"])
    metadata = {"modelspec.architecture": "flux-1-dev/lora"}
    report = inspect_file(headers.write_safetensors(tmp_path / "lora.safetensors", entries, metadata))
    assert not report.supported
    assert "flux-1-dev/lora" in report.reason


def test_a_lora_on_the_patch_embedding_tells_its_channels(tmp_path: Path) -> None:
    entries = lora("diffusion_model.", "tencent", ENDINGS["lora_A"])
    entries["diffusion_model.img_in.proj.lora_A.weight"] = ([16, 32, 1, 2, 2], "bfloat16")
    entries["diffusion_model.img_in.proj.lora_B.weight"] = ([3072, 16, 1, 1, 1], "bfloat16")
    report = inspect_file(headers.write_safetensors(tmp_path / "lora.safetensors", entries))
    assert report.supported
    assert any("takes 32 channels" in note for note in report.notes)


def test_differences_alone_are_a_lora(tmp_path: Path) -> None:
    entries: Entries = {
        "diffusion_model.double_blocks.0.img_attn.proj.diff": ([3072, 3072], "bfloat16"),
        "diffusion_model.double_blocks.0.img_attn.proj.diff_b": ([3072], "bfloat16"),
    }
    report = inspect_file(headers.write_safetensors(tmp_path / "lora.safetensors", entries))
    assert (report.kind, report.layout, report.supported) == ("lora", "comfy_generic", True)


def test_a_model_that_holds_one_stray_lora_tensor_is_a_model(tmp_path: Path) -> None:
    entries = headers.released("clip_l_text") | {"text_model.lora_A.weight": ([4, 4], "float16")}
    report = inspect_file(headers.write_safetensors(tmp_path / "clip.safetensors", entries))
    assert report.kind == "clip"
    assert report.unexpected == ("text_model.lora_A.weight",)
