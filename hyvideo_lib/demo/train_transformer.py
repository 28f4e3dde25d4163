"""Third and fourth stage of the demo's training: the transformer, and its guidance.

Flow matching on the VAE's latents, with prompts encoded by the trained text encoders, some of them empty so that
classifier-free guidance works. Then a short second phase teaches the guidance input: the student sees a scale g and
must predict in one pass what its teacher says with and without the prompt, v_empty + g (v_prompt - v_empty).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..text import ClipTextEncoder, LlamaTextEncoder, TextEmbeds, encode_prompt
from ..transformer import HunyuanVideoTransformer, TransformerConfig
from ..vae import CausalVideoVAE
from .training import Average, Checkpoint, MuonAdam, cosine_rate
from .world import PARTIAL_SENTENCES, SEEN, draw_clips, prompt_variants

log = logging.getLogger(__name__)

STEPS = 3200
DISTILL_STEPS = 300
BATCH = 32
NUM_CLIPS = 8064
EMPTY_SHARE = 0.1
PARTIAL_SHARE = 0.1
PLAIN_GUIDANCE = 1.0
"""The scale at which nothing is guided; all the first phase is trained at it."""
GUIDANCE_RANGE = (1.0, 6.0)


def make_config(text_dim: int, pooled_dim: int) -> TransformerConfig:
    return TransformerConfig(
        in_channels=16,
        out_channels=16,
        hidden_size=256,
        num_heads=4,
        num_double_blocks=2,
        num_single_blocks=6,
        rope_axes=(8, 28, 28),
        text_dim=text_dim,
        pooled_dim=pooled_dim,
    )


@torch.no_grad()
def make_latents(vae: CausalVideoVAE, seed: int, count: int = NUM_CLIPS, batch: int = 8) -> tuple[Tensor, Tensor]:
    """Latents [N, 16, T, H, W] in the transformer's scale, float32, and the index in SEEN of each one's scene [N]."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + 900_000)
    scenes = torch.arange(count) % len(SEEN)
    latents = []
    for low in range(0, count, batch):
        chosen = [SEEN[int(i)] for i in scenes[low : low + batch]]
        video, _ = draw_clips(chosen, generator)
        with torch.autocast("cpu", torch.bfloat16):
            moments = vae.moments(video)
        latents.append(moments[:, : vae.config.latent_channels].float() * vae.config.scaling)
        if low % (200 * batch) == 0:
            log.info("latents %d/%d", low, count)
    return torch.cat(latents), scenes


class PromptBook:
    """Every prompt of the seen scenes, encoded once; hands out padded batches."""

    def __init__(self, llm: LlamaTextEncoder, clip: ClipTextEncoder) -> None:
        self.rows: list[TextEmbeds] = []
        self.whole: list[list[int]] = []
        self.partial: list[list[int]] = []
        known: dict[str, int] = {}
        for scene in SEEN:
            whole = prompt_variants(scene)
            partial = [scene.prompt(sentence) for sentence in PARTIAL_SENTENCES]
            for prompts, book in ((whole, self.whole), (partial, self.partial)):
                fresh = [text for text in dict.fromkeys(prompts) if text not in known]
                known |= {text: len(known) + i for i, text in enumerate(fresh)}
                if fresh:
                    embeds = encode_prompt(fresh, llm, clip)
                    self.rows += [embeds.row(i) for i in range(len(fresh))]
                book.append([known[text] for text in prompts])
        self.empty = encode_prompt("", llm, clip)

    def batch(self, scenes: Tensor, generator: torch.Generator) -> TextEmbeds:
        """A prompt for each scene (an index in SEEN): mostly whole, some partial, some empty."""
        draws = torch.rand(len(scenes), 2, generator=generator)
        rows = []
        for scene, (kind, which) in zip(scenes.tolist(), draws.tolist(), strict=True):
            if kind < EMPTY_SHARE:
                rows.append(self.empty)
                continue
            choices = (self.partial if kind < EMPTY_SHARE + PARTIAL_SHARE else self.whole)[scene]
            rows.append(self.rows[choices[int(which * len(choices))]])
        return pad_rows(rows)


def pad_rows(rows: Sequence[TextEmbeds]) -> TextEmbeds:
    """Single prompts as one batch, padded to the longest."""
    pad = nn.utils.rnn.pad_sequence
    return TextEmbeds(
        pad([row.text_embeds[0] for row in rows], batch_first=True),
        pad([row.text_mask[0] for row in rows], batch_first=True),
        torch.cat([row.pooled_embeds for row in rows]),
        (0,) * len(rows),
    )


@dataclass(frozen=True)
class Noised:
    """A training example: noisy latents at a level, and the velocity that leads from the data to the noise."""

    latents: Tensor
    sigmas: Tensor
    velocity: Tensor

    @classmethod
    def make(cls, clean: Tensor, generator: torch.Generator) -> Noised:
        """Noise levels are logit-normal, a little towards the noisy end, where the layout of the scene is decided."""
        noise = torch.randn(clean.shape, generator=generator)
        sigmas = torch.sigmoid(torch.randn(len(clean), generator=generator) * 1.1 + 0.4)
        level = sigmas.view(-1, 1, 1, 1, 1)
        return cls(torch.lerp(clean, noise, level), sigmas, noise - clean)


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and "blocks" in name


def init_weights(model: HunyuanVideoTransformer) -> None:
    """Gates, shifts and scales start at zero, and so does the output: every block starts as the identity."""
    for name, parameter in model.named_parameters():
        if "_mod.linear" in name or "modulation" in name or "final_layer.linear" in name:
            nn.init.zeros_(parameter)


class Velocity:
    """The model's answer for an example and its prompts, in float32."""

    def __init__(self, model: HunyuanVideoTransformer) -> None:
        self.model = model

    def __call__(self, example: Noised, text: TextEmbeds, guidance: Tensor | float) -> Tensor:
        return self.model(
            example.latents, example.sigmas * 1000, text.text_embeds, text.text_mask, text.pooled_embeds, guidance
        ).float()


def run_training(
    name: str,
    folder: Path,
    model: HunyuanVideoTransformer,
    steps: int,
    rate: float,
    decay: float,
    seed: int,
    loss_fn: LossFn,
) -> None:
    """The loop both phases share: from a checkpoint if there is one; the averaged weights end up in the model."""
    optimizer = MuonAdam(model, is_block_matrix, (2 * rate, rate))
    average = Average(model, decay=decay)
    state = Checkpoint(folder / f"{name}.pt", model=model, average=average, optimizer=optimizer)
    started, smooth = time.monotonic(), 0.0
    for step in range(state.load(), steps):
        with sdpa_kernel(SDPBackend.MATH):  # the CPU's flash backward is many times slower at these few tokens
            loss = loss_fn(torch.Generator().manual_seed(seed * 1_000_003 + step))
        model.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if norm.isfinite():
            optimizer.step(cosine_rate(step, steps, warmup=min(100, steps // 5)))
            average.update(model)
        smooth = loss.item() if smooth == 0 else 0.98 * smooth + 0.02 * loss.item()
        if step % 50 == 0 or step == steps - 1:
            log.info("%s step %d/%d loss %.4f  %.0f s", name, step, steps, smooth, time.monotonic() - started)
        if step % 200 == 199:
            state.save(step + 1)
    average.copy_to(model)


class LossFn(Protocol):
    """What a phase minimises: called with a seeded generator, once a step."""

    def __call__(self, generator: torch.Generator) -> Tensor: ...


class FlowMatching:
    """Plain flow matching at the scale that guides nothing."""

    def __init__(self, model: HunyuanVideoTransformer, latents: Tensor, scenes: Tensor, book: PromptBook) -> None:
        self.velocity, self.latents, self.scenes, self.book = Velocity(model), latents, scenes, book

    def __call__(self, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(self.latents), (BATCH,), generator=generator)
        example = Noised.make(self.latents[chosen], generator)
        text = self.book.batch(self.scenes[chosen], generator)
        return F.mse_loss(self.velocity(example, text, PLAIN_GUIDANCE), example.velocity)


class GuidanceDistillation:
    """The student's one pass against the teacher's two. Meng et al. 2023, "On Distillation of Guided Diffusion
    Models"."""

    def __init__(
        self,
        student: HunyuanVideoTransformer,
        teacher: HunyuanVideoTransformer,
        latents: Tensor,
        scenes: Tensor,
        book: PromptBook,
    ) -> None:
        self.student, self.teacher = Velocity(student), Velocity(teacher)
        self.latents, self.scenes, self.book = latents, scenes, book

    def __call__(self, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(self.latents), (BATCH,), generator=generator)
        example = Noised.make(self.latents[chosen], generator)
        text = self.book.batch(self.scenes[chosen], generator)
        low, high = GUIDANCE_RANGE
        guidance = low * (high / low) ** torch.rand(BATCH, generator=generator)
        with torch.no_grad():
            said = self.teacher(example, text, PLAIN_GUIDANCE)
            unsaid = self.teacher(example, pad_rows([self.book.empty] * BATCH), PLAIN_GUIDANCE)
            target = unsaid + guidance.view(-1, 1, 1, 1, 1) * (said - unsaid)
        # What guidance adds grows with the scale; divided by it, small scales are learnt as well as large ones.
        return ((self.student(example, text, guidance) - target) / guidance.view(-1, 1, 1, 1, 1)).square().mean()


def train_transformer(
    folder: Path, book: PromptBook, latents: Tensor, scenes: Tensor, seed: int = 0, steps: int = STEPS
) -> HunyuanVideoTransformer:
    """First phase. Returns the averaged model in float32 (it computes in bfloat16)."""
    torch.manual_seed(seed + 2)
    text_dim, pooled_dim = book.empty.text_embeds.shape[-1], book.empty.pooled_embeds.shape[-1]
    model = HunyuanVideoTransformer(make_config(text_dim, pooled_dim), compute_dtype=torch.bfloat16)
    init_weights(model)
    loss_fn = FlowMatching(model, latents, scenes, book)
    run_training("transformer", folder, model, steps, 1e-3, 0.9985, seed, loss_fn)
    return model


def distill_guidance(
    folder: Path,
    teacher: HunyuanVideoTransformer,
    book: PromptBook,
    latents: Tensor,
    scenes: Tensor,
    seed: int = 0,
    steps: int = DISTILL_STEPS,
) -> HunyuanVideoTransformer:
    """Second phase: a student that starts as its teacher and learns to act on the guidance scale."""
    torch.manual_seed(seed + 3)
    student = HunyuanVideoTransformer(teacher.config, compute_dtype=torch.bfloat16)
    student.load_state_dict(teacher.state_dict())
    loss_fn = GuidanceDistillation(student, teacher.requires_grad_(False), latents, scenes, book)
    run_training("guidance", folder, student, steps, 5e-4, 0.99, seed + 1, loss_fn)
    return student
