"""Rows of the table of known files: HunyuanVideo's transformers in their three naming schemes, and its relatives'.

Facts: the released files' key lists, the models' sources and, for the diffusers scheme, that library's own modules.
"""

from __future__ import annotations

from .layout import Layout, Shape

PREFIXES = (
    "",
    "model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "model.",
    "transformer.",
    "module.",
    "vae.",
)

_REFINER = "txt_in.individual_token_refiner."

# naming scheme -> (what its blocks are called, what its text refiner is called, the weight of its patch embedding)
SCHEMES = {
    "tencent": ("double_blocks.0.img_attn_qkv.|double_blocks.0.img_attn_q.", _REFINER, "img_in.proj.weight"),
    "comfyui": ("double_blocks.0.img_attn.qkv.", _REFINER, "img_in.proj.weight"),
    "diffusers": (
        "transformer_blocks.0.attn.to_q.|transformer_blocks.0.attn.add_q_proj.",
        "context_embedder.token_refiner.",
        "x_embedder.proj.weight",
    ),
}

USE_OURS = "Use a HunyuanVideo transformer (text to video or image to video, 13B)."


def _relative(
    variant: str,
    title: str,
    *markers: str,
    patch: Shape | None = None,
    absent: tuple[str, ...] = (),
    schemes: tuple[str, ...] = tuple(SCHEMES),
) -> tuple[Layout, ...]:
    """A model of the family that cannot be used: a row for each naming scheme. patch: of its patch embedding."""
    return tuple(
        Layout(
            "transformer",
            scheme,
            (*SCHEMES[scheme][:2], *markers),
            PREFIXES,
            variant,
            absent,
            ((SCHEMES[scheme][2], patch),) if patch else (),
            refusal=f"This is {title}. {USE_OURS}",
        )
        for scheme in schemes
    )


_COND_TYPE = "cond_type_embedding.|cond_type_embed.|vision_in.|image_embedder.norm_in."
_OWN = ("tencent", "comfyui")  # the schemes of models that diffusers does not have
_SECOND_TEXT = "byt5_in.|context_embedder_2.|time_guidance_embed."

ROWS = (
    *_relative(
        "worldplay",
        "HY-WorldPlay, HunyuanVideo 1.5 steered by keys and a camera, a different architecture",
        "action_in.|double_blocks.0.img_attn_prope_proj.",
        schemes=_OWN,
    ),
    *_relative(
        "omniweaving",
        "OmniWeaving, HunyuanVideo 1.5 for references and edits, a different architecture",
        "mm_in.",
        schemes=_OWN,
    ),
    *_relative(
        "hunyuanvideo-1.5-sr",
        "the super-resolution model of HunyuanVideo 1.5, a different architecture",
        _COND_TYPE,
        patch=(None, 98, None, None, None),
    ),
    *_relative("hunyuanvideo-1.5", "HunyuanVideo 1.5, a different architecture", _COND_TYPE),
    *_relative("hunyuanimage-2.1", "HunyuanImage 2.1, a model for single images", patch=(None, None, None, None)),
    *_relative(
        "hunyuanimage-2.1-refiner",
        "the refiner of HunyuanImage 2.1",
        patch=(None, None, 1, 1, 1),
        absent=("vector_in.", "time_text_embed.text_embedder."),
    ),
    *_relative("hunyuanvideo-1.5", "HunyuanVideo 1.5, a different architecture", _SECOND_TEXT),
    *_relative(
        "avatar",
        "HunyuanVideo-Avatar, which is driven by sound and is not supported",
        "audio_adapter_blocks.|motion_exp.|motion_pose.",
    ),
    *_relative(
        "custom_audio",
        "the audio form of HunyuanCustom, which is not supported",
        "audio_models.|audio_proj.",
    ),
    *_relative(
        "custom_editing",
        "the video-editing form of HunyuanCustom, which is not supported",
        "bg_proj.|bg_in.",
    ),
    *_relative(
        "gamecraft",
        "Hunyuan-GameCraft, which is steered by keys and a camera and is not supported",
        "camera_net.",
        schemes=_OWN,
    ),
    *_relative(
        "voyager",
        "HunyuanWorld-Voyager, which makes colour and depth along a camera's path and is not supported",
        "condition_in.|context_block1.|zero_linear1.",
        schemes=_OWN,
    ),
    *_relative(
        "framepack",
        "a FramePack transformer, which is not supported yet",
        "clean_x_embedder.|image_projection.",
    ),
    Layout("transformer", "tencent", ("double_blocks.0.img_attn_qkv.", _REFINER), PREFIXES),
    Layout("transformer", "comfyui", SCHEMES["comfyui"][:2], PREFIXES),
    Layout("transformer", "diffusers", SCHEMES["diffusers"][:2], PREFIXES),
    Layout(
        "scale_map",
        "tencent",
        ("double_blocks.0.img_attn_qkv", "single_blocks.0.linear1"),
        absent=("double_blocks.0.img_attn_qkv.", "single_blocks.0.linear1."),
        refusal="These are the scales of Tencent's fp8 transformer. They belong beside its file, under the same name "
        "with _map at its end, and are found there by themselves.",
    ),
)
