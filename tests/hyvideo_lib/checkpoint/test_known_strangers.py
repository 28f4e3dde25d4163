"""Other models' transformers and VAEs in the layouts that their own releases have; diffusers' are told by its modules.

Names and shapes: the models' sources, and the index of the released file where there is one.
"""

from __future__ import annotations

from pathlib import Path

import checkpoint_headers as headers
import pytest
from checkpoint_headers import Entries, prefixed, released

from hyvideo_lib.checkpoint import inspect_file
from hyvideo_lib.checkpoint.known_transformers import PREFIXES, USE_OURS

Sizes = dict[str, tuple[int, ...]]


def both(sizes: Sizes) -> Entries:
    """Linears and convolutions with their biases, from the shapes of their weights."""
    entries: Entries = {}
    for module, shape in sizes.items():
        entries[f"{module}.weight"] = (list(shape), "bfloat16")
        entries[f"{module}.bias"] = ([shape[0]], "bfloat16")
    return entries


def bare(sizes: Sizes) -> Entries:
    return {name: (list(shape), "bfloat16") for name, shape in sizes.items()}


def flux_block(width: int) -> Sizes:
    return {
        "double_blocks.0.img_mod.lin": (6 * width, width),
        "double_blocks.0.img_attn.proj": (width, width),
        "double_blocks.0.img_mlp.0": (4 * width, width),
        "single_blocks.0.linear2": (width, 5 * width),
        "img_in": (width, 64),
        "txt_in": (width, 4096),
        "vector_in.in_layer": (width, 768),
        "final_layer.linear": (64, width),
    }


OPEN_SORA = both(
    flux_block(3072)
    | {f"double_blocks.0.img_attn.{part}_proj": (3072, 3072) for part in "qkv"}
    | {"single_blocks.0.q_proj": (3072, 3072), "single_blocks.0.v_mlp": (15360, 3072), "cond_in": (3072, 68)}
) | bare({"double_blocks.0.img_attn.norm.query_norm.scale": (128,)})
OPEN_SORA_FUSED = both(flux_block(3072) | {"double_blocks.0.img_attn.qkv": (9216, 3072), "cond_in": (3072, 68)}) | bare(
    {"double_blocks.0.img_attn.norm.query_norm.scale": (128,)}
)
KANDINSKY = both(
    {
        "time_embeddings.in_layer": (1024, 4096),
        "pooled_text_embeddings.in_layer": (1024, 768),
        "visual_embeddings.in_layer": (4096, 132),
        "text_transformer_blocks.0.self_attention.to_query": (4096, 4096),
        "visual_transformer_blocks.0.self_attention.to_query": (4096, 4096),
        "visual_transformer_blocks.0.cross_attention.to_key": (4096, 4096),
        "out_layer.out_layer": (64, 4096),
    }
) | bare({"visual_transformer_blocks.0.cross_attention.key_norm.weight": (128,)})
MINIMAX = both(
    {
        "video_patch_proj": (5376, 96),
        "audio_patch_proj": (5376, 32),
        "condition_proj": (5376, 5120),
        "time_embedder.proj_in": (5376, 256),
        "blocks.0.adaln_proj.linear": (96768, 2688),
        "final_layer.video_out": (96, 5376),
    }
) | bare(
    {
        "blocks.0.attn.qkv_proj.weight": (21504, 5376),
        "blocks.0.attn.q_norm.weight": (128,),
        "blocks.0.mlp.fc1.weight": (28672, 5376),
        "token_refiner.blocks.0.attn.qkv_proj.weight": (21504, 5376),
        "rope.inv_freq": (16,),
    }
)
COGVIDEOX_SAT = both(
    {
        "mixins.patch_embed.proj": (3072, 16, 2, 2),
        "mixins.patch_embed.text_proj": (3072, 4096),
        "mixins.adaln_layer.adaLN_modulations.0.1": (36864, 512),
        "mixins.final_layer.linear": (64, 3072),
        "transformer.layers.0.attention.query_key_value": (9216, 3072),
        "transformer.layers.0.mlp.dense_h_to_4h": (12288, 3072),
        "time_embed.0": (512, 3072),
    }
)
COGVIDEOX_COMFYUI = both(
    {
        "patch_embed.proj": (3072, 16, 2, 2),
        "patch_embed.text_proj": (3072, 4096),
        "blocks.0.norm1.linear": (18432, 512),
        "blocks.0.attn1.to_q": (3072, 3072),
        "norm_out.linear": (6144, 512),
    }
)
MOCHI = both(
    {
        "x_embedder.proj": (3072, 12, 2, 2),
        "t_embedder.mlp.0": (3072, 256),
        "t5_yproj": (1536, 4096),
        "t5_y_embedder.to_kv": (8192, 4096),
        "blocks.0.mod_x": (12288, 3072),
        "blocks.0.attn.proj_x": (3072, 3072),
        "final_layer.linear": (48, 3072),
    }
) | bare(
    {
        "blocks.0.attn.qkv_x.weight": (9216, 3072),
        "blocks.0.attn.qkv_y.weight": (9216, 1536),
        "pos_frequencies": (3, 24, 64),
    }
)
FOLEY = both(
    {
        "audio_embedder.proj": (1536, 128, 1),
        "visual_proj.w1": (1536, 768),
        "cond_in.linear_1": (1536, 768),
        "triple_blocks.0.audio_mod.linear": (13824, 1536),
        "triple_blocks.0.audio_self_attn_qkv": (4608, 1536),
        "triple_blocks.0.v_cond_attn_qkv": (4608, 1536),
        "triple_blocks.0.text_cross_kv": (3072, 1536),
        "single_blocks.0.linear1": (1536, 1536, 3),
        "single_blocks.0.modulation.linear": (9216, 1536),
        "final_layer.linear": (128, 1536),
    }
) | bare({"empty_clip_feat": (1, 768), "sync_pos_emb": (1, 1, 8, 768)})
IMAGE_3 = bare(
    {
        "model.wte.weight": (133120, 4096),
        "model.layers.0.self_attn.qkv_proj.weight": (6144, 4096),
        "model.layers.0.self_attn.query_layernorm.weight": (128,),
        "model.layers.0.mlp.gate.wg.weight": (64, 4096),
        "model.layers.0.mlp.shared_mlp.gate_and_up_proj.weight": (6144, 4096),
        "model.layers.0.mlp.experts.0.down_proj.weight": (4096, 3072),
        "lm_head.weight": (133120, 4096),
        "patch_embed.model.0.weight": (1024, 32, 3, 3),
        "vision_model.encoder.layers.0.mlp.fc1.weight": (4304, 1152),
        "vision_model.embeddings.patch_embedding.weight": (1152, 768),
        "vae.decoder.conv_in.weight": (1024, 32, 3, 3, 3),
    }
)
WORLDPLAY_WAN = both(
    {
        "patch_embedding": (3072, 48, 1, 2, 2),
        "condition_embedder.time_embedder.linear_1": (3072, 256),
        "condition_embedder.action_embedder.linear_1": (3072, 256),
        "blocks.0.attn1.to_q": (3072, 3072),
        "blocks.0.attn1.to_out_prope.0": (3072, 3072),
        "blocks.0.attn2.to_q": (3072, 3072),
    }
)
# name -> variant, layout, tensors, words of the verdict
TRANSFORMERS: dict[str, tuple[str, str, Entries, str]] = {
    "Open-Sora 2": ("opensora-2", "native", OPEN_SORA, "an Open-Sora 2 transformer"),
    "Open-Sora 2, fused": ("opensora-2", "native", OPEN_SORA_FUSED, "an Open-Sora 2 transformer"),
    "Kandinsky 5": ("kandinsky-5", "native|diffusers", KANDINSKY, "a Kandinsky 5 transformer"),
    "MiniMax H3": ("minimax-h3", "native", MINIMAX, "a MiniMax H3 transformer"),
    "CogVideoX, SAT": ("cogvideox", "native", COGVIDEOX_SAT, "a CogVideoX transformer"),
    "CogVideoX, ComfyUI": ("cogvideox", "comfyui", COGVIDEOX_COMFYUI, "a CogVideoX transformer"),
    "Mochi": ("mochi", "native", MOCHI, "a Mochi transformer"),
    "Foley": ("hunyuanvideo-foley", "native", FOLEY, "HunyuanVideo-Foley, which makes sound"),
    "HunyuanImage 3": ("hunyuanimage-3", "huggingface", IMAGE_3, "HunyuanImage 3"),
    "WorldPlay on Wan": ("wan-worldplay", "diffusers", WORLDPLAY_WAN, "HY-WorldPlay on Wan"),
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_another_models_own_layout_is_named_with_what_to_use(name: str, prefix: str, tmp_path: Path) -> None:
    variant, layout, entries, words = TRANSFORMERS[name]
    path = headers.write_safetensors(tmp_path / "model.safetensors", prefixed(prefix, entries))
    report = inspect_file(path)
    assert (report.kind, report.variant, report.layout, report.prefix) == ("transformer", variant, layout, prefix)
    assert not report.supported
    assert words in report.reason
    assert report.reason.endswith(USE_OURS)


VAES: dict[str, tuple[Entries, str]] = {
    "Mochi": (
        bare({"decoder.blocks.0.0.weight": (768, 12, 1, 1, 1), "decoder.blocks.0.1.stack.0.weight": (768,)}),
        "Mochi",
    ),
    "Mochi, decoder alone": (bare({"blocks.0.1.stack.0.weight": (768,), "output_proj.weight": (3, 128)}), "Mochi"),
    "MiniMax H3": (
        bare(
            {
                "decoder.transformer_blocks.0.scale1": (2048,),
                "encoder.down.5.block.0.conv1.weight": (1024, 1024, 3, 3, 3),
                "quant_conv.weight": (48, 48, 1, 1, 1),
            }
        ),
        "MiniMax H3",
    ),
    "CogVideoX": (
        bare(
            {
                "decoder.conv_in.conv.weight": (512, 16, 3, 3, 3),
                "decoder.mid.block_1.norm1.conv_y.conv.weight": (512, 16, 1, 1, 1),
                "decoder.up.0.block.0.conv1.conv.weight": (128, 256, 3, 3, 3),
            }
        ),
        "CogVideoX",
    ),
}


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
@pytest.mark.parametrize("name", VAES)
def test_another_models_vae_is_named(name: str, prefix: str, tmp_path: Path) -> None:
    entries, words = VAES[name]
    report = inspect_file(headers.write_safetensors(tmp_path / "vae.safetensors", prefixed(prefix, entries)))
    assert (report.kind, report.supported) == ("vae", False)
    assert f"the VAE of {words}" in report.reason
    assert "Use HunyuanVideo's own VAE" in report.reason


@pytest.mark.parametrize("marker", ["mm_in.linear_1.weight", "action_in.mlp.0.weight"])
def test_a_model_made_of_hunyuanvideo_15_is_named_though_its_attention_is_split(marker: str, tmp_path: Path) -> None:
    """As Tencent's own code of 1.5 has it: q, k and v apart, 2048 wide."""
    entries = both(
        {
            **{f"double_blocks.0.img_attn_{part}": (2048, 2048) for part in ("q", "k", "v", "proj")},
            "txt_in.individual_token_refiner.blocks.0.self_attn_qkv": (6144, 2048),
            "img_in.proj": (2048, 65, 1, 1, 1),
            "byt5_in.fc1": (2048, 1472),
            "vision_in.proj.1": (2048, 1152),
        }
    ) | bare({marker: (2048, 256)})
    report = inspect_file(headers.write_safetensors(tmp_path / "model.safetensors", entries))
    assert report.variant == ("omniweaving" if marker.startswith("mm_in") else "worldplay")
    assert "HunyuanVideo 1.5" in report.reason


@pytest.mark.parametrize("scheme", ["tencent", "comfy", "diffusers"])
@pytest.mark.parametrize("release", ["t2v", "i2v_v1_latent_concat", "i2v_v2_token_replace"])
def test_no_released_hunyuanvideo_is_taken_for_another_model(scheme: str, release: str, tmp_path: Path) -> None:
    entries = released(f"{scheme}_transformer_{release}")
    assert inspect_file(headers.write_safetensors(tmp_path / "model.safetensors", entries)).supported
