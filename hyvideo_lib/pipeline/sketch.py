"""Models without their numbers, for planning: from files' headers, or the released ones where there is no file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..checkpoint import load_any_vae, load_transformer
from ..checkpoint.blueprint import BLUEPRINTS, build_meta_transformer, build_meta_vae
from ..checkpoint.examine import Findings, examine
from ..checkpoint.folder import open_header
from ..checkpoint.keymaps import Source
from ..checkpoint.text_sizes import with_text_sizes
from ..memory import Offloader
from ..memory.plan import Weights
from ..quant import install, restore, use_product
from ..text import ClipEncoderConfig, LlamaEncoderConfig
from ..transformer import HunyuanVideoTransformer, TransformerConfig
from ..vae import CausalVideoVAE, TinyVAE, VAEConfig
from .files import KIND_OF_ROLE, check_file
from .precision import Precision

RELEASED = TransformerConfig(16, 16, 3072, 24, 20, 40)
RELEASED_DTYPE = torch.bfloat16
RELEASED_TEXT: dict[str, LlamaEncoderConfig | ClipEncoderConfig] = {
    "llm": LlamaEncoderConfig(),
    "clip": ClipEncoderConfig(),
}
_LAYER = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True)
class TextSketch:
    """A text encoder's weights and the sizes that its work depends on. is_cast: it computes in another dtype than most
    of it is stored in; item_size: bytes of a number where it computes. is_wide: most of it rests in 16 bits or more."""

    weights: Weights
    hidden_size: int
    inner_size: int
    is_cast: bool
    item_size: int
    is_wide: bool


def sketch_transformer(path: Path | None, precision: Precision, device: torch.device) -> HunyuanVideoTransformer:
    """The transformer as it would be loaded for the device, on the meta device. Raises what loading it raises."""
    dtype = precision.transformer_dtype(device)
    if path is not None:
        check_file("transformer", path)
        return load_transformer(path, precision.storage_dtype, dtype, "meta", product=precision.product)
    model = build_meta_transformer(RELEASED, dtype)
    state = {name: tensor.to(RELEASED_DTYPE) for name, tensor in model.state_dict().items()}
    if precision.storage_dtype is not None:
        state = dict(restore(state, "none", precision.storage_dtype))
    model.load_state_dict(install(model, state, "none"), strict=True, assign=True)
    if precision.product:
        use_product(model, precision.product)
    return model.requires_grad_(False).eval()


def sketch_vae(path: Path | None, precision: Precision, device: torch.device) -> CausalVideoVAE | TinyVAE:
    """The VAE, or the tiny one for previews, likewise."""
    dtype = precision.vae_dtype(device)
    if path is not None:
        check_file("vae", path)
        return load_any_vae(path, dtype, "meta")
    return build_meta_vae(VAEConfig()).to(dtype).requires_grad_(False).eval()


def sketch_text(role: str, path: Path | None, precision: Precision) -> TextSketch:
    """A text encoder from its header. role: "llm" or "clip". Raises what checking the file raises."""
    config: LlamaEncoderConfig | ClipEncoderConfig
    stored: torch.dtype | None
    if path is None:
        config, stored = RELEASED_TEXT[role], torch.float16
        shapes = BLUEPRINTS[KIND_OF_ROLE[role]].contents(config).needed
        sizes = {name: torch.float16.itemsize * torch.Size(shape).numel() for name, shape in shapes.items()}
    else:
        check_file(role, path)
        findings = examine(with_text_sizes(open_header(path)), kinds=(KIND_OF_ROLE[role],))
        config, sizes, stored = findings.config, _sizes(findings), _main_stored(findings)
    compute = precision.text_dtype or (stored if stored in (torch.float32, torch.float16) else torch.bfloat16)
    blocks: dict[int, int] = {}
    fixed = 0
    for name, size in sizes.items():
        layer = _LAYER.match(name) if role == "llm" else None
        if layer:
            blocks[int(layer[1])] = blocks.get(int(layer[1]), 0) + size
        else:
            fixed += size
    weights = Weights(fixed, tuple(blocks[i] for i in sorted(blocks)))
    sizes_in = config.hidden_size, config.intermediate_size
    is_wide = stored is not None and stored.itemsize > 1
    return TextSketch(weights, *sizes_in, compute != stored, compute.itemsize, is_wide)


def weights_of(offloader: Offloader, num_double: int, is_mapped: bool = True) -> Weights:
    """What an Offloader has in hand, as the planner counts it."""
    blocks, fixed = tuple(offloader.block_bytes), offloader.fixed_bytes
    return Weights(fixed, blocks, num_double, offloader.visit_bytes, offloader.aside_bytes, is_mapped)


def is_mapped(path: Path | None, precision: Precision) -> bool:
    """Whether a transformer's weights stay in their file: they are in another storage than it only if that is asked."""
    if precision.storage_dtype is None:
        return True
    stored = RELEASED_DTYPE if path is None else _main_stored(examine(open_header(path), kinds=("transformer",)))
    return stored == precision.storage_dtype


def is_wide(model: nn.Module, num_bytes: int = 1) -> bool:
    """Whether most of a model rests in numbers of more bytes than that."""
    weights = list(model.parameters())
    wide = sum(weight.nbytes for weight in weights if weight.is_floating_point() and weight.element_size() > num_bytes)
    return 2 * wide > sum(weight.nbytes for weight in weights)


def _sizes(findings: Findings) -> dict[str, int]:
    """Bytes in the file of every tensor that is used."""
    wanted = BLUEPRINTS[findings.kind].contents(findings.config).needed
    stored = findings.file_header.tensors
    return {
        name: sum(
            stored[source.name].num_bytes
            for source in findings.sources.get(name, (Source(name),))
            if source.name in stored
        )
        for name in wanted
    }


def _main_stored(findings: Findings) -> torch.dtype | None:
    """What most numbers are stored in; None for a format of blocks."""
    counts: dict[str, int] = {}
    for info in findings.header.tensors.values():
        counts[info.dtype] = counts.get(info.dtype, 0) + info.numel
    dtype = getattr(torch, max(counts, key=lambda name: counts[name]), None)
    return dtype if isinstance(dtype, torch.dtype) else None
