"""SageAttention, the first generation and the second: one package, one function. It multiplies in 8 bits."""

from __future__ import annotations

from torch import Tensor

from .backend import Backend, Kernel, install_advice


def load() -> Kernel:
    from sageattention import sageattn

    def sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = sageattn(q, k, v, tensor_layout="HND", is_causal=False)
        return out

    return sage


SAGE = Backend(
    "sage",
    load,
    f"{install_advice('sage', 'sageattention')} That is the first generation; the second is built from "
    "github.com/thu-ml/SageAttention.",
    is_exact=False,
    package="sageattention",
    # Read from its source, not measured. The second on an H100: q and k in 8 bits (1), v with its last block filled up
    # (1), turned round (1) and in 8 bits (0.5); 2.5 on other cards; the first 2.
    extra=3.5,
)
