"""Rows of the table of known files: VAEs, text encoders and image encoders."""

from __future__ import annotations

from .layout import Layout

VAE_PREFIXES = ("", "vae.", "first_stage_model.", "model.", "module.", "model.model.")
LLAMA_PREFIXES = (
    "",
    "model.",
    "language_model.model.",
    "model.language_model.",
    "model.language_model.model.",
    "text_encoder.",
    "module.",
    "text_encoders.llama.transformer.model.",
)
CLIP_PREFIXES = (
    "",
    "clip_l.",
    "clip_l.transformer.",
    "text_encoder.",
    "module.",
    "model.",
    "text_encoders.clip_l.transformer.",
    "cond_stage_model.transformer.",
    "conditioner.embedders.0.transformer.",
)
T5_PREFIXES = ("", "text_encoder.", "t5xxl.", "t5xxl.transformer.", "text_encoders.t5xxl.transformer.", "model.")

TINY_VAE = "taehv"
_USE_VAE = "Use HunyuanVideo's own VAE (hunyuan_video_vae)."
_USE_TEXT = "HunyuanVideo uses a Llama-3 (LLaVA) and a CLIP-L text encoder."
_CLIP_IGNORED = (
    "text_model.embeddings.position_ids",
    "text_model.text_projection",
    "text_model.logit_scale",
    "vision_model.",
    "visual_projection.",
    "text_projection",
    "logit_scale",
)
_CLIP = ("text_model.embeddings.token_embedding.weight", "text_model.encoder.layers.0.mlp.fc1.")
_BARE_CLIP = ("embeddings.token_embedding.weight", "encoder.layers.0.mlp.fc1.")
_LLAMA = ("embed_tokens.weight", "layers.0.mlp.gate_proj.")
_CAUSAL_IN = "decoder.conv_in.conv.weight"


def _vae(variant: str, title: str, layout: str, *markers: str, **conditions: object) -> Layout:
    """A VAE that cannot be used."""
    refusal = f"This is {title}. {_USE_VAE}"
    return Layout("vae", layout, markers, VAE_PREFIXES, variant, refusal=refusal, **conditions)  # type: ignore[arg-type]


def _clip(variant: str, width: int) -> tuple[Layout, ...]:
    """A CLIP text encoder wider than CLIP-L, in both of its naming schemes."""
    refusal = f"This is {variant.upper()}, {width} wide; HunyuanVideo was trained with CLIP-L, 768 wide (clip_l)."
    return tuple(
        Layout("clip", layout, names, CLIP_PREFIXES, variant, shapes=((names[0], (None, width)),), refusal=refusal)
        for layout, names in (("huggingface", _CLIP), ("huggingface_bare", _BARE_CLIP))
    )


def _other_llm(variant: str, title: str, layout: str, *markers: str) -> Layout:
    return Layout("text", layout, markers, LLAMA_PREFIXES, variant, refusal=f"This is {title}. {_USE_TEXT}")


VAE_ROWS = (
    _vae("cogvideox", "the VAE of CogVideoX", "diffusers", "decoder.mid_block.resnets.0.norm1.conv_y."),
    _vae("cogvideox", "the VAE of CogVideoX", "native", "decoder.mid.block_1.norm1.conv_y."),
    _vae("mochi", "the VAE of Mochi", "diffusers", "decoder.block_in.resnets.0.", "decoder.block_out."),
    _vae("mochi", "the VAE of Mochi", "native", "decoder.blocks.0.1.stack.|blocks.0.1.stack."),
    _vae("minimax-h3", "the VAE of MiniMax H3", "native|diffusers", "decoder.transformer_blocks.0.scale1"),
    _vae("opensora-1.2", "the VAE of Open-Sora 1.2", "native", "spatial_vae.", "temporal_vae."),
    _vae(
        "ltx",
        "the VAE of LTX-Video",
        "native|diffusers",
        _CAUSAL_IN,
        shapes=((_CAUSAL_IN, (None, 128, None, None, None)),),
    ),
    _vae(
        "hunyuanvideo-1.5",
        "the VAE of HunyuanVideo 1.5, with 32 latent channels",
        "diffusers",
        "decoder.up_blocks.0.resnets.0.norm1.gamma",
        _CAUSAL_IN,
    ),
    _vae(
        "hunyuanvideo-1.5",
        "the VAE of HunyuanVideo 1.5, with 32 latent channels",
        "native",
        _CAUSAL_IN,
        shapes=((_CAUSAL_IN, (None, 32, None, None, None)),),
    ),
    Layout(
        "vae",
        "native",
        ("decoder.1.weight", "decoder.3.conv.0.", "decoder.22."),
        VAE_PREFIXES,
        TINY_VAE,
        shapes=(("decoder.1.weight", (None, 16, None, None)),),
        ignored=("encoder.",),
    ),
    _vae("tae", "a tiny VAE of another model", "native", "decoder.1.weight", "decoder.3.conv.0."),
    _vae("wan", "a Wan VAE", "native", "decoder.middle.0.residual.0.gamma"),
    _vae("wan", "a Wan VAE", "diffusers", "decoder.up_blocks.0.resnets.0.norm1.gamma", "decoder.conv_in.weight"),
    Layout("vae", "tencent", ("decoder.up_blocks.0.resnets.0.norm1.", _CAUSAL_IN), VAE_PREFIXES),
    Layout("vae", "comfyui", ("decoder.up.0.block.0.conv1.conv.", _CAUSAL_IN), VAE_PREFIXES),
    _vae(
        "hunyuanimage-2.1",
        "the VAE of HunyuanImage 2.1, for single images",
        "native|diffusers",
        "decoder.conv_in.weight",
        shapes=(("decoder.conv_in.weight", (None, 64, 3, 3)),),
    ),
    _vae(
        "image",
        "a VAE for single images",
        "native|diffusers",
        "decoder.up.0.block.0.conv1.weight|decoder.conv_in.weight|taesd_decoder.",
    ),
)

TEXT_ROWS = (
    *_clip("clip-g", 1280),
    *_clip("clip-h", 1024),
    Layout("clip", "huggingface", _CLIP, CLIP_PREFIXES, ignored=_CLIP_IGNORED),
    Layout("clip", "huggingface_bare", _BARE_CLIP, CLIP_PREFIXES, ignored=_CLIP_IGNORED),
    Layout(
        "clip",
        "openai",
        ("transformer.resblocks.0.attn.in_proj_weight", "token_embedding.weight"),
        ("", "model.", "clip_g.", "conditioner.embedders.1.model.", "cond_stage_model.model."),
        refusal="This is a CLIP model in OpenAI's naming. Use clip_l.safetensors, whose names begin with text_model.",
    ),
    _other_llm("qwen2", "a Qwen 2 text encoder", "huggingface", *_LLAMA, "layers.0.self_attn.q_proj.bias"),
    _other_llm("qwen3", "a Qwen 3 or Gemma 3 text encoder", "huggingface", *_LLAMA, "layers.0.self_attn.q_norm."),
    _other_llm("gemma2", "a Gemma 2 text encoder", "huggingface", *_LLAMA, "layers.0.pre_feedforward_layernorm."),
    Layout("llama", "huggingface", _LLAMA, LLAMA_PREFIXES, ignored=("tokenizer", "layers.0.self_attn.rotary_emb.")),
    _other_llm("qwen2", "a Qwen 2 text encoder", "llama_cpp", "token_embd.weight", "blk.0.attn_q.bias"),
    _other_llm("qwen3", "a Qwen 3 or Gemma 3 text encoder", "llama_cpp", "token_embd.weight", "blk.0.attn_q_norm."),
    Layout("llama", "llama_cpp", ("token_embd.weight", "blk.0.ffn_gate."), ignored=("rope_freqs.",)),
    Layout(
        "t5",
        "huggingface",
        ("encoder.block.0.layer.0.SelfAttention.q.", "shared.weight"),
        T5_PREFIXES,
        "umt5",
        shapes=(("shared.weight", (256384, None)),),
        refusal=f"This is a UMT5 text encoder, Wan's. {_USE_TEXT}",
    ),
    Layout(
        "t5",
        "huggingface",
        ("encoder.block.0.layer.0.SelfAttention.q.",),
        T5_PREFIXES,
        refusal=f"This is a T5 text encoder. {_USE_TEXT}",
    ),
    Layout("t5", "llama_cpp", ("enc.blk.0.attn_q.",), refusal=f"This is a T5 text encoder in a GGUF file. {_USE_TEXT}"),
    Layout(
        "vision",
        "huggingface",
        ("vision_model.encoder.layers.0.|encoder.layers.0.", "vision_model.embeddings.|embeddings.patch_embedding."),
        ("", "model.vision_tower.", "vision_tower.", "image_encoder."),
        refusal="This is an image encoder; prompts need a text encoder.",
    ),
    Layout(
        "vision",
        "llama_cpp",
        ("v.blk.0.",),
        refusal="This is an image encoder (mmproj) in a GGUF file; prompts need a text encoder.",
    ),
)
