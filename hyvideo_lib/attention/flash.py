"""FlashAttention, the second generation (package flash-attn) and the third (for Hopper cards, built from source)."""

from __future__ import annotations

from torch import Tensor

from .backend import Backend, Kernel, install_advice


def load_second() -> Kernel:
    from flash_attn import flash_attn_func

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)

    return flash


def load_third() -> Kernel:
    from flash_attn_interface import flash_attn_func

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        made = flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        out: Tensor = made[0] if isinstance(made, tuple) else made  # some releases return the log of the sums as well
        return out.transpose(1, 2)

    return flash


FLASH_2 = Backend(
    "flash_attn_2",
    load_second,
    install_advice("flash", "flash-attn", "--no-build-isolation"),
    package="flash_attn",
)
FLASH_3 = Backend(
    "flash_attn_3",
    load_third,
    "It is for H100 and its like, and is built from the folder `hopper` of github.com/Dao-AILab/flash-attention.",
    package="flash_attn_interface",
)
