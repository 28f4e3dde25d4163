"""Text conditioning: prompts to the embeddings that the transformer reads.

Two encoders see every prompt: a Llama-type language model gives one vector per token (`llm`), CLIP-L one vector for the
whole prompt (`clip`); `encode_prompt` runs both. Layers come from `transformers`, imported when an encoder is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import names_from

if TYPE_CHECKING:
    from .clip import ClipEncoderConfig, ClipTextEncoder
    from .encode import TextEmbeds, encode_prompt, stack_embeds
    from .image_crop import crop_image_text
    from .known_ids import check_clip_tokenizer, check_llama3_tokenizer
    from .llama3_tokenizer import build_llama3_tokenizer
    from .llm import LlamaEncoderConfig, LlamaTextEncoder, build_llama
    from .plain import plain_text
    from .templates import TEMPLATES, PromptTemplate
    from .tokenizer import load_tokenizer
    from .tokens import PromptTokens, tokenize_prompt
else:
    __getattr__ = names_from(
        __name__,
        {
            "clip": "ClipEncoderConfig ClipTextEncoder",
            "encode": "TextEmbeds encode_prompt stack_embeds",
            "image_crop": "crop_image_text",
            "known_ids": "check_clip_tokenizer check_llama3_tokenizer",
            "llama3_tokenizer": "build_llama3_tokenizer",
            "llm": "LlamaEncoderConfig LlamaTextEncoder build_llama",
            "plain": "plain_text",
            "templates": "TEMPLATES PromptTemplate",
            "tokenizer": "load_tokenizer",
            "tokens": "PromptTokens tokenize_prompt",
        },
    )

__all__ = [
    "TEMPLATES",
    "ClipEncoderConfig",
    "ClipTextEncoder",
    "LlamaEncoderConfig",
    "LlamaTextEncoder",
    "PromptTemplate",
    "PromptTokens",
    "TextEmbeds",
    "build_llama",
    "build_llama3_tokenizer",
    "check_clip_tokenizer",
    "check_llama3_tokenizer",
    "crop_image_text",
    "encode_prompt",
    "load_tokenizer",
    "plain_text",
    "stack_embeds",
    "tokenize_prompt",
]
