"""The table of known files: which keys tell a kind and a layout, and what to say about those not usable here.

A file is told by what it holds, never by its name. The first row whose patterns all occur wins, so a row that is a
special case of another stands before it. Facts: the released files' key lists.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

TRANSFORMER_PREFIXES = ("", "model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "module.")
VAE_PREFIXES = ("", "vae.", "first_stage_model.")
LLAMA_PREFIXES = ("", "model.", "language_model.model.", "model.language_model.")
CLIP_PREFIXES = ("", "clip_l.")


@dataclass(frozen=True)
class Layout:
    """One row: `markers` are regular expressions for the beginnings of names, after one of `prefixes`.

    refusal: why a file of this row cannot be used, and what to use; empty if it can.
    ignored: beginnings of names (after the prefix) that may stand in the file and are not loaded.
    """

    kind: str
    layout: str
    markers: tuple[str, ...]
    prefixes: tuple[str, ...] = ("",)
    refusal: str = ""
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Match:
    layout: Layout
    prefix: str


_USE_TENCENT = "Use a transformer in Tencent's layout (keys like double_blocks.0.img_attn_qkv.weight)."
_OTHER_MODEL = "It belongs to another model; HunyuanVideo cannot use it."

LAYOUTS = (
    Layout(
        "lora",
        "lora",
        (r".*(\.lora_(A|B|down|up)\b|_lora\.(down|up)\b|\.lora\.(down|up)\b|\.(hada|lokr)_w1)",),
        refusal="LoRA files are not supported yet.",
    ),
    Layout(
        "transformer",
        "hunyuanvideo-1.5",
        (r"double_blocks\.0\.|transformer_blocks\.0\.", r"byt5_in\.|context_embedder_2\."),
        TRANSFORMER_PREFIXES,
        refusal=f"This is HunyuanVideo 1.5, a different architecture. {_USE_TENCENT}",
    ),
    Layout(
        "transformer",
        "tencent",
        (r"double_blocks\.0\.img_attn_qkv\.weight", r"txt_in\.individual_token_refiner\."),
        TRANSFORMER_PREFIXES,
    ),
    Layout(
        "transformer",
        "comfyui",
        (r"double_blocks\.0\.img_attn\.qkv\.weight", r"txt_in\.individual_token_refiner\."),
        TRANSFORMER_PREFIXES,
        refusal=f"ComfyUI's renamed layout is not supported yet. {_USE_TENCENT}",
    ),
    Layout(
        "transformer",
        "flux",
        (r"double_blocks\.0\.img_attn\.qkv\.weight",),
        TRANSFORMER_PREFIXES,
        refusal=f"This is a Flux transformer. {_OTHER_MODEL}",
    ),
    Layout(
        "transformer",
        "framepack",
        (r"transformer_blocks\.0\.attn\.to_q\.weight", r"clean_x_embedder\."),
        TRANSFORMER_PREFIXES,
        refusal=f"This is a FramePack transformer, which is not supported yet. {_USE_TENCENT}",
    ),
    Layout(
        "transformer",
        "diffusers",
        (r"transformer_blocks\.0\.attn\.to_q\.weight", r"context_embedder\.token_refiner\."),
        TRANSFORMER_PREFIXES,
        refusal=f"The diffusers layout is not supported yet. {_USE_TENCENT}",
    ),
    Layout(
        "transformer",
        "wan",
        (r"blocks\.0\.self_attn\.q\.weight", r"blocks\.0\.cross_attn\.q\.weight"),
        TRANSFORMER_PREFIXES,
        refusal=f"This is a Wan transformer. {_OTHER_MODEL}",
    ),
    Layout(
        "vae",
        "tencent",
        (r"decoder\.up_blocks\.0\.resnets\.0\.norm1\.weight", r"decoder\.conv_in\.conv\.weight", r"post_quant_conv\."),
        VAE_PREFIXES,
    ),
    Layout(
        "vae",
        "comfyui",
        (r"decoder\.up\.0\.block\.0\.conv1\.conv\.weight",),
        VAE_PREFIXES,
        refusal="ComfyUI's renamed VAE layout is not supported yet. Use the VAE in Tencent's or diffusers' layout.",
    ),
    Layout(
        "vae",
        "image",
        (r"decoder\.(up\.0\.block\.0\.conv1|conv_in)\.weight",),
        VAE_PREFIXES,
        refusal=f"This is a VAE for single images. {_OTHER_MODEL}",
    ),
    Layout(
        "clip",
        "huggingface",
        (
            r"text_model\.embeddings\.token_embedding\.weight",
            r"text_model\.encoder\.layers\.0\.mlp\.fc1\.weight",
        ),
        CLIP_PREFIXES,
        ignored=(
            "text_model.embeddings.position_ids",
            "vision_model.",
            "visual_projection.",
            "text_projection.",
            "logit_scale",
        ),
    ),
    Layout(
        "llama",
        "huggingface",
        (r"embed_tokens\.weight", r"layers\.0\.mlp\.gate_proj\.weight"),
        LLAMA_PREFIXES,
        ignored=("tokenizer", "layers.0.self_attn.rotary_emb.inv_freq"),
    ),
    Layout(
        "t5",
        "huggingface",
        (r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight",),
        ("", "text_encoder."),
        refusal="This is a T5 text encoder; HunyuanVideo uses a Llama-3 (LLaVA) and a CLIP-L encoder.",
    ),
    Layout(
        "vision",
        "huggingface",
        (r"vision_model\.encoder\.layers\.0\.", r"vision_model\.embeddings\."),
        refusal="This is an image encoder; prompts need a text encoder.",
    ),
)

KIND_NAMES = {
    "transformer": "a transformer (diffusion model)",
    "vae": "a VAE",
    "llama": "a Llama text encoder",
    "clip": "a CLIP text encoder",
    "t5": "a T5 text encoder",
    "vision": "an image encoder",
    "lora": "a LoRA",
    "unknown": "a file of unknown kind",
}

SCALE_SUFFIX = ".fp8_scale"  # Tencent's scale map, one number beside each weight

# Companion tensors that say how a weight was quantised, by the end of their names.
QUANT_MARKERS = {
    SCALE_SUFFIX: "fp8_scale",
    ".scale_weight": "comfyui_fp8_scaled",
    ".comfy_quant": "comfyui_quant",
    ".weight_scale": "comfyui_quant",
    ".SCB": "bitsandbytes_int8",
    ".quant_state.bitsandbytes__nf4": "bitsandbytes_nf4",
}


def match_layout(names: Collection[str]) -> Match | None:
    """The first row of the table that fits these tensor names, and the prefix they carry."""
    text = "\n".join(names)
    for layout in LAYOUTS:
        for prefix in layout.prefixes:
            if all(re.search(f"^{re.escape(prefix)}(?:{marker})", text, re.MULTILINE) for marker in layout.markers):
                return Match(layout, prefix)
    return None
