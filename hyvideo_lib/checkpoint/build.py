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
from ..quant import FP8_DTYPES, install, restore, use_product
from ..transformer import HunyuanVideoTransformer, TransformerConfig
from ..vae import CausalVideoVAE, TinyVAE, TinyVAEConfig, VAEConfig
from .assemble import assemble, use_joined
from .blueprint import build_meta_tiny_vae, build_meta_transformer, build_meta_vae
from .descriptions import own_contents
from .detect import Findings, examine
from .folder import map_header, open_header
from .scale_map import read_scale_map
from .variants import KIND_NAMES

logger = logging.getLogger(__name__)

PathLike = str | Path
STORAGE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, *FP8_DTYPES)
MAX_SCALES = 2**16
"""Numbers; a weight's scales are at most one for each of its rows."""
COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_transformer(
    path: PathLike,
    storage_dtype: torch.dtype | None = None,
    compute_dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    config: TransformerConfig | None = None,
    product: str | None = None,
) -> HunyuanVideoTransformer:
    """A transformer from a file, or the folder, the index or a shard of a checkpoint in parts, in any known layout.

    storage_dtype: what the large weights rest in; None leaves them as the file has them. fp8 is the plain cast that
    keeps norms, biases and embedders; a 16- or 32-bit dtype casts every matrix. compute_dtype: what they are multiplied
    in, cast on use. config: sizes, where the file cannot tell them. product: a name of quant.PRODUCTS, to multiply in
    8 bits, which is faster and less exact (quant.probe_product says whether a device can); None multiplies in
    compute_dtype. device: "meta" gives a model that has everything but its numbers, for planning: of the weights
    nothing is read.
    Raises FileMissing, FileTruncated, FileUnreadable, WrongKind, UnsupportedFile, InvalidSetting.
    """
    check_dtype("storage_dtype", storage_dtype, STORAGE_DTYPES)
    check_dtype("compute_dtype", compute_dtype, COMPUTE_DTYPES)
    findings = recognise(path, ("transformer",), config)
    model = build_meta_transformer(findings.config, compute_dtype)
    try:
        state = _install(model, findings, storage_dtype, _is_meta(device))
    except UnsupportedFile as error:
        raise UnsupportedFile(f"{Path(path).name} cannot be used. {error}") from error
    model.load_state_dict(state, strict=True, assign=True)
    if product:
        use_product(model, product)
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
    storage_dtype may only repeat that. Raises as `load_transformer`; UnsupportedFile for a tiny VAE.
    """
    check_dtype("storage_dtype of a VAE", storage_dtype, (compute_dtype,))
    vae = load_any_vae(path, compute_dtype, device, config)
    if not isinstance(vae, CausalVideoVAE):
        raise UnsupportedFile(f"{Path(path).name} is a tiny VAE, which only decodes previews. Give HunyuanVideo's own.")
    return vae


def load_any_vae(
    path: PathLike,
    compute_dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    config: VAEConfig | TinyVAEConfig | None = None,
) -> CausalVideoVAE | TinyVAE:
    """The VAE, or the tiny one for previews (TAEHV), whichever the file holds. Raises as `load_transformer`."""
    check_dtype("compute_dtype", compute_dtype, COMPUTE_DTYPES)
    findings = recognise(path, ("vae",), config)
    is_tiny = isinstance(findings.config, TinyVAEConfig)
    vae = build_meta_tiny_vae(findings.config) if is_tiny else build_meta_vae(findings.config)
    tensors = assemble(map_header(findings.file_header), findings.sources)
    if _is_meta(device):
        tensors = sketch(tensors)
    vae.load_state_dict({name: tensors[name].to(compute_dtype) for name in vae.state_dict()}, strict=True, assign=True)
    return vae.requires_grad_(False).eval().to(device)


def recognise(path: PathLike, kinds: tuple[str, ...], config: Any) -> Findings:
    """Findings on a file that can be loaded as one of `kinds`; otherwise says what it is instead."""
    header = open_header(path)
    findings = examine(header, config, kinds)
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
    for note in header.notes:
        logger.info("%s: %s", name, note)
    return findings


def _install(
    model: HunyuanVideoTransformer,
    findings: Findings,
    storage_dtype: torch.dtype | None,
    is_sketch: bool,
) -> dict[str, Tensor]:
    """Give the model the layers for its file's storage, or for the storage that is asked for; its state dict."""
    use_joined(model, findings.sources, findings.file_header)
    contents = own_contents(findings, map_header(findings.file_header))
    tensors, dtypes, metadata = contents.tensors, contents.dtypes, contents.metadata
    if is_sketch:
        tensors = sketch(tensors)
    scheme = findings.quantization
    if scheme == "fp8_cast":
        scales = read_scale_map(findings.header)
        tensors, scheme = {**tensors, **scales}, "fp8_scale" if scales else scheme
    if storage_dtype is not None:
        tensors = dict(restore(tensors, scheme, storage_dtype, dtypes=dtypes, metadata=metadata))
        scheme = "fp8_scale"
    return install(model, tensors, scheme, dtypes=dtypes, metadata=metadata)


def sketch(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same without the numbers of the weights; scales and what else is small keeps them, since it is looked at."""
    return {name: tensor.to("meta") if tensor.numel() > MAX_SCALES else tensor for name, tensor in tensors.items()}


def _is_meta(device: str | torch.device) -> bool:
    return torch.device(device).type == "meta"


def check_dtype(name: str, dtype: torch.dtype | None, accepted: tuple[torch.dtype, ...]) -> None:
    if dtype is not None and dtype not in accepted:
        names = ", ".join(str(entry).removeprefix("torch.") for entry in accepted)
        raise InvalidSetting(f"{name} is {str(dtype).removeprefix('torch.')}, but must be one of {names}.")
