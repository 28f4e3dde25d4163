"""What travels on the wires: the socket types, and the handles that are more than a library value.

A handle is frozen and is never changed by the node that gets it: ComfyUI caches it and may hand it to several nodes.
The models inside move between devices, which is the memory manager's business and changes no result. ComfyUI prints the
repr of a node's inputs to API clients when the node fails, so reprs are short and hold no path and no tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

if TYPE_CHECKING:
    from ..hyvideo_lib.checkpoint import FileReport
    from ..hyvideo_lib.lora import LoraUse
    from ..hyvideo_lib.memory import Offloader
    from ..hyvideo_lib.pipeline import SettledRuns
    from ..hyvideo_lib.text import ClipTextEncoder, LlamaTextEncoder, TextEmbeds
    from ..hyvideo_lib.transformer import CompileConfig, HunyuanVideoTransformer
    from ..hyvideo_lib.vae import CausalVideoVAE, TinyVAE

HYV_MODEL = io.Custom("HYV_MODEL")
HYV_TEXT = io.Custom("HYV_TEXT")
HYV_VAE = io.Custom("HYV_VAE")
HYV_EMBEDS = io.Custom("HYV_EMBEDS")
HYV_TEMPLATE = io.Custom("HYV_TEMPLATE")
HYV_ROPE = io.Custom("HYV_ROPE")
HYV_GUIDANCE = io.Custom("HYV_GUIDANCE")
HYV_BLOCK_SWAP = io.Custom("HYV_BLOCK_SWAP")
HYV_COMPILE = io.Custom("HYV_COMPILE")
HYV_CACHE = io.Custom("HYV_CACHE")


def short_dtype(dtype: torch.dtype) -> str:
    """ "bfloat16" and its like."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, eq=False, repr=False)
class TransformerHandle:
    """HYV_MODEL. managed: what ComfyUI's memory manager knows the model as; it lives as long as the handle.

    loras: act while the sampler runs; handles that differ in them share the model. compiling: as SampleRun takes it.
    settled: what runs of this model came down to when memory ran out.
    """

    name: str
    report: FileReport
    model: HunyuanVideoTransformer
    offloader: Offloader
    managed: Any
    attention: str
    settled: SettledRuns
    loras: tuple[LoraUse, ...] = ()
    compiling: CompileConfig | None = None

    def __repr__(self) -> str:
        loras = f", LoRA at {', '.join(f'{use.strength:g}' for use in self.loras)}" if self.loras else ""
        compiled = ", compiled" if self.compiling else ""
        return (
            f"HYV_MODEL({self.report.variant}, {self.report.quantization}, computes in "
            f"{short_dtype(self.model.compute_dtype)}, attention {self.attention}{compiled}{loras})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class TextHandle:
    """HYV_TEXT. reports: of the LLM's file and of CLIP's. cache: prompts that were encoded already, by their
    words, their template and the template that sets its crop."""

    names: tuple[str, str]
    reports: tuple[FileReport, FileReport]
    llm: LlamaTextEncoder
    clip: ClipTextEncoder
    managed: tuple[Any, ...]
    cache: dict[tuple[str, str, str], TextEmbeds] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"HYV_TEXT({self.llm.config.num_layers} layers of {self.llm.config.hidden_size}, CLIP)"


@dataclass(frozen=True, eq=False, repr=False)
class VAEHandle:
    """HYV_VAE."""

    name: str
    report: FileReport
    vae: CausalVideoVAE | TinyVAE
    managed: Any

    def __repr__(self) -> str:
        from ..hyvideo_lib.vae import TinyVAE

        kind = "tiny, for previews, " if isinstance(self.vae, TinyVAE) else ""
        dtype = short_dtype(next(self.vae.parameters()).dtype)
        return f"HYV_VAE({kind}{self.vae.config.latent_channels} channels, {dtype})"


@dataclass(frozen=True, eq=False, repr=False)
class Embeds:
    """HYV_EMBEDS: an encoded prompt and its negative, on the CPU. template: its name, or "custom", or "native"."""

    positive: TextEmbeds
    negative: TextEmbeds | None
    template: str

    def __repr__(self) -> str:
        tokens = self.positive.text_mask.sum(dim=1).tolist()
        return f"HYV_EMBEDS({tokens} tokens, {'with' if self.negative else 'no'} negative, template {self.template})"
