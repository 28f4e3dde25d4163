"""LoRA files of every method for one matrix, and what each makes of a weight: worked out here, dense and in float64.

The formulas are the methods' own (LyCORIS, PEFT, OneTrainer); nothing of the library is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RANK = 3


@dataclass(frozen=True)
class Case:
    """tensors: by what stands after the module's name. change: of a weight [rows, in] in float64, at strength 1."""

    tensors: dict[str, Tensor]
    change: Callable[[Tensor], Tensor]


def numbers(*shape: int, seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factors(total: int) -> tuple[int, int]:
    """Two whole numbers that make a third, as near to each other as can be."""
    small = next(n for n in range(math.isqrt(total), 0, -1) if total % n == 0)
    return small, total // small


def lora(rows: int, width: int, alpha: float = 6.0) -> Case:
    down, up = numbers(RANK, width, seed=1, size=width**-0.5), numbers(rows, RANK, seed=2, size=0.3)
    tensors = {".lora_down.weight": down, ".lora_up.weight": up, ".alpha": torch.tensor(alpha)}
    return Case(tensors, lambda weight: alpha / RANK * (up.double() @ down.double()))


def loha(rows: int, width: int) -> Case:
    w1a, w1b = numbers(rows, RANK, seed=1, size=0.5), numbers(RANK, width, seed=2, size=0.3)
    w2a, w2b = numbers(rows, RANK, seed=3, size=0.5), numbers(RANK, width, seed=4, size=0.3)
    tensors = {".hada_w1_a": w1a, ".hada_w1_b": w1b, ".hada_w2_a": w2a, ".hada_w2_b": w2b}

    def change(weight: Tensor) -> Tensor:
        return 1.5 / RANK * (w1a.double() @ w1b.double()) * (w2a.double() @ w2b.double())

    return Case({**tensors, ".alpha": torch.tensor(1.5)}, change)


def lokr(rows: int, width: int, form: str) -> Case:
    """form: "whole" (two matrices; alpha says nothing), "second" or "both" (products)."""
    (a, c), (b, d) = factors(rows), factors(width)
    tensors: dict[str, Tensor] = {}

    def side(number: int, height: int, breadth: int, is_product: bool) -> Tensor:
        if not is_product:
            tensors[f".lokr_w{number}"] = numbers(height, breadth, seed=number, size=0.3)
            return tensors[f".lokr_w{number}"].double()
        tensors[f".lokr_w{number}_a"] = numbers(height, RANK, seed=number + 10, size=0.5)
        tensors[f".lokr_w{number}_b"] = numbers(RANK, breadth, seed=number + 20, size=0.5)
        return tensors[f".lokr_w{number}_a"].double() @ tensors[f".lokr_w{number}_b"].double()

    left, right = side(1, a, b, form == "both"), side(2, c, d, form != "whole")
    tensors[".alpha"] = torch.tensor(1e10 if form == "whole" else 1.5)
    scale = 1.0 if form == "whole" else 1.5 / RANK

    def change(weight: Tensor) -> Tensor:
        made = torch.zeros(rows, width, dtype=torch.float64)
        for i in range(a):
            for j in range(b):
                made[i * c : (i + 1) * c, j * d : (j + 1) * d] = scale * left[i, j] * right
        return made

    return Case(tensors, change)


def dora(inner: Case, by: str, name: str = ".dora_scale") -> Case:
    """by: "rows" or "columns", whose lengths the file gives."""
    dim = 1 if by == "rows" else 0

    def magnitude(weight: Tensor) -> Tensor:
        """Away from the weight's own lengths, by a factor of each."""
        lengths = weight.float().norm(dim=dim, keepdim=True)
        return lengths * (1 + 0.3 * numbers(*lengths.shape, seed=9))

    def change(weight: Tensor) -> Tensor:
        turned = weight + inner.change(weight)
        lengths = turned.square().sum(dim=dim, keepdim=True).sqrt()
        return magnitude(weight).double() * turned / lengths - weight

    case = Case(dict(inner.tensors), change)
    case.tensors[name] = torch.empty(0)  # made when the weight is known

    def finish(weight: Tensor) -> None:
        made = magnitude(weight.double())
        case.tensors[name] = made.flatten() if name.startswith(".lora_magnitude") else made

    object.__setattr__(case, "finish", finish)
    return case


def oft_outputs(rows: int, width: int, constraint: float = 0.0, has_scale: bool = False) -> Case:
    """LyCORIS' and kohya's."""
    size, count = factors(rows)
    blocks = numbers(count, size, size, seed=1, size=0.2)
    tensors = {".oft_blocks": blocks, ".alpha": torch.tensor(constraint)}
    rescale = 1 + numbers(rows, 1, seed=2, size=0.2)
    if has_scale:
        tensors[".rescale"] = rescale

    def change(weight: Tensor) -> Tensor:
        skew = blocks.double() - blocks.double().transpose(1, 2)
        bound = constraint * rows
        if bound and skew.norm() > bound:
            skew = skew * bound / skew.norm()
        turned = torch.empty_like(weight)
        for k in range(count):
            one = torch.eye(size, dtype=torch.float64)
            turn = (one + skew[k]) @ torch.linalg.inv(one - skew[k])
            turned[k * size : (k + 1) * size] = turn.T @ weight[k * size : (k + 1) * size]
        return (rescale.double() * turned if has_scale else turned) - weight

    return Case(tensors, change)


def oft_inputs(rows: int, width: int, is_shared: bool = False, is_scaled: bool = False) -> Case:
    """PEFT's and OneTrainer's, with the series' five terms."""
    size = next(n for n in (8, 6, 5, 4, 3, 2) if width % n == 0)
    count = 1 if is_shared else width // size
    vectors = numbers(count, size * (size - 1) // 2, seed=1, size=0.5 if is_scaled else 0.1)
    tensors = {".oft_R.weight": vectors}
    if is_scaled:
        tensors[".oft_R.scaled_oft"] = torch.tensor(True)

    def change(weight: Tensor) -> Tensor:
        turned = torch.empty_like(weight)
        for k in range(width // size):
            vector = vectors[0 if is_shared else k].double() / (2 * math.sqrt(size - 1) if is_scaled else 1)
            skew = torch.zeros(size, size, dtype=torch.float64)
            place = 0
            for i in range(size):
                for j in range(i + 1, size):
                    skew[i, j], skew[j, i] = vector[place], -vector[place]
                    place += 1
            turn = torch.eye(size, dtype=torch.float64) + 2 * skew + 2 * skew @ skew
            turn = turn + 2 * skew @ skew @ skew + skew @ skew @ skew @ skew
            columns = slice(k * size, (k + 1) * size)
            turned[:, columns] = weight[:, columns] @ turn.T  # the layer multiplies with tokens that were turned
        return turned - weight

    return Case(tensors, change)


def whole(rows: int, width: int) -> Case:
    diff = numbers(rows, width, seed=1, size=0.05)
    return Case({".diff": diff}, lambda weight: diff.double())


METHODS: dict[str, Callable[[int, int], Case]] = {
    "LoRA": lora,
    "LoHa": loha,
    "LoKr, whole": lambda rows, width: lokr(rows, width, "whole"),
    "LoKr, second a product": lambda rows, width: lokr(rows, width, "second"),
    "LoKr, both products": lambda rows, width: lokr(rows, width, "both"),
    "DoRA by rows": lambda rows, width: dora(lora(rows, width), "rows"),
    "DoRA by columns": lambda rows, width: dora(lora(rows, width), "columns"),
    "DoRA of PEFT": lambda rows, width: dora(lora(rows, width), "rows", ".lora_magnitude_vector"),
    "DoRA of LoHa": lambda rows, width: dora(loha(rows, width), "rows"),
    "DoRA of LoKr": lambda rows, width: dora(lokr(rows, width, "second"), "columns"),
    "OFT of outputs": oft_outputs,
    "OFT of outputs, bounded": lambda rows, width: oft_outputs(rows, width, constraint=1e-3),
    "OFT of outputs, scaled": lambda rows, width: oft_outputs(rows, width, has_scale=True),
    "OFT of inputs": oft_inputs,
    "OFT of inputs, shared": lambda rows, width: oft_inputs(rows, width, is_shared=True),
    "OFT of inputs, in units": lambda rows, width: oft_inputs(rows, width, is_scaled=True),
    "whole difference": whole,
}


def make(method: str, weight: Tensor) -> Case:
    """A case for a weight [rows, in], which DoRA's lengths are near to."""
    case = METHODS[method](*weight.shape)
    finish = getattr(case, "finish", None)
    if finish:
        finish(weight)
    return case
