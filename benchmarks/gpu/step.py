"""One step with every weight on the card, in bf16 and in fp8, against diffusers and, where it is found, ComfyUI.

All sides hold the same weights and call PyTorch's own attention. fp8 weights are cast when they are used, on all sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu import card
from benchmarks.gpu.clips import Clip, clips
from benchmarks.gpu.comfy_peer import comfy_transformer
from benchmarks.gpu.models import FP8, TINY_TRANSFORMER, TRANSFORMER, random_transformer
from benchmarks.peers import diffusers_transformer
from benchmarks.rows import OURS, Options, Row, measured_row, ratio_row, skipped_row
from benchmarks.transformer import GUIDANCE, peer_forward
from hyvideo_lib.transformer import HunyuanVideoTransformer

STORAGES = {"bf16": torch.bfloat16, "fp8": FP8}
Side = Callable[[], torch.Tensor]


def run(options: Options) -> Iterator[Row]:
    config = TINY_TRANSFORMER if options.is_quick else TRANSFORMER
    for storage, dtype in STORAGES.items():
        if any(options.wants(case_of(clip, storage)) for clip in clips(options.is_quick)):
            yield from of_storage(random_transformer(config, dtype, options.device), storage, options)
            card.empty(options.device)


def case_of(clip: Clip, storage: str) -> str:
    return f"{clip.name} ({clip.tokens} tokens), {storage}"


@torch.no_grad()
def of_storage(model: HunyuanVideoTransformer, storage: str, options: Options) -> Iterator[Row]:
    peers = {"diffusers": diffusers_side(model, storage), "ComfyUI": comfy_transformer(model)}
    for clip in clips(options.is_quick):
        case = case_of(clip, storage)
        if not options.wants(case):
            continue
        inputs = clip.inputs(model.config, model.compute_dtype, options.device)
        try:
            ours = card.measure(
                lambda inputs=inputs: model(**inputs, guidance=GUIDANCE), options.device, options.repeats
            )
        except torch.OutOfMemoryError:
            yield skipped_row("gpu step", case, OURS, card.OUT_OF_MEMORY)
            continue
        yield measured_row("gpu step", case, OURS, ours)
        expected = model(**inputs, guidance=GUIDANCE)
        for name, peer in peers.items():
            if isinstance(peer, str):
                yield skipped_row("gpu step", case, name, peer)
                continue
            try:
                theirs = card.measure(lambda peer=peer, inputs=inputs: peer(inputs), options.device, options.repeats)
                difference = (peer(inputs) - expected).abs().max() / expected.abs().max()
            except torch.OutOfMemoryError:
                card.empty(options.device)
                yield skipped_row("gpu step", case, name, card.OUT_OF_MEMORY)
                continue
            yield measured_row("gpu step", case, name, theirs)
            yield {**ratio_row("gpu step", case, name, ours, theirs), "output_difference": float(difference)}


def diffusers_side(model: HunyuanVideoTransformer, storage: str) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """diffusers' forward on the same tensors; for fp8 with its casting hooks, which leave norms' layers in 16 bit."""
    peer = diffusers_transformer(model)
    if storage == "fp8":
        peer.enable_layerwise_casting(storage_dtype=FP8, compute_dtype=model.compute_dtype)
        for module in peer.modules():
            if not hasattr(module, "_diffusers_hook"):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(model.compute_dtype)
    return lambda inputs: peer_forward(peer, inputs)
