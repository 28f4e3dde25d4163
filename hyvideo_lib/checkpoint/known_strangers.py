"""Rows of the table of known files: transformers of other models, whose names have nothing to do with ours.

Facts: the models' sources, the indices of the released files and, for the diffusers scheme, that library's own modules.
"""

from __future__ import annotations

from .known_transformers import PREFIXES, USE_OURS
from .layout import Layout

_OTHER_MODEL = f"It belongs to another model; HunyuanVideo cannot use it. {USE_OURS}"


def _stranger(variant: str, title: str, layout: str, *markers: str, **conditions: object) -> Layout:
    """Another model, whose names have nothing to do with ours."""
    refusal = f"This is {title}. {_OTHER_MODEL}"
    return Layout("transformer", layout, markers, PREFIXES, variant, refusal=refusal, **conditions)  # type: ignore[arg-type]


_OPEN_SORA = "an Open-Sora 2 transformer"
_KANDINSKY = "a Kandinsky 5 transformer"
_MINIMAX = "a MiniMax H3 transformer, which makes video with sound"
_COGVIDEOX = "a CogVideoX transformer"
_MOCHI = "a Mochi transformer"

STRANGERS = (
    # Flux' blocks, with q, k and v apart, and a second patch embedding for what a video begins with.
    _stranger("opensora-2", _OPEN_SORA, "native", "double_blocks.0.img_attn.q_proj.", "single_blocks.0.v_mlp."),
    _stranger("opensora-2", _OPEN_SORA, "native", "double_blocks.0.img_attn.qkv.", "cond_in."),
    _stranger("flux", "a Flux transformer", "comfyui", "double_blocks.0.img_attn.qkv."),
    _stranger(
        "flux",
        "a Flux transformer",
        "diffusers",
        "transformer_blocks.0.attn.to_q.",
        "single_transformer_blocks.0.attn.",
    ),
    _stranger(
        "wan-worldplay",
        "HY-WorldPlay on Wan, which follows a camera",
        "diffusers",
        "blocks.0.attn1.to_out_prope.|condition_embedder.action_embedder.",
        "condition_embedder.",
    ),
    _stranger("wan", "a Wan transformer", "native", "blocks.0.self_attn.q.", "blocks.0.cross_attn.q."),
    _stranger(
        "wan", "a Wan transformer", "diffusers", "blocks.0.attn1.to_q.", "blocks.0.attn2.to_q.", "condition_embedder."
    ),
    _stranger("ltx", "an LTX-Video transformer", "native", "patchify_proj.", "transformer_blocks.0.attn1.to_q."),
    _stranger(
        "ltx",
        "an LTX-Video transformer",
        "diffusers",
        "transformer_blocks.0.scale_shift_table",
        "transformer_blocks.0.attn1.to_q.",
    ),
    _stranger(
        "kandinsky-5", _KANDINSKY, "native|diffusers", "visual_transformer_blocks.0.", "text_transformer_blocks.0."
    ),
    _stranger(
        "kandinsky-6",
        "a Kandinsky 6 transformer, which makes video with sound",
        "diffusers",
        "visual_transformer_blocks.0.",
        "video_text_transformer_blocks.0.",
    ),
    _stranger("minimax-h3", _MINIMAX, "native", "video_patch_proj.", "audio_patch_proj.", "blocks.0.attn.qkv_proj."),
    _stranger("minimax-h3", _MINIMAX, "diffusers", "audio_proj_in.", "transformer_blocks.0.adaln_proj."),
    _stranger("cogvideox", _COGVIDEOX, "native", "mixins.patch_embed.", "mixins.final_layer."),
    _stranger("cogvideox", _COGVIDEOX, "diffusers", "patch_embed.text_proj.", "transformer_blocks.0.norm1.linear."),
    _stranger("cogvideox", _COGVIDEOX, "comfyui", "patch_embed.text_proj.", "blocks.0.norm1.linear."),
    _stranger("mochi", _MOCHI, "native", "t5_yproj.", "blocks.0.attn.qkv_x."),
    _stranger("mochi", _MOCHI, "diffusers", "time_embed.pooler.", "transformer_blocks.0.attn1.add_q_proj."),
    _stranger(
        "hunyuanvideo-foley",
        "HunyuanVideo-Foley, which makes sound for a video that is there, and no picture",
        "native",
        "triple_blocks.0.audio_self_attn_qkv.",
        "audio_embedder.",
    ),
    _stranger(
        "hunyuanimage-3",
        "HunyuanImage 3, a language model that makes single images",
        "huggingface",
        "model.wte.",
        "model.layers.0.self_attn.qkv_proj.",
    ),
    Layout(
        "controlnet",
        "native",
        ("after_proj_list.0.", "blocks.0."),
        PREFIXES,
        "hunyuandit",
        refusal=f"This is a ControlNet for HunyuanDiT, a model for single images. {_OTHER_MODEL}",
    ),
    Layout(
        "controlnet",
        "diffusers",
        ("controlnet_blocks.0.", "text_embedding_padding", "time_extra_emb."),
        PREFIXES,
        "hunyuandit",
        refusal=f"This is a ControlNet for HunyuanDiT, a model for single images. {_OTHER_MODEL}",
    ),
    Layout(
        "controlnet",
        "other",
        ("controlnet_blocks.0.|control_model.|controlnet_cond_embedding.",),
        PREFIXES,
        refusal=f"This is a ControlNet. {_OTHER_MODEL}",
    ),
    _stranger(
        "hunyuandit-1.0",
        "HunyuanDiT 1.0 or 1.1, a model for single images",
        "native",
        "mlp_t5.0.",
        "blocks.0.",
        shapes=(("extra_embedder.0.weight", (None, 3968)),),
    ),
    _stranger("hunyuandit-1.2", "HunyuanDiT 1.2, a model for single images", "native", "mlp_t5.0.", "blocks.0."),
    _stranger(
        "hunyuandit-1.0",
        "HunyuanDiT 1.0 or 1.1, a model for single images",
        "diffusers",
        "time_extra_emb.style_embedder.",
        "blocks.0.attn1.",
    ),
    _stranger(
        "hunyuandit-1.2",
        "HunyuanDiT 1.2, a model for single images",
        "diffusers",
        "time_extra_emb.extra_embedder.",
        "blocks.0.attn1.",
    ),
    _stranger("stable-diffusion", "a Stable Diffusion model", "native", "input_blocks.0.0.", "middle_block.0."),
)
