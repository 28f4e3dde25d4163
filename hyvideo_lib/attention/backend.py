"""What an attention backend is: a kernel that is loaded when it is first wanted, and words about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""softmax(q k^T / sqrt(D)) v for q, k, v [B, N, L, D] of any strides but 1 along D; all tokens see each other."""


def install_advice(extra: str, package: str, option: str = "") -> str:
    """How to install a package that is an extra of ours. ComfyUI does not install the pack, so both ways are told."""
    pip = " ".join(filter(None, ("pip install", option)))
    return (
        f'Install it with: {pip} {package} (or, in the folder of hyvideo, {pip} ".[{extra}]"), by the Python that runs '
        "this; with ComfyUI that is ComfyUI's."
    )


@dataclass(frozen=True)
class Backend:
    """A kernel by name.

    load_fn: imports what the kernel comes from and returns it; raises ModuleNotFoundError where that is not installed.
    install: how to get it, in a sentence. is_exact: it rounds as PyTorch's own does; others compute in 8 bits and are
    never chosen unless they are named. package: the module that says whether it is installed; another that is missing
    is one that it needs. extra: bytes that the kernel holds at most beside q, k, v and its result, as a share of q's.
    """

    name: str
    load_fn: Callable[[], Kernel]
    install: str
    is_exact: bool = True
    package: str = ""
    extra: float = 0.0
