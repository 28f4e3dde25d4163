"""SageAttention, the first generation and the second: one package, one function. It multiplies in 8 bits."""

from __future__ import annotations

from torch import Tensor

from .backend import Backend, Kernel


def load() -> Kernel:
    from sageattention import sageattn

    def sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = sageattn(q, k, v, tensor_layout="HND", is_causal=False)
        return out

    return sage


SAGE = Backend(
    "sage",
    load,
    "Install the first generation with: pip install sageattention==1.0.6; build the second from "
    "github.com/thu-ml/SageAttention.",
    is_exact=False,
    package="sageattention",
    extra=2.0,  # read from its source, not measured: q and k in 8 bits, k less its mean, v turned round or in float16
)
