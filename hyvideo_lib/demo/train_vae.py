"""First stage of the demo's training: the causal VAE, from random weights.

Single frames first, then short crops around the shape (cheap, so many a step), then whole clips, because the norms see
the whole clip: a VAE trained on small pieces alone leaves ghosts at full length. In part of the last steps the decoder
gets a window of a whole clip's latents, so that decoding in tiles stays good. At the end the latents are centred and
scaled per channel, folded into the two 1x1x1 convolutions.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..vae import CausalVideoVAE, DiagonalGaussian, VAEConfig
from .training import Average, Checkpoint, MuonAdam, cosine_rate, draw_batch
from .world import FRAMES, SCENES, SIZE, draw_clips

log = logging.getLogger(__name__)

CONFIG = VAEConfig(block_channels=(16, 32, 32, 32), layers_per_block=2, norm_groups=4, latent_channels=16)
KL_WEIGHT = 5e-4
"""Per latent number. High enough that the decoder forgives a little noise in the latents, which the sampler leaves."""


INITIAL_LOGVAR = -5.0


@dataclass(frozen=True)
class Phase:
    """A stretch of training: steps, clips a step, frames and pixels a clip, rate, share of steps on a window."""

    steps: int
    batch: int
    frames: int
    size: int
    rate: float
    windows: float = 0.0


PHASES = (
    Phase(steps=600, batch=16, frames=1, size=32, rate=1.0),
    Phase(steps=600, batch=8, frames=9, size=32, rate=0.4),
    Phase(steps=350, batch=2, frames=FRAMES, size=SIZE, rate=0.2, windows=0.25),
)
RATES = (4e-3, 2e-3)
"""Peak rates of Muon and AdamW, which a phase scales."""


def reconstruction_loss(found: Tensor, video: Tensor, coverage: Tensor) -> Tensor:
    """Mean absolute and squared error; the shape and its surroundings weigh five times as much as the rest."""
    near = F.max_pool3d(coverage, (1, 9, 9), stride=1, padding=(0, 4, 4))
    weight = 1 + 4 * near
    error = found - video
    return ((error.abs() + error.square()) * weight).mean()


def train_vae(folder: Path, seed: int = 0, phases: tuple[Phase, ...] = PHASES) -> CausalVideoVAE:
    """Train, or go on from the checkpoint in `folder`. Returns the averaged and normalised VAE in float32."""
    torch.manual_seed(seed)
    vae = CausalVideoVAE(CONFIG)
    init_weights(vae)
    optimizer = MuonAdam(vae, lambda _, p: p.ndim >= 2, RATES)
    average = Average(vae, decay=0.997)
    state = Checkpoint(folder / "vae.pt", vae=vae, optimizer=optimizer, average=average)
    first = state.load()
    started, smooth = time.monotonic(), 0.0
    total = sum(phase.steps for phase in phases)
    for step in range(first, total):
        phase, local = locate(phases, step)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        video, coverage = draw_crops(phase, generator)
        with torch.autocast("cpu", torch.bfloat16):
            loss, pixel_loss = vae_loss(vae, video, coverage, generator, phase)
        vae.zero_grad(set_to_none=True)
        loss.backward()
        if phase.frames == 1:
            drop_past_gradients(vae)
        norm = nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        if norm.isfinite():  # a bf16 convolution kernel of some CPUs returns NaN weight gradients for some shapes
            optimizer.step(cosine_rate(local, phase.steps, phase.rate, warmup=30, floor=0.05))
            average.update(vae)
        else:
            log.warning("vae step %d skipped: its gradient is not finite", step)
        smooth = pixel_loss if smooth == 0 else 0.95 * smooth + 0.05 * pixel_loss
        if step % 50 == 0 or step == total - 1:
            log.info("vae step %d/%d loss %.4f  %.0f s", step, total, smooth, time.monotonic() - started)
        if step % 200 == 199:
            state.save(step + 1)
    average.copy_to(vae)
    normalise_latents(vae, seed)
    return vae


@torch.no_grad()
def init_weights(vae: CausalVideoVAE) -> None:
    """Variance-keeping weights, and a posterior that starts narrow: noise as wide as the prior drowns the start."""
    for module in vae.modules():
        if isinstance(module, (nn.Conv3d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for kernel in past_taps(vae):
        kernel[:, :, :-1] = 0
        kernel.mul_(kernel.shape[2] ** 0.5)
    quant, channels = vae.quant_conv, vae.config.latent_channels
    assert quant.bias is not None
    quant.weight[channels:] *= 0.1
    quant.bias[channels:] = INITIAL_LOGVAR


def past_taps(vae: CausalVideoVAE) -> list[nn.Parameter]:
    """The convolution kernels [out, in, T, H, W] that look back in time."""
    return [p for p in vae.parameters() if p.ndim == 5 and p.shape[2] > 1]


def drop_past_gradients(vae: CausalVideoVAE) -> None:
    """Keep the taps on earlier frames at zero while there is one frame only.

    To a single frame all taps are alike, so they would grow alike and blur time once there is any.
    """
    for kernel in past_taps(vae):
        assert kernel.grad is not None
        kernel.grad[:, :, :-1] = 0


def draw_crops(phase: Phase, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips and coverage of a phase; where it wants less than the whole picture, a square that holds the shape."""
    video, coverage = draw_clips(draw_batch(SCENES, phase.batch, generator), generator, frames=phase.frames)
    if phase.size == SIZE:
        return video, coverage
    weight = coverage.sum((1, 2)) + 1e-9  # [B, H, W]
    grid = torch.arange(SIZE, dtype=torch.float32)
    crops: list[tuple[Tensor, Tensor]] = []
    for i in range(phase.batch):
        middles = [(weight[i].sum(dim) * grid).sum() / weight[i].sum() for dim in (1, 0)]
        jitter = torch.randint(-8, 9, (2,), generator=generator)
        y, x = (
            min(max(int(middle + shift) - phase.size // 2, 0), SIZE - phase.size)
            for middle, shift in zip(middles, jitter.tolist(), strict=True)
        )
        window = (i, slice(None), slice(None), slice(y, y + phase.size), slice(x, x + phase.size))
        crops.append((video[window], coverage[window]))
    return torch.stack([v for v, _ in crops]), torch.stack([c for _, c in crops])


def vae_loss(
    vae: CausalVideoVAE, video: Tensor, coverage: Tensor, generator: torch.Generator, phase: Phase
) -> tuple[Tensor, float]:
    """Reconstruction plus a small pull of the posterior towards a unit Gaussian."""
    posterior = DiagonalGaussian.from_moments(vae.moments(video).float())
    latents = posterior.sample(generator)
    kl = 0.5 * (posterior.mean.square() + posterior.logvar.exp() - 1 - posterior.logvar).mean()
    if torch.rand((), generator=generator) < phase.windows:
        size = 4
        y, x = (int(torch.randint(latents.shape[3] - size + 1, (1,), generator=generator)) for _ in range(2))
        latents = latents[..., y : y + size, x : x + size]
        crop = (..., slice(8 * y, 8 * (y + size)), slice(8 * x, 8 * (x + size)))
        video, coverage = video[crop], coverage[crop]
    found = vae.pixels(latents).float()
    pixel_loss = reconstruction_loss(found, video, coverage)
    return pixel_loss + KL_WEIGHT * kl, pixel_loss.item()


def locate(phases: tuple[Phase, ...], step: int) -> tuple[Phase, int]:
    """The phase a step falls into, and the step's number within it."""
    for phase in phases:
        if step < phase.steps:
            return phase, step
        step -= phase.steps
    raise ValueError(f"step {step} is past the last phase")


@torch.no_grad()
def normalise_latents(vae: CausalVideoVAE, seed: int, clips: int = 128) -> None:
    """Centre each latent channel and scale it to 1 / scaling, inside quant_conv and post_quant_conv.

    Channels that carry next to nothing are left small, so that their rounding is not blown up to signal.
    """
    generator = torch.Generator().manual_seed(seed + 17)
    channels = vae.config.latent_channels
    means = []
    for _ in range(clips // 8):
        video, _ = draw_clips(draw_batch(SCENES, 8, generator), generator)
        means.append(vae.encode(video).mean)
    flat = torch.cat(means).transpose(0, 1).reshape(channels, -1).double()
    center, spread = flat.mean(1), flat.std(1)
    spread = spread.clamp(min=0.3 * spread.max().item())
    scale = 1 / (spread * vae.config.scaling)
    log.info("latent channels: centre %s spread %s", center.tolist(), spread.tolist())
    quant, post = vae.quant_conv, vae.post_quant_conv
    assert quant.bias is not None
    assert post.bias is not None
    post.bias += (post.weight.flatten(1).double() @ center).float()
    post.weight /= scale.float().view(1, -1, 1, 1, 1)
    quant.weight[:channels] *= scale.float().view(-1, 1, 1, 1, 1)
    quant.bias[:channels] = ((quant.bias[:channels].double() - center) * scale).float()
    quant.bias[channels:] += 2 * scale.log().float()
