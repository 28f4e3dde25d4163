"""What models are computed in, by what, and stored in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..attention import AUTO, TRIED_TOKENS, attention_names, check_backend
from ..errors import InvalidSetting
from ..transformer import CompileConfig

if TYPE_CHECKING:
    from ..checkpoint import FileReport

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
FP8_FORMS = ("fp8_cast", "fp8_scale", "comfyui_fp8_scaled", "comfyui_quant")
"""Of files (FileReport.quantization), those that have or may have fp8 weights."""


@dataclass(frozen=True)
class Precision:
    """What models are computed in and stored in, by name in DTYPES. Checked when made; raises InvalidSetting.

    "auto": the transformer in float32 on a CPU and bfloat16 elsewhere; the VAE in float16 on a CUDA device and float32
    elsewhere; the text encoders as their files are. storage: the transformer's weights; None leaves them as they are.
    matmul: a name in MATMULS. attention: a name of attention_names. compiling: how the
    blocks are compiled; None leaves them as they are.
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

    def check_device(self, device: str | torch.device, report: FileReport, tokens: int = TRIED_TOKENS) -> None:
        """Try a named attention and products in 8 bits on the device, for the transformer of this report, before
        anything is loaded. tokens: of the run, if they are known. Raises InvalidSetting, MissingPackage.
        """
        device, config = torch.device(device), report.config or {}
        if self.product:
            self._check_product(self.product, device, report.quantization)
        if self.attention != AUTO:
            head_dim = config["hidden_size"] // config["num_heads"]
            check_backend(self.attention, device, head_dim, self.transformer_dtype(device), tokens)

    def _check_product(self, product: str, device: torch.device, quantization: str) -> None:
        from ..quant import probe_product

        stored = self.storage or ("float8" if quantization in FP8_FORMS else quantization)
        if product == "fp8" and not stored.startswith("float8"):
            raise InvalidSetting(
                "matmul fp8 multiplies weights that rest in fp8, and those of this transformer would not. Store them "
                "so (storage dtype float8_e4m3fn), or choose fp8_rows or int8, which take every storage, or dense."
            )
        probe_product(product, device, self.transformer_dtype(device))

    def vae_dtype(self, device: torch.device) -> torch.dtype:
        return DTYPES[_resolve(self.vae, "float16" if device.type == "cuda" else "float32")]


def _check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise InvalidSetting(f"{name} is {value!r}, but must be one of: {', '.join(accepted)}.")


def _resolve(name: str, automatic: str) -> str:
    return automatic if name == "auto" else name
