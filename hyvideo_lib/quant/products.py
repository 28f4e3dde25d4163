"""Matrix products in 8 bits, by PyTorch's own kernels: faster where the device is good at them, and less exact.

What a layer computes is defined as its dense weight times its tokens. These round the tokens to 8 bits too, so each is
an option, and `probe_product` tries it on the device at hand before a model is loaded for it. The weight may rest in
any storage: what rests in the product's own format is multiplied as it lies, everything else is rounded on use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidSetting, OutOfMemory
from ..shortage import is_out_of_memory
from ..transformer import HunyuanVideoTransformer
from ..transformer.modulation import Modulation
from ..transformer.ops import DENSE, Linear, Product
from .fp8 import FP8_DTYPES, cast_fp8
from .linear import ScaledLinear
from .rotation import rotate

E4M3 = torch.float8_e4m3fn
AT_ONCE = 1024
"""Tokens, or rows of a weight, that are rounded together: what is made on the way stays small."""
FEWEST_TOKENS = 32
"""int8 kernels refuse fewer than 17 tokens; fewer than this are filled up."""
PROBE_ERROR = 0.1
"""What a right product may differ by, of its norm; rounding to 8 bits takes 0.01 (int8) to 0.04 (fp8)."""
PROBE_SIZES, OUTLIER = (1.0, 1e-3, 300.0), 8.0
"""Of the tokens that are tried, and how much larger one channel of them is: a model's are of all sizes."""
SLOWEST = 1e8
"""Multiplications a second, on a CPU. x86 with AMX forms 6e7 of fp8 by tensor in PyTorch 2.13, one by one; where
PyTorch widens the numbers first, and in every other product, ten to a thousand times as many."""


@dataclass(frozen=True)
class Rounded:
    """Numbers in 8 bits, [n, in], and what they are multiplied with: float32, [1], or [n, 1] with one for each row.

    rotation: what the other side of the product must be rotated by too, 0 for not at all.
    """

    weight: Tensor
    scale: Tensor
    input_scale: Tensor | None = None
    rotation: int = 0


class EightBit(Product, Protocol):
    """A product of the table."""

    @property
    def title(self) -> str: ...

    @property
    def needs(self) -> str:
        """Of a device."""

    @property
    def wants(self) -> str:
        """Of a transformer."""

    def takes(self, layer: Linear) -> bool:
        """Whether this layer would be multiplied so; otherwise it is multiplied as it is defined."""


@dataclass(frozen=True)
class ByTensor:
    """In fp8, with one scale for the weight and one for the tokens: files made for it hold both.

    Tokens are divided by the file's input scale where it has one, and cut off at the format's largest number; else by
    one that is found for those that are multiplied at once. Weights that do not rest in fp8 with one scale are
    multiplied as they are defined.
    """

    title: str = "fp8"
    needs: str = "an NVIDIA card of compute capability 8.9 or more (RTX 40 series, H100) and PyTorch 2.5 or newer"
    wants: str = "weights in fp8 with one scale each (storage dtype float8_e4m3fn gives them)"

    def takes(self, layer: Linear) -> bool:
        return _is_even(layer, slice(None), 16) and self._stored(layer, slice(None)) is not None

    def ready(self, layer: Linear, dtype: torch.dtype, rows: slice) -> Tensor | Rounded:
        found = self._stored(layer, rows) if _is_even(layer, rows, 16) else None
        return layer.dense_weight(dtype, rows) if found is None else found

    def multiply(self, x: Tensor, ready: Tensor | Rounded, bias: Tensor | None) -> Tensor:
        if isinstance(ready, Tensor):
            return F.linear(x, ready, bias)

        def multiply(tokens: Tensor) -> Tensor:
            if ready.input_scale is None:
                made = round_rows(tokens.reshape(1, -1), E4M3)
            else:
                made = Rounded(cast_fp8(tokens.float() / ready.input_scale), ready.input_scale)
            rounded, scale_a, scale_b = made.weight.view(tokens.shape), made.scale.reshape(()), ready.scale.reshape(())
            return torch._scaled_mm(rounded, ready.weight.t(), scale_a, scale_b, out_dtype=x.dtype)

        return _by_parts(multiply, x, len(ready.weight), bias)

    @staticmethod
    def _stored(layer: Linear, rows: slice) -> Rounded | None:
        found = stored_rows(layer, rows)
        is_usable = found and found.weight.dtype in FP8_DTYPES and found.scale.numel() == 1 and not found.rotation
        return found if is_usable else None


@dataclass(frozen=True)
class ByRow:
    """In fp8 or int8, with a scale for each token and for each row of the weight, found when they are rounded.

    dtype: what both are rounded to. multiple: both sides of a weight must be multiples of it. multiply_rows: of tokens
    and weight in dtype, both with their scales [n, 1], the product in another dtype.
    """

    title: str
    needs: str
    dtype: torch.dtype
    multiple: int
    multiply_rows: Callable[[Rounded, Rounded, torch.dtype], Tensor]

    @property
    def wants(self) -> str:
        return f"layers whose widths are multiples of {self.multiple}"

    def takes(self, layer: Linear) -> bool:
        return _is_even(layer, slice(None), self.multiple)

    def ready(self, layer: Linear, dtype: torch.dtype, rows: slice) -> Tensor | Rounded:
        if not _is_even(layer, rows, self.multiple):
            return layer.dense_weight(dtype, rows)
        found = stored_rows(layer, rows)
        if found and found.weight.dtype == self.dtype:
            return Rounded(found.weight, found.scale.float().expand(len(found.weight), 1), rotation=found.rotation)
        return round_weight(layer, rows, self.dtype)

    def multiply(self, x: Tensor, ready: Tensor | Rounded, bias: Tensor | None) -> Tensor:
        if isinstance(ready, Tensor):
            return F.linear(x, ready, bias)

        def multiply(tokens: Tensor) -> Tensor:
            rotated = rotate(tokens, ready.rotation) if ready.rotation else tokens
            return self.multiply_rows(round_rows(rotated, self.dtype), ready, x.dtype)

        return _by_parts(multiply, x, len(ready.weight), bias)


def multiply_int8(tokens: Rounded, weight: Rounded, dtype: torch.dtype) -> Tensor:
    """[n, in] times [out, in] transposed, summed exactly in int32: [n, out] in `dtype`."""
    count, filled = len(tokens.weight), tokens.weight
    if torch.compiler.is_compiling() or count < FEWEST_TOKENS:  # one graph for all counts
        filled = F.pad(filled, (0, 0, 0, max(0, FEWEST_TOKENS - count)))
    sums = torch._int_mm(filled, weight.weight.t())[:count]
    return torch.mul(sums, tokens.scale).mul_(weight.scale.t()).to(dtype)


def multiply_fp8_rows(tokens: Rounded, weight: Rounded, dtype: torch.dtype) -> Tensor:
    """[n, in] times [out, in] transposed, both e4m3: [n, out] in `dtype`."""
    return torch._scaled_mm(
        tokens.weight,
        weight.weight.t(),
        scale_a=tokens.scale,
        scale_b=weight.scale.t().contiguous(),
        out_dtype=dtype,
    )


PRODUCTS: dict[str, EightBit] = {
    "fp8": ByTensor(),
    "fp8_rows": ByRow(
        "fp8 by rows",
        # PyTorch's own trackers: 8.9 since pull request 144348; not 12.0 (RTX 50 series) in 2.10, issue 192707.
        "an NVIDIA card whose PyTorch scales by rows: H100, RTX 40 series with a recent one, not every RTX 50 series",
        E4M3,
        16,
        multiply_fp8_rows,
    ),
    "int8": ByRow(
        "int8",
        "an NVIDIA card of compute capability 8.0 or more (RTX 30 series), or a CPU, and PyTorch 2.2 or newer",
        torch.int8,
        8,
        multiply_int8,
    ),
}
"""By the name of the setting. `pipeline.precision` has the same names, and "dense" for the definition."""


def round_rows(rows: Tensor, dtype: torch.dtype) -> Rounded:
    """rows [n, in] in 8 bits: the largest magnitude of each lands on the format's largest number.

    NaN and infinity are in the scale afterwards, and so in every product. A row of zeros stays one.
    """
    is_integer = not dtype.is_floating_point
    largest = torch.iinfo(dtype).max if is_integer else torch.finfo(dtype).max
    span = torch.maximum(rows.amax(-1, keepdim=True), -rows.amin(-1, keepdim=True)).float()
    scale = (span / largest).clamp(min=torch.finfo(torch.float32).tiny)
    divided = torch.div(rows, scale)
    return Rounded(divided.round_().to(dtype) if is_integer else cast_fp8(divided, dtype), scale)


def round_weight(layer: Linear, rows: slice, dtype: torch.dtype) -> Rounded:
    """The weight's rows in 8 bits, whatever they rest in, AT_ONCE rows at a time."""
    first, last, _ = rows.indices(layer.out_features)
    device = next(layer.parameters()).device
    weight = torch.empty(last - first, layer.in_features, dtype=dtype, device=device)
    scale = torch.empty(last - first, 1, device=device)
    for low in range(first, last, AT_ONCE):
        high = min(low + AT_ONCE, last)
        part = round_rows(layer.dense_weight(torch.float32, slice(low, high)), dtype)
        weight[low - first : high - first], scale[low - first : high - first] = part.weight, part.scale
    return Rounded(weight, scale)


def stored_rows(layer: Linear, rows: slice) -> Rounded | None:
    """The weight's rows as they rest, where they rest as numbers with at most one scale a row; else None."""
    weight = getattr(layer, "weight", None)
    if weight is None or weight.dtype not in (*FP8_DTYPES, torch.int8):
        return None
    if not isinstance(layer, ScaledLinear):
        return Rounded(weight[rows], torch.ones(1, device=weight.device))
    scale = layer.weight_scale if layer.weight_scale.numel() == 1 else layer.weight_scale[rows]
    return Rounded(weight[rows], scale, layer.input_scale, layer.rotation)


def use_product(model: HunyuanVideoTransformer, name: str) -> None:
    """Let the token-wide layers of all blocks multiply so. What is small or delicate computes as it is defined.

    Raises InvalidSetting if no layer can.
    """
    product = PRODUCTS[name]
    taken = [layer for layer in _token_layers(model) if product.takes(layer)]
    if not taken:
        raise InvalidSetting(
            f"{product.title} matrix products need {product.wants}, and this transformer has none. Choose dense, or "
            f"another of {', '.join(PRODUCTS)}."
        )
    for layer in taken:
        layer.product = product


def probe_product(name: str, device: str | torch.device, compute_dtype: torch.dtype) -> None:
    """Multiply so on the device once, and see that the product is right, and on a CPU not slower than SLOWEST.

    Raises InvalidSetting with the device's own reason if it cannot, OutOfMemory where there is none to try it.
    """
    product, device = PRODUCTS[name], torch.device(device)
    try:
        errors = [_error(product, device, compute_dtype, size) for size in PROBE_SIZES]
        reason = "" if all(error <= PROBE_ERROR for error in errors) else "its product is wrong"
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError) as failure:  # each torch has its own
        if is_out_of_memory(failure):
            raise OutOfMemory(
                f"{product.title} matrix products cannot be tried on {device}, as memory ran out. Free some there, or "
                "choose dense."
            ) from failure
        reason = str(failure).splitlines()[0].rstrip(".") if str(failure) else type(failure).__name__
    if reason:
        raise InvalidSetting(
            f"{product.title} matrix products are not possible on {device}: {reason}. They need {product.needs}. "
            "Choose dense: the weights rest as they are, and only the products are formed in the compute dtype."
        )
    if device.type == "cpu" and (pace := _pace(product, compute_dtype)) < SLOWEST:
        raise InvalidSetting(
            f"{product.title} matrix products are too slow on this processor: {pace / 1e6:.0f} million multiplications "
            f"a second, as PyTorch has no kernel for it. They are for {product.needs}. Choose dense."
        )


def _error(product: EightBit, device: torch.device, dtype: torch.dtype, size: float) -> float:
    """Of the product of tokens of this size, as a share of its norm."""
    found, expected = (side().float() for side in _sides(product, device, dtype, 40, 64, 48, size))
    return float((found - expected).norm() / expected.norm())


def _sides(
    product: EightBit,
    device: torch.device,
    dtype: torch.dtype,
    count: int,
    width: int,
    out_features: int,
    size: float = 1.0,
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The same tokens [count, width] times the same weight: in 8 bits, and as it is defined."""
    numbers = torch.Generator().manual_seed(0)
    layer = Linear(width, out_features, bias=False, device=device).requires_grad_(False)
    layer.weight = nn.Parameter(cast_fp8(torch.randn(out_features, width, generator=numbers)).to(device), False)
    x = size * torch.randn(count, width, generator=numbers)
    x[:, 0] *= OUTLIER
    x = x.to(device, dtype)

    def multiply(kind: Product) -> Tensor:
        return kind.multiply(x, kind.ready(layer, dtype, slice(None)), None)

    return lambda: multiply(product), lambda: multiply(DENSE)


def _pace(product: EightBit, dtype: torch.dtype) -> float:
    """Multiplications a second on the CPU. The faster of two runs decides, and a fast one is enough."""
    count, width = 256, 512  # large enough that other programs on the processor do not decide
    multiply, _ = _sides(product, torch.device("cpu"), dtype, count, width, width)
    pace = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        multiply()
        pace = max(pace, count * width * width / (time.perf_counter() - begun))
        if pace >= SLOWEST:
            break
    return pace


def _token_layers(model: HunyuanVideoTransformer) -> Iterator[Linear]:
    """The blocks' layers that every token goes through, and that no file asks to be exact."""
    for block in model.blocks:
        modulating = {id(layer) for part in block.modules() if isinstance(part, Modulation) for layer in part.modules()}
        for layer in block.modules():
            if isinstance(layer, Linear) and id(layer) not in modulating and not getattr(layer, "full_precision", 0):
                yield layer


def _is_even(layer: Linear, rows: slice, multiple: int) -> bool:
    """Whether both sides of these rows are multiples of it."""
    return layer.in_features % multiple == 0 and len(range(*rows.indices(layer.out_features))) % multiple == 0


def _by_parts(multiply: Callable[[Tensor], Tensor], x: Tensor, out_features: int, bias: Tensor | None) -> Tensor:
    """[..., out] in x's dtype of x [..., in], AT_ONCE tokens at a time, but all of a chunk in a compiled block."""
    tokens = x.reshape(-1, x.shape[-1])
    if torch.compiler.is_compiling() or len(tokens) <= AT_ONCE:
        y = multiply(tokens)
    else:
        y = x.new_empty(len(tokens), out_features)
        for low in range(0, len(tokens), AT_ONCE):
            y[low : low + AT_ONCE] = multiply(tokens[low : low + AT_ONCE])
    if bias is not None:
        y += bias
    return y.view(*x.shape[:-1], out_features)
