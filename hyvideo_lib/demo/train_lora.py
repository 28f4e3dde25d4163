"""Trains the demo's LoRA and writes it in two families: `python -m hyvideo_lib.demo.train_lora`.

It teaches the demo model a word that it never heard, "large", and a size that it never drew, and leaves the rest as it
is: half of every batch is flow matching on clips of large shapes, the other half asks for what the model without the
LoRA says to prompts it knows. Everything is drawn from `--seed`, and an interrupted run goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..checkpoint import load_text_encoder, load_transformer, load_vae
from ..lora import LowRank, write_lora
from ..text import ClipTextEncoder, LlamaTextEncoder, TextEmbeds, encode_prompt
from ..transformer import HunyuanVideoTransformer
from ..transformer.ops import Linear
from ..vae import CausalVideoVAE
from . import assets
from .train_transformer import GUIDANCE_RANGE, Noised, Velocity, pad_rows
from .training import Checkpoint, cosine_rate
from .world import (
    LARGE_RADIUS,
    LARGE_SPEED,
    PARTIAL_SENTENCES,
    RADIUS,
    SEEN,
    SENTENCES,
    SPEED,
    Scene,
    draw_clips,
    large_sentence,
)

log = logging.getLogger(__name__)

STEPS = 500
TAUGHT_BATCH, KNOWN_BATCH = 8, 8
KNOWN_WEIGHT = 3.0
"""Of the distance from the model without the LoRA, beside the error on large shapes."""
RATE = 1e-2
RANK = 4
ALPHA = 2.0
LAYERS = ("img_attn_qkv", "txt_attn_qkv", "linear1", "linear2")
"""The ends of the names of the layers that are trained."""
CAPTIONS_PER_CLIP = 4
LARGE_SENTENCES = tuple(map(large_sentence, SENTENCES))
KNOWN_SENTENCES = (*SENTENCES, *PARTIAL_SENTENCES)


class Factors(nn.Module):
    """The two matrices of one layer while they are trained: one of the layer's adapters.

    The product starts at zero, so the first step begins at the model as it is.
    """

    def __init__(self, layer: Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) * layer.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        self.scale = alpha / rank
        self.is_on = True
        self.reads_weight = False

    @property
    def origin(self) -> Hashable:
        """Another one every time: what is trained changes."""
        return object()

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        pass  # they are where the model is

    def merging(self, tokens: int) -> None:
        """Never: the factors are trained as they are."""

    def beside(self, rows: slice) -> Callable[[Tensor], Tensor]:
        return partial(self, rows=rows)

    def forward(self, x: Tensor, rows: slice) -> Tensor:
        if not self.is_on:
            return x.new_zeros(())
        return F.linear(F.linear(x, self.down.to(x.dtype)) * self.scale, self.up[rows].to(x.dtype))


class TrainedLora(nn.Module):
    """Factors for every chosen layer of a model, which are in it from the start."""

    def __init__(self, model: HunyuanVideoTransformer) -> None:
        super().__init__()
        chosen = {name: layer for name, layer in model.named_modules() if name.endswith(LAYERS) and "blocks" in name}
        self.by_name: dict[str, Factors] = {}
        for name, layer in chosen.items():
            assert isinstance(layer, Linear)
            self.by_name[name] = Factors(layer, RANK, ALPHA)
            layer.adapters = (self.by_name[name],)
        self.factors = nn.ModuleList(self.by_name.values())

    def turn(self, is_on: bool) -> None:
        for factors in self.by_name.values():
            factors.is_on = is_on

    def layers(self) -> dict[str, LowRank]:
        """What was learnt, by the names of the layers, in bfloat16."""
        return {
            name: LowRank(factors.down.detach().bfloat16(), factors.up.detach().bfloat16(), factors.scale)
            for name, factors in self.by_name.items()
        }


@dataclass(frozen=True, eq=False)
class Examples:
    """Clips as latents [N, 16, T, H, W] in the transformer's scale, and for each a few encoded captions."""

    latents: Tensor
    captions: list[list[TextEmbeds]]

    def draw(self, count: int, generator: torch.Generator) -> tuple[Noised, TextEmbeds]:
        chosen = torch.randint(len(self.latents), (count,), generator=generator)
        which = torch.randint(CAPTIONS_PER_CLIP, (count,), generator=generator)
        rows = [self.captions[clip][caption] for clip, caption in zip(chosen.tolist(), which.tolist(), strict=True)]
        return add_noise(self.latents[chosen], generator), pad_rows(rows)


def add_noise(clean: Tensor, generator: torch.Generator) -> Noised:
    """Examples nearer to pure noise than the model's own training had them: there only the words tell the size."""
    noise = torch.randn(clean.shape, generator=generator)
    sigmas = torch.sigmoid(torch.randn(len(clean), generator=generator) * 1.2 + 2.2)
    return Noised(torch.lerp(clean, noise, sigmas.view(-1, 1, 1, 1, 1)), sigmas, noise - clean)


@torch.no_grad()
def make_examples(
    scenes: Sequence[Scene],
    sentences: Sequence[str],
    is_large: bool,
    vae: CausalVideoVAE,
    encoders: tuple[LlamaTextEncoder, ClipTextEncoder],
    generator: torch.Generator,
    batch: int = 8,
) -> Examples:
    """One clip for each of the scenes, told in some of the sentences."""
    radii, speeds = (LARGE_RADIUS, LARGE_SPEED) if is_large else (RADIUS, SPEED)
    latents, captions = [], []
    for low in range(0, len(scenes), batch):
        chosen = scenes[low : low + batch]
        video, _ = draw_clips(chosen, generator, radii=radii, speeds=speeds)
        with torch.autocast("cpu", torch.bfloat16):
            moments = vae.moments(video)
        latents.append(moments[:, : vae.config.latent_channels].float() * vae.config.scaling)
        draws = torch.randint(len(sentences) * 3, (len(chosen), CAPTIONS_PER_CLIP), generator=generator)
        prompts = [
            scene.prompt(sentences[draw // 3], draw % 3)
            for scene, row in zip(chosen, draws.tolist(), strict=True)
            for draw in row
        ]
        embeds = encode_prompt(prompts, *encoders)
        rows = [embeds.row(i) for i in range(len(prompts))]
        captions += [rows[i : i + CAPTIONS_PER_CLIP] for i in range(0, len(rows), CAPTIONS_PER_CLIP)]
        if low % (10 * batch) == 0:
            log.info("examples %d/%d", low, len(scenes))
    return Examples(torch.cat(latents), captions)


def loss_of(
    velocity: Velocity, lora: TrainedLora, taught: Examples, known: Examples, generator: torch.Generator
) -> Tensor:
    """The error on clips of large shapes, and the distance from what the model said before to prompts it knows."""
    example, text = taught.draw(TAUGHT_BATCH, generator)
    learnt = F.mse_loss(velocity(example, text, draw_guidance(TAUGHT_BATCH, generator)), example.velocity)
    example, text = known.draw(KNOWN_BATCH, generator)
    guidance = draw_guidance(KNOWN_BATCH, generator)
    lora.turn(False)
    with torch.no_grad():
        before = velocity(example, text, guidance)
    lora.turn(True)
    return learnt + KNOWN_WEIGHT * F.mse_loss(velocity(example, text, guidance), before)


def draw_guidance(count: int, generator: torch.Generator) -> Tensor:
    """Scales [count], as many small ones as large ones."""
    low, high = GUIDANCE_RANGE
    return low * (high / low) ** torch.rand(count, generator=generator)


def train_lora(work: Path, seed: int = 0, steps: int = STEPS) -> dict[str, LowRank]:
    """The trained LoRA by layer. work: folder for the checkpoint."""
    vae = load_vae(assets.VAE)
    llm, clip = (load_text_encoder(path, compute_dtype=torch.float32) for path in (assets.LLM, assets.CLIP))
    assert isinstance(llm, LlamaTextEncoder)
    assert isinstance(clip, ClipTextEncoder)
    generator = torch.Generator().manual_seed(seed)
    taught = make_examples(SEEN, LARGE_SENTENCES, True, vae, (llm, clip), generator)
    known = make_examples(SEEN[::2], KNOWN_SENTENCES, False, vae, (llm, clip), generator)
    del vae, llm, clip
    model = load_transformer(assets.TRANSFORMER, torch.bfloat16, torch.bfloat16)
    torch.manual_seed(seed)
    lora = TrainedLora(model)
    optimizer = torch.optim.AdamW(lora.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    state = Checkpoint(work / "lora.pt", lora=lora, optimizer=optimizer)
    velocity = Velocity(model)
    started, smooth = time.monotonic(), 0.0
    for step in range(state.load(), steps):
        with sdpa_kernel(SDPBackend.MATH):  # the CPU's flash backward is many times slower at these few tokens
            loss = loss_of(velocity, lora, taught, known, torch.Generator().manual_seed(seed * 1_000_003 + step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(lora.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, steps, RATE, warmup=20)
        optimizer.step()
        smooth = loss.item() if smooth == 0 else 0.95 * smooth + 0.05 * loss.item()
        if step % 10 == 0 or step == steps - 1:
            log.info("LoRA step %d/%d loss %.4f  %.0f s", step, steps, smooth, time.monotonic() - started)
        if step % 50 == 49:
            state.save(step + 1)
    return lora.layers()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/demo"), help="folder for the checkpoint")
    parser.add_argument("--out", type=Path, default=assets.FOLDER, help="folder for the finished files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.work.mkdir(parents=True, exist_ok=True)
    layers = train_lora(options.work, options.seed, options.steps)
    hidden_size = layers["single_blocks.0.linear1"].down.shape[1]
    for family, path in assets.LORAS.items():
        write_lora(options.out / path.name, layers, family, hidden_size, overwrite=True)
        log.info("wrote %s", path.name)


if __name__ == "__main__":
    main()
