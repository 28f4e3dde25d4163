"""Numbers that stopped being numbers, found where they arise: every stage of a run looks at what it hands on.

A single NaN spreads through attention to the whole video, which then decodes to black frames without any error. The
message names the stage, the tensor, and what usually is to blame there.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from .errors import NonFiniteOutput

CAUSES: Mapping[str, str] = MappingProxyType(
    {
        "text": (
            "float16 overflows in language models: run the text encoders in bfloat16 or float32. If they do already, "
            "the encoder's file is damaged; download it again."
        ),
        "embeds": "The saved prompt is damaged, or was encoded by a run that failed: encode the prompt again.",
        "sampling": (
            "float16 overflows in this model: compute in bfloat16 or float32. If it does already, a weight file or a "
            "LoRA is damaged or does not belong to this model."
        ),
        "latents": "They are damaged, or come from a run that failed: make them anew.",
        "encode": "Let the VAE compute in float32 (--vae-dtype float32). If it does already, its file is damaged.",
        "decode": "Let the VAE compute in float32 (--vae-dtype float32). If it does already, its file is damaged.",
    }
)
"""Stage of a run to what usually causes such numbers there, and what to do."""


def check_finite(tensor: Tensor, stage: str, name: str) -> None:
    """Raise NonFiniteOutput if a tensor holds NaN or infinity.

    stage: a key of CAUSES. name: what the tensor is called in the message. Waits for the tensor's device.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise NonFiniteOutput(f"{describe_broken(tensor, name)}; the video would be black. {CAUSES[stage]}")


def describe_broken(tensor: Tensor, name: str) -> str:
    """What is wrong with a tensor: "text_embeds [1, 20, 64], bfloat16: NaN in 3 and infinity in 0 of 1280 numbers"."""
    nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{name} {list(tensor.shape)}, {dtype}: NaN in {nan} and infinity in {infinite} of {tensor.numel()} numbers"


class FiniteWatch:
    """Looks at the latents of every step of a run, without making a graphics card wait at every step.

    What was found stays on the device, one flag per video and step, and is read `every` steps and at the last one; the
    message names the first broken step all the same. On the CPU it is read at every step, as nothing has to wait.
    """

    def __init__(self, steps: int, every: int = 4) -> None:
        self._steps, self._every = steps, every
        self._pending: list[tuple[str, Tensor]] = []

    def look(self, latents: Tensor, step: int, sigma: float) -> None:
        """Note whether latents [B, C, T, H, W] after `step` (from 1) are finite. Raises NonFiniteOutput."""
        finite = torch.isfinite(latents).flatten(1).all(dim=1)  # [B]
        self._pending.append((f"Step {step} of {self._steps} (sigma {sigma:.4g})", finite))
        if latents.device.type == "cpu" or step == self._steps or len(self._pending) >= self._every:
            self._read()

    def _read(self) -> None:
        """One wait for all flags that are pending."""
        flags = torch.stack([finite for _, finite in self._pending]).tolist()
        for (where, _), videos in zip(self._pending, flags, strict=True):
            broken = [str(number) for number, ok in enumerate(videos, start=1) if not ok]
            if broken:
                raise NonFiniteOutput(
                    f"{where} gave NaN or infinity in the latents, in video {', '.join(broken)} of {len(videos)}; the "
                    f"result would be black. {CAUSES['sampling']}"
                )
        self._pending.clear()
