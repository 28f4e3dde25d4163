"""One step with every weight on the card, in fp8 and in bf16, against diffusers and, where they are found, ComfyUI.

Each side is made of the same weights, measured at all sizes and let go before the next is made, so that none counts
another's memory. fp8 weights are cast when they are used, on all sides. Ours and diffusers attend by the same kernel;
ComfyUI chooses its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from benchmarks.cases import Case
from benchmarks.gpu import card
from benchmarks.gpu.clips import Clip, clips, cropped
from benchmarks.gpu.comfy_peer import comfy_path, comfy_transformer
from benchmarks.gpu.kernels import KERNELS, shared_kernel, warm_up
from benchmarks.gpu.models import FP8, TINY_TRANSFORMER, TRANSFORMER, random_transformer
from benchmarks.gpu.table import Table
from benchmarks.peers import diffusers_transformer, drop_masks
from benchmarks.rows import OURS, Measurement, Options, Row, measured_row
from benchmarks.transformer import GUIDANCE, peer_forward
from hyvideo_lib.transformer import HunyuanVideoTransformer, TransformerConfig

STORAGES = {"fp8": FP8, "bf16": torch.bfloat16}
Inputs = dict[str, Tensor]
Forward = Callable[[Inputs], Tensor]


def ours(model: HunyuanVideoTransformer, storage: str) -> Forward:
    return lambda inputs: model(**inputs, guidance=GUIDANCE)


def diffusers_side(model: HunyuanVideoTransformer, storage: str) -> Forward:
    """diffusers' forward on the same tensors; for fp8 with its casting hooks, which leave norms' layers in 16 bit.

    Its mask is dropped: all text is valid, and a mask that hides nothing rules the fast kernels out.
    """
    peer = diffusers_transformer(model)
    drop_masks(peer)
    if storage == "fp8":
        peer.enable_layerwise_casting(storage_dtype=FP8, compute_dtype=model.compute_dtype)
        for module in peer.modules():
            if not hasattr(module, "_diffusers_hook"):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(model.compute_dtype)
    return lambda inputs: peer_forward(peer, inputs)


def comfy_side(model: HunyuanVideoTransformer, storage: str) -> Forward:
    return comfy_transformer(model)


SIDES: dict[str, Callable[[HunyuanVideoTransformer, str], Forward]] = {
    OURS: ours,
    "diffusers": diffusers_side,
    "ComfyUI": comfy_side,
}
NEEDED: dict[str, Callable[[], object]] = {"diffusers": partial(import_module, "diffusers"), "ComfyUI": comfy_path}
"""What raises ImportError where a side is not there, before weights are made for it."""
OWN_KERNEL = "its own choice"


def config_of(options: Options) -> TransformerConfig:
    return TINY_TRANSFORMER if options.is_quick else TRANSFORMER


def case_of(clip: Clip, storage: str) -> str:
    return f"{clip.name} ({clip.tokens} tokens), {storage}"


@torch.no_grad()
def run(options: Options) -> Iterator[Row]:
    table = Table("gpu step", options)
    for storage in STORAGES:
        found = Found(table.benchmark, storage, options)
        for side in SIDES:
            yield from table.rows_of(found.cases_of(side))
            card.empty(options.device)


class Found:
    """What was measured with weights in one storage dtype. Outputs of ours are kept, on the CPU, to compare."""

    def __init__(self, benchmark: str, storage: str, options: Options) -> None:
        self._benchmark, self._storage, self._options = benchmark, storage, options
        self._config = config_of(options)
        self._results: dict[str, Measurement] = {}
        self._outputs: dict[str, Tensor] = {}
        self._kernel = cache(lambda: shared_kernel(options.device, torch.bfloat16, self._config.head_dim))

    def cases_of(self, side: str) -> Iterator[Case]:
        """All sizes of one side, which is made for the first that is measured."""
        forward = cache(partial(self._make, side))
        for clip in clips(self._options.is_quick):
            case = case_of(clip, self._storage)
            yield Case(case, partial(self._rows, clip, case, side, forward), side, clip.operations(self._config))

    def _make(self, side: str) -> Forward:
        if side in NEEDED:
            NEEDED[side]()
        model = random_transformer(self._config, STORAGES[self._storage], self._options.device)
        forward = SIDES[side](model, self._storage)
        del model  # a peer that casts has weights of its own from its first pass on
        with sdpa_kernel(KERNELS[self._kernel()]):
            forward(cropped(self._inputs(clips(self._options.is_quick)[-1])))
        return forward

    def _inputs(self, clip: Clip) -> Inputs:
        return clip.inputs(self._config, torch.bfloat16, self._options.device)

    def _rows(self, clip: Clip, case: str, side: str, made: Callable[[], Forward]) -> Iterator[Row]:
        forward, inputs = made(), self._inputs(clip)
        difference: dict[str, float] = {}

        def look(output: Tensor) -> None:
            if side == OURS:
                self._outputs[case] = output.cpu()
            elif case in self._outputs:
                expected = self._outputs[case].to(output)
                difference["output_difference"] = float((output - expected).abs().max() / expected.abs().max())

        with sdpa_kernel(KERNELS[self._kernel()]):
            warm_up(self._options.device, torch.bfloat16, self._config.num_heads, clip.tokens, self._config.head_dim)
            result = card.measure(lambda: forward(inputs), self._options.device, self._options.repeats, look)
        kernel = OWN_KERNEL if side == "ComfyUI" else self._kernel()
        yield {**measured_row(self._benchmark, case, side, result), "attention": kernel}
        if side == OURS:
            self._results[case] = result
        elif case in self._results:
            ratio = card.ratio_apart(self._benchmark, case, side, self._results[case], result)
            yield {**ratio, **difference, "attention": kernel}
