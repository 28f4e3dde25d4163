"""What models are computed in, by what, and stored in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..attention import AUTO, attention_names, check_backend
from ..errors import InvalidSetting
from ..transformer import CompileConfig

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float16")
DENSE = "dense"
MATMULS = (DENSE, "fp8", "fp8_rows", "int8")
"""How the transformer's blocks multiply: in the compute dtype, or as quant.PRODUCTS says."""


@dataclass(frozen=True)
class Precision:
    """What models are computed in and stored in, by name in DTYPES. Checked when made; raises InvalidSetting.

    "auto": the transformer in float32 on a CPU and bfloat16 elsewhere; the VAE in float16 on a CUDA device and float32
    elsewhere; the text encoders as their files are. storage: the transformer's weights; None leaves them as they are.
    matmul: a name in MATMULS. attention: a name of attention_names. compiling: how the
    blocks' pieces are compiled; None leaves them as they are.
    """

    compute: str = "auto"
    storage: str | None = None
    vae: str = "auto"
    text: str = "auto"
    matmul: str = DENSE
    attention: str = AUTO
    compiling: CompileConfig | None = None

    def __post_init__(self) -> None:
        for name in ("compute", "vae", "text"):
            _check_choice(f"{name} dtype", getattr(self, name), COMPUTE_DTYPES)
        if self.storage is not None:
            _check_choice("storage dtype", self.storage, tuple(DTYPES))
        _check_choice("matmul", self.matmul, MATMULS)
        _check_choice("attention", self.attention, tuple(attention_names()))

    @property
    def storage_dtype(self) -> torch.dtype | None:
        return None if self.storage is None else DTYPES[self.storage]

    @property
    def text_dtype(self) -> torch.dtype | None:
        return None if self.text == "auto" else DTYPES[self.text]

    def transformer_dtype(self, device: torch.device) -> torch.dtype:
        return DTYPES[_resolve(self.compute, "bfloat16" if device.type != "cpu" else "float32")]

    @property
    def product(self) -> str | None:
        """A name of quant.PRODUCTS; None multiplies in the compute dtype."""
        return None if self.matmul == DENSE else self.matmul

    def check_attention(self, device: str | torch.device, config: Mapping[str, Any]) -> None:
        """Try a named attention on the device for a transformer of these sizes, before anything is loaded.

        Raises InvalidSetting, MissingPackage.
        """
        device = torch.device(device)
        if self.attention != AUTO:
            head_dim = config["hidden_size"] // config["num_heads"]
            check_backend(self.attention, device, head_dim, self.transformer_dtype(device))

    def vae_dtype(self, device: torch.device) -> torch.dtype:
        return DTYPES[_resolve(self.vae, "float16" if device.type == "cuda" else "float32")]


def _check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise InvalidSetting(f"{name} is {value!r}, but must be one of: {', '.join(accepted)}.")


def _resolve(name: str, automatic: str) -> str:
    return automatic if name == "auto" else name
