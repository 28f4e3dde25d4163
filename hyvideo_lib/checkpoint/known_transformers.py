"""Rows of the table of known files: transformers, HunyuanVideo's in its three naming schemes and its relatives'.

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

_USE_OURS = "Use a HunyuanVideo transformer (text to video or image to video, 13B)."
_OTHER_MODEL = f"It belongs to another model; HunyuanVideo cannot use it. {_USE_OURS}"


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
            refusal=f"This is {title}. {_USE_OURS}",
        )
        for scheme in schemes
    )


def _stranger(variant: str, title: str, layout: str, *markers: str, **conditions: object) -> Layout:
    """Another model, whose names have nothing to do with ours."""
    refusal = f"This is {title}. {_OTHER_MODEL}"
    return Layout("transformer", layout, markers, PREFIXES, variant, refusal=refusal, **conditions)  # type: ignore[arg-type]


_COND_TYPE = "cond_type_embedding.|cond_type_embed.|vision_in.|image_embedder.norm_in."
_SECOND_TEXT = "byt5_in.|context_embedder_2.|time_guidance_embed."

ROWS = (
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
        "framepack",
        "a FramePack transformer, which is not supported yet",
        "clean_x_embedder.|image_projection.",
    ),
    Layout("transformer", "tencent", ("double_blocks.0.img_attn_qkv.", _REFINER), PREFIXES),
    Layout("transformer", "comfyui", SCHEMES["comfyui"][:2], PREFIXES),
    Layout("transformer", "diffusers", SCHEMES["diffusers"][:2], PREFIXES),
    _stranger("flux", "a Flux transformer", "comfyui", "double_blocks.0.img_attn.qkv."),
    _stranger(
        "flux",
        "a Flux transformer",
        "diffusers",
        "transformer_blocks.0.attn.to_q.",
        "single_transformer_blocks.0.attn.",
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
    Layout(
        "scale_map",
        "tencent",
        ("double_blocks.0.img_attn_qkv", "single_blocks.0.linear1"),
        absent=("double_blocks.0.img_attn_qkv.", "single_blocks.0.linear1."),
        refusal="These are the scales of Tencent's fp8 transformer. They belong beside its file, under the same name "
        "with _map at its end, and are found there by themselves.",
    ),
    _stranger("stable-diffusion", "a Stable Diffusion model", "native", "input_blocks.0.0.", "middle_block.0."),
)
