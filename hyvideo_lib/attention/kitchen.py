"""The int8 attention of comfy-kitchen, ComfyUI's own library of kernels."""

from __future__ import annotations

from torch import Tensor

from .backend import Backend, Kernel


def load() -> Kernel:
    from comfy_kitchen import int8_attention

    def int8(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = int8_attention(q, k, v)
        return out

    return int8


KITCHEN = Backend(
    "comfy_kitchen",
    load,
    "Install or renew it with: pip install -U comfy-kitchen.",
    is_exact=False,
    package="comfy_kitchen",
    extra=2.0,  # as SageAttention's: not measured
)
