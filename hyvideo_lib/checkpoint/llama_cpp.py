"""The names that llama.cpp's converters give a Llama's tensors in GGUF files, as Hugging Face's.

Only names: the converters also permute the rows of q and k (interleaved rope), which whoever loads the weights undoes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from .keymaps import Source, Translated
from .read import Header

TOP: Mapping[str, str] = MappingProxyType({"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"})
IN_BLOCK: Mapping[str, str] = MappingProxyType(
    {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
)
PERMUTED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight")
"""Ends of the (Hugging Face) names of weights whose rows the converters permute."""
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,3})\.(\w+)\.(weight|bias)", re.ASCII)


def huggingface_name(name: str) -> str | None:
    """Hugging Face's name of a llama.cpp tensor, bare as in a LlamaModel; None if it is not in the table."""
    module, _, leaf = name.rpartition(".")
    if module in TOP:
        return f"{TOP[module]}.{leaf}"
    hit = _BLOCK.fullmatch(name)
    return f"layers.{hit[1]}.{IN_BLOCK[hit[2]]}.{hit[3]}" if hit and hit[2] in IN_BLOCK else None


def translate_llama_cpp(header: Header) -> Translated:
    """A GGUF Llama's header in Hugging Face's names. Raises nothing: what the table lacks is left over."""
    names = {name: huggingface_name(name) for name in header.tensors}
    tensors = {theirs: header.tensors[name] for name, theirs in names.items() if theirs}
    sources = {theirs: (Source(name),) for name, theirs in names.items() if theirs}
    leftover = tuple(name for name, theirs in names.items() if not theirs)
    return Translated(replace(header, tensors=MappingProxyType(tensors)), MappingProxyType(sources), leftover)
