"""The text encoders from files: recognised by the header, given the mapped tensors, and joined with their tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import FileMissing
from ..text import (
    ClipEncoderConfig,
    ClipTextEncoder,
    LlamaEncoderConfig,
    LlamaTextEncoder,
    build_llama3_tokenizer,
    load_tokenizer,
)
from .build import COMPUTE_DTYPES, PathLike, check_dtype, recognise
from .detect import Findings
from .read import Header, map_tensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LLAMA3_VOCAB_SIZE = 128320


def load_text_encoder(
    path: PathLike,
    tokenizer: Tokenizer | PathLike | None = None,
    storage_dtype: torch.dtype | None = None,
    compute_dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    config: LlamaEncoderConfig | ClipEncoderConfig | None = None,
) -> LlamaTextEncoder | ClipTextEncoder:
    """A Llama or CLIP text encoder, whichever the file holds, with its tokenizer.

    tokenizer: one that is loaded, or a tokenizer.json, or a folder with one. None looks beside the file for
    `<stem>.tokenizer.json`, then `tokenizer.json`; for Llama-3 it is otherwise built from the package llama-models.
    compute_dtype: None takes what most of the file is stored in (bfloat16 if that is fp8); then nothing is copied.
    storage_dtype may only repeat it. Raises as `load_transformer`, and MissingPackage.
    """
    findings = recognise(path, ("llama", "clip"), config)
    compute_dtype = compute_dtype or _main_dtype(findings.header)
    check_dtype("compute_dtype", compute_dtype, COMPUTE_DTYPES)
    check_dtype("storage_dtype of a text encoder", storage_dtype, (compute_dtype,))
    found_tokenizer = _find_tokenizer(findings, tokenizer)
    encoder_class: Callable[..., LlamaTextEncoder | ClipTextEncoder]
    encoder_class = LlamaTextEncoder if findings.kind == "llama" else ClipTextEncoder
    encoder = encoder_class(findings.config, found_tokenizer)
    tensors = map_tensors(findings.header)
    encoder.load_weights({name: tensors[name].to(compute_dtype) for name in encoder.weight_names()})
    return encoder.eval().to(device)


def _main_dtype(header: Header) -> torch.dtype:
    """The 16- or 32-bit dtype of most parameters, bfloat16 where they are smaller."""
    counts = Counter[str]()
    for info in header.tensors.values():
        counts[info.dtype] += info.numel
    dtype: torch.dtype = getattr(torch, counts.most_common(1)[0][0])
    return dtype if dtype in COMPUTE_DTYPES else torch.bfloat16


def _find_tokenizer(findings: Findings, tokenizer: Tokenizer | PathLike | None) -> Tokenizer:
    if isinstance(tokenizer, str | Path):
        return load_tokenizer(tokenizer)
    if tokenizer is not None:
        return tokenizer
    file = findings.header.path
    candidates = (file.with_name(f"{file.stem}.tokenizer.json"), file.with_name("tokenizer.json"))
    for candidate in candidates:
        if candidate.is_file():
            return load_tokenizer(candidate)
    if findings.kind == "llama" and findings.config.vocab_size == LLAMA3_VOCAB_SIZE:
        return build_llama3_tokenizer()
    raise FileMissing(
        f"{file.name} has no tokenizer beside it (looked for {' and '.join(path.name for path in candidates)}). "
        "Put the tokenizer.json of the same model there, or name it."
    )
