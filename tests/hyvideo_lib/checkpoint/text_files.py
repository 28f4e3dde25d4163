"""The golden text encoders rewritten in the layouts and storage forms in which people have such files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from hyvideo_lib.quant import quantize_fp8
from tests.gguf_file import Entry, entry, gguf_bytes

GOLDENS = Path(__file__).parents[2] / "goldens"
LLAMA_TOKENIZER = GOLDENS / "te_llama_tiny.tokenizer.json"
SIZES = {"llama": {"head_dim": 8}, "clip": {"num_heads": 3}}
FP8 = torch.float8_e4m3fn
HEADS = {"q_proj": 4, "k_proj": 2}
Weights = Mapping[str, Tensor]
Change = Callable[[Weights], dict[str, Tensor]]


def weights_of(kind: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    loaded = load_file(GOLDENS / f"te_{kind}_tiny.weights.safetensors")
    return {name: tensor.to(dtype) for name, tensor in loaded.items()}


def write(path: Path, kind: str, tensors: Weights, metadata: Mapping[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"hyvideo.config": json.dumps(SIZES[kind])} | dict(metadata or {})
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, known)
    return path


def clip_tokenizer() -> Tokenizer:
    words = {f"w{index}": index for index in range(38)} | {"<|startoftext|>": 38, "<|endoftext|>": 39}
    return Tokenizer(WordLevel(words, unk_token="w0"))


# Layouts


def under(prefix: str, **others: Tensor) -> Change:
    """Every name after a prefix, and other tensors beside (two underscores stand for a dot)."""
    beside = {name.replace("__", "."): tensor for name, tensor in others.items()}
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()} | beside


def without_text_model(tensors: Weights) -> dict[str, Tensor]:
    return {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}


_HEAD = torch.zeros(81, 32)
_VISION = {
    "vision_tower__vision_model__embeddings__class_embedding": torch.zeros(4),
    "vision_tower__vision_model__encoder__layers__0__mlp__fc1__weight": torch.zeros(4, 4),
    "multi_modal_projector__linear_1__weight": torch.zeros(4, 4),
}
LLAMA_LAYOUTS: dict[str, Change] = {
    "bare": dict,
    "causal": under("model.", lm_head__weight=_HEAD),
    "comfyui": under("model.", lm_head__weight=_HEAD, tokenizer=torch.zeros(7, dtype=torch.uint8)),
    "llava_old": under("language_model.model.", language_model__lm_head__weight=_HEAD, **_VISION),
    "llava_new": under(
        "model.language_model.", lm_head__weight=_HEAD, **{f"model__{name}": t for name, t in _VISION.items()}
    ),
    "checkpoint": under("text_encoders.llama.transformer.model.", first_stage__weight=torch.zeros(2)),
}
_POSITIONS = {"text_model__embeddings__position_ids": torch.arange(10)[None]}
CLIP_LAYOUTS: dict[str, Change] = {
    "huggingface": dict,
    "with_positions": under("", **_POSITIONS),
    "whole_model": under(
        "",
        **_POSITIONS,
        text_projection__weight=torch.zeros(24, 24),
        logit_scale=torch.zeros(()),
        visual_projection__weight=torch.zeros(24, 8),
        vision_model__embeddings__class_embedding=torch.zeros(8),
        vision_model__encoder__layers__0__mlp__fc1__weight=torch.zeros(8, 8),
    ),
    "bare": without_text_model,
    "bare_with_positions": lambda tensors: under("", embeddings__position_ids=torch.arange(10)[None])(
        without_text_model(tensors)
    ),
    "clip_l": under("clip_l."),
    "checkpoint": under("text_encoders.clip_l.transformer."),
}


# Storage


def fp8_cast(tensors: Weights) -> dict[str, Tensor]:
    return {name: tensor.to(FP8) for name, tensor in tensors.items()}


def _is_matrix(name: str, tensor: Tensor, with_embedding: bool) -> bool:
    return tensor.ndim == 2 and (with_embedding or "embed" not in name)


def comfyui_scaled(tensors: Weights, with_embedding: bool = False) -> dict[str, Tensor]:
    """The older form: `scale_weight` beside each matrix, and the bare marker."""
    stored: dict[str, Tensor] = {"scaled_fp8": torch.empty(0, dtype=FP8)}
    for name, tensor in tensors.items():
        stored[name] = tensor
        if _is_matrix(name, tensor, with_embedding):
            stored[name], scale = quantize_fp8(tensor)
            stored[name.removesuffix("weight") + "scale_weight"] = scale.reshape(())
    return stored


def comfyui_quant(tensors: Weights) -> dict[str, Tensor]:
    """The newer form: `weight_scale` and a description beside each matrix."""
    description = torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stored[name] = tensor
        if _is_matrix(name, tensor, with_embedding=False):
            stored[name], scale = quantize_fp8(tensor)
            stem = name.removesuffix("weight")
            stored |= {f"{stem}weight_scale": scale.reshape(()), f"{stem}comfy_quant": description}
    return stored


def dense(tensors: Weights) -> dict[str, Tensor]:
    """What a file in one of these forms stands for, in float32."""
    scales = {
        name.rpartition(".")[0]: tensor
        for name, tensor in tensors.items()
        if name.endswith(("scale_weight", "weight_scale"))
    }
    return {
        name: tensor.float() * scales.get(name.rpartition(".")[0], 1.0) if tensor.dtype == FP8 else tensor.float()
        for name, tensor in tensors.items()
        if name.endswith((".weight", ".bias"))
    }


# GGUF

_GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
LLAMA_METADATA = {
    "general.architecture": "llama",
    "llama.embedding_length": 32,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.rope.freq_base": 500000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def gguf_name(name: str) -> str:
    path = name.removesuffix(".weight")
    head, _, rest = path.partition(".")
    if head != "layers":
        return f"{_GGUF_NAMES[path]}.weight"
    index, _, rest = rest.partition(".")
    return f"blk.{index}.{_GGUF_NAMES[rest]}.weight"


def interleave(name: str, tensor: Tensor) -> Tensor:
    """Rows of q and k as the converters write them: of each head the two halves by turns."""
    heads = next((count for part, count in HEADS.items() if f".{part}." in name), None)
    if heads is None:
        return tensor
    rows, width = tensor.shape
    return tensor.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def q8_0(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """(rows of blocks, what they stand for): 32 numbers as int8 with a float16 scale."""
    blocks = tensor.reshape(-1, 32)
    scale = (blocks.abs().amax(dim=1, keepdim=True) / 127).half()
    levels = (blocks / scale.float().clamp(min=1e-12)).round().clamp(-127, 127)
    packed = torch.cat((scale.view(torch.uint8), levels.to(torch.int8).view(torch.uint8)), dim=1)
    return packed.reshape(tensor.shape[0], -1), (levels * scale.float()).reshape(tensor.shape)


IQ4_LEVELS = torch.tensor((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113.0))


def iq4_nl(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """(rows of blocks, what they stand for): the nearest of 16 levels each, two in a byte, with a float16 scale."""
    blocks = tensor.reshape(-1, 32)
    scale = (blocks.abs().amax(dim=1, keepdim=True) / 113).half()
    chosen = (blocks[..., None] / scale.float().clamp(min=1e-12)[..., None] - IQ4_LEVELS).abs().argmin(-1)
    packed = torch.cat((scale.view(torch.uint8), (chosen[:, :16] | chosen[:, 16:] << 4).to(torch.uint8)), dim=1)
    return packed.reshape(tensor.shape[0], -1), (IQ4_LEVELS[chosen] * scale.float()).reshape(tensor.shape)


BLOCKS = {"q8_0": q8_0, "iq4_nl": iq4_nl}


def write_gguf(
    path: Path, tensors: Weights, form: str = "", metadata: Mapping[str, Any] = LLAMA_METADATA, **beside: Tensor
) -> Path:
    """A Llama with bare names as llama.cpp writes it. form: one of BLOCKS for matrices, else as they are."""
    table: dict[str, Entry] = {name: entry(tensor) for name, tensor in beside.items()}
    for name, tensor in tensors.items():
        turned = interleave(name, tensor)
        is_block = form in BLOCKS and tensor.ndim == 2
        table[gguf_name(name)] = entry(BLOCKS[form](turned)[0], form, tensor.shape[1]) if is_block else entry(turned)
    path.write_bytes(gguf_bytes(table, metadata))
    return path
