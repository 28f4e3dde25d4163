"""The transformer and the VAE from files: recognised by the header, built without storage, then given mapped tensors.

Any known layout is taken, in one file or in shards; from here on names are Tencent's. Nothing is copied that need not
be. A tensor that keeps its dtype stays a view of the file; one that must be cast is cast by itself, so that no second
copy of a model ever exists. All parameters are frozen.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidSetting, UnsupportedFile, WrongKind
from ..quant import FP8_DTYPES, cast_fp8, dequantize_fp8, is_kept_in_plain_fp8
from ..quant.linear import use_scales
from ..transformer import HunyuanVideoTransformer, TransformerConfig
from ..vae import CausalVideoVAE, VAEConfig
from .assemble import assemble, use_joined
from .blueprint import build_meta_transformer, build_meta_vae
from .detect import Findings, examine
from .folder import map_header, open_header
from .scale_map import read_scale_map
from .variants import KIND_NAMES, SCALE_SUFFIX

logger = logging.getLogger(__name__)

PathLike = str | Path
STORAGE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, *FP8_DTYPES)
COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_transformer(
    path: PathLike,
    storage_dtype: torch.dtype | None = None,
    compute_dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    config: TransformerConfig | None = None,
) -> HunyuanVideoTransformer:
    """A transformer from a file, or the folder, the index or a shard of a checkpoint in parts, in any known layout.

    storage_dtype: what the large weights rest in; None leaves them as the file has them. fp8 is the plain cast that
    keeps norms, biases and embedders; a 16- or 32-bit dtype casts every matrix. compute_dtype: what they are multiplied
    in, cast on use. config: sizes, where the file cannot tell them.
    Raises FileMissing, FileTruncated, FileUnreadable, WrongKind, UnsupportedFile, InvalidSetting.
    """
    check_dtype("storage_dtype", storage_dtype, STORAGE_DTYPES)
    check_dtype("compute_dtype", compute_dtype, COMPUTE_DTYPES)
    findings = recognise(path, ("transformer",), config)
    model = build_meta_transformer(findings.config, compute_dtype)
    use_joined(model, findings.sources, findings.file_header)
    tensors = assemble(map_header(findings.file_header), findings.sources)
    if findings.quantization == "fp8_cast":
        tensors |= read_scale_map(findings.header)
    stored = _store_all(tensors, storage_dtype)
    use_scales(model, (name.removesuffix(SCALE_SUFFIX) for name in stored if name.endswith(SCALE_SUFFIX)))
    model.load_state_dict({name: stored[name] for name in model.state_dict()}, strict=True, assign=True)
    return model.requires_grad_(False).eval().to(device)


def load_vae(
    path: PathLike,
    storage_dtype: torch.dtype | None = None,
    compute_dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    config: VAEConfig | None = None,
) -> CausalVideoVAE:
    """A VAE from a file, or the folder, the index or a shard of a checkpoint in parts, in any known layout.

    Its weights are small beside its activations, so they rest in what they are multiplied in, compute_dtype;
    storage_dtype may only repeat that. Raises as `load_transformer`.
    """
    check_dtype("compute_dtype", compute_dtype, COMPUTE_DTYPES)
    check_dtype("storage_dtype of a VAE", storage_dtype, (compute_dtype,))
    findings = recognise(path, ("vae",), config)
    vae = build_meta_vae(findings.config)
    tensors = assemble(map_header(findings.file_header), findings.sources)
    vae.load_state_dict({name: tensors[name].to(compute_dtype) for name in vae.state_dict()}, strict=True, assign=True)
    return vae.requires_grad_(False).eval().to(device)


def recognise(path: PathLike, kinds: tuple[str, ...], config: Any) -> Findings:
    """Findings on a file that can be loaded as one of `kinds`; otherwise says what it is instead."""
    findings = examine(open_header(path), config)
    name = Path(path).name
    wanted = " or ".join(KIND_NAMES[kind] for kind in kinds)
    if findings.match and findings.kind not in kinds:
        raise WrongKind(
            f"{name} is {KIND_NAMES[findings.kind]}, but {wanted} is needed here. "
            f"Give it where {KIND_NAMES[findings.kind]} is asked for, and another file here."
        )
    if findings.reason:
        raise UnsupportedFile(f"{name} cannot be used as {wanted}. {findings.reason}")
    logger.info("%s: %s, %s, %s", name, findings.kind, findings.config, findings.quantization)
    return findings


def _store_all(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors as they are to rest: the same, or cast where they are of those that the storage dtype is for.

    A weight with a scale keeps both as long as its dtype stays, and is dequantised for another one.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        scale_name = name.removesuffix(".weight") + SCALE_SUFFIX
        scale = tensors.get(scale_name)
        if name.endswith(SCALE_SUFFIX):
            continue
        if dtype is None or tensor.dtype == dtype or not _is_stored_in(dtype, name, tensor):
            stored[name] = tensor
            if scale is not None:
                stored[scale_name] = scale.reshape(1)
        elif dtype in FP8_DTYPES:
            stored[name] = cast_fp8(dequantize_fp8(tensor, scale, torch.float32), dtype)
        else:
            stored[name] = dequantize_fp8(tensor, scale, dtype)
    return stored


def _is_stored_in(dtype: torch.dtype, name: str, tensor: Tensor) -> bool:
    """Whether a storage dtype is for this tensor: fp8 for the large weights, 16 and 32 bits for every matrix."""
    return not is_kept_in_plain_fp8(name) if dtype in FP8_DTYPES else tensor.ndim > 1


def check_dtype(name: str, dtype: torch.dtype | None, accepted: tuple[torch.dtype, ...]) -> None:
    if dtype is not None and dtype not in accepted:
        names = ", ".join(str(entry).removeprefix("torch.") for entry in accepted)
        raise InvalidSetting(f"{name} is {str(dtype).removeprefix('torch.')}, but must be one of {names}.")
