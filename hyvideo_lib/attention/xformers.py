"""xformers' memory-efficient attention."""

from __future__ import annotations

from torch import Tensor

from .backend import Backend, Kernel


def load() -> Kernel:
    from xformers.ops import memory_efficient_attention

    def efficient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = memory_efficient_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return out.transpose(1, 2)

    return efficient


XFORMERS = Backend(
    "xformers", load, "Install the release for your PyTorch with: pip install xformers.", package="xformers"
)
