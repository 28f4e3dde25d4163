"""Trains the embedded demo model from nothing and writes its files: `python -m hyvideo_lib.demo.train`.

Stages: VAE, text encoders, transformer, guidance. Each goes on from its own checkpoint when started again. Everything
is drawn from `--seed`; on one machine, with one number of threads, the same seed gives the same files.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint import load_text_encoder, load_vae
from ..quant.fp8 import quantize_fp8
from ..text import ClipTextEncoder, LlamaTextEncoder
from ..transformer import HunyuanVideoTransformer
from ..vae import CausalVideoVAE
from . import assets
from .train_text import make_configs, train_text
from .train_transformer import PromptBook, distill_guidance, make_latents, train_transformer
from .train_vae import train_vae

log = logging.getLogger(__name__)


def save(path: Path, tensors: Mapping[str, Tensor], **config: Any) -> None:
    """A safetensors file with what its shapes cannot tell under `hyvideo.config`; written aside, then renamed."""
    temporary = path.with_suffix(".tmp")
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, temporary, {"format": "pt", "hyvideo.config": json.dumps(config)})
    temporary.replace(path)
    log.info("wrote %s, %.1f MB", path.name, path.stat().st_size / 1e6)


def halved(module: torch.nn.Module) -> dict[str, Tensor]:
    """A state dict in bfloat16."""
    return {name: tensor.bfloat16() for name, tensor in module.state_dict().items()}


def save_vae(folder: Path, vae: CausalVideoVAE) -> None:
    save(folder / assets.VAE.name, halved(vae), norm_groups=vae.config.norm_groups)


def save_text(folder: Path, llm: LlamaTextEncoder, clip: ClipTextEncoder) -> None:
    """Both encoders under the names their released files have. The language model has all its layers."""
    llm_config, clip_config = make_configs(llm.tokenizer, clip.tokenizer)
    save(folder / assets.LLM.name, halved(llm.model), head_dim=llm_config.head_dim)
    stem = "" if all(name.startswith("text_model.") for name in clip.model.state_dict()) else "text_model."
    save(
        folder / assets.CLIP.name,
        {stem + name: tensor for name, tensor in halved(clip.model).items()},
        num_heads=clip_config.num_heads,
        bos_token_id=clip_config.bos_token_id,
        eos_token_id=clip_config.eos_token_id,
    )


def fp8_state_dict(model: HunyuanVideoTransformer) -> dict[str, Tensor]:
    """Tencent's fp8: the Linears of the blocks in 8 bits with a scale each, everything else in bfloat16."""
    stored: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 2 and name.startswith(("double_blocks.", "single_blocks.")):
            weight, scale = quantize_fp8(tensor)
            stored[name] = weight
            stored[name.removesuffix("weight") + "fp8_scale"] = scale
        else:
            stored[name] = tensor.bfloat16()
    return stored


def save_transformer(folder: Path, model: HunyuanVideoTransformer, bf16: Path) -> None:
    """The embedded fp8 file, and at `bf16` the same weights unquantised, to compare it with."""
    axes = list(model.config.rope_axes)
    save(bf16, halved(model), rope_axes=axes)
    save(folder / assets.TRANSFORMER.name, fp8_state_dict(model), rope_axes=axes)


def train(work: Path, out: Path, seed: int) -> None:
    """All stages in a row. work: checkpoints; out: the finished files."""
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / assets.VAE.name).exists():
        save_vae(out, train_vae(work, seed))
    if not (out / assets.CLIP.name).exists():
        save_text(out, *train_text(out, seed))
    # From here on the stored, rounded encoders are used: they are what the transformer will meet.
    vae = load_vae(out / assets.VAE.name)
    llm, clip = (load_text_encoder(out / path.name, compute_dtype=torch.float32) for path in (assets.LLM, assets.CLIP))
    assert isinstance(llm, LlamaTextEncoder)
    assert isinstance(clip, ClipTextEncoder)
    book = PromptBook(llm, clip)
    cached = work / "latents.pt"
    if not cached.exists():
        torch.save(make_latents(vae, seed), cached)
    latents, scenes = torch.load(cached, weights_only=True)
    teacher = train_transformer(work, book, latents, scenes, seed)
    student = distill_guidance(work, teacher, book, latents, scenes, seed)
    save_transformer(out, student, work / "transformer_bf16.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/demo"), help="folder for checkpoints")
    parser.add_argument("--out", type=Path, default=assets.FOLDER, help="folder for the finished files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(options.work, options.out, options.seed)


if __name__ == "__main__":
    main()
