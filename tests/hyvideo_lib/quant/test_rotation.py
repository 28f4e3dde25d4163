from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
import torch

from hyvideo_lib.quant import rotation
from hyvideo_lib.quant.rotation import dequantize_rotated, is_group_size, rotate

FOUR = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2
POWERS = {4: 1, 16: 2, 64: 3, 256: 4}


def hadamard(group: int) -> torch.Tensor:
    """The matrix of the definition, in float64."""
    return torch.from_numpy(reduce(np.kron, [FOUR] * POWERS[group]))


@pytest.mark.parametrize("group", POWERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_group_is_multiplied_with_the_matrix(group: int, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 3 * group, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = (x.double().unflatten(-1, (3, group)) @ hadamard(group).T).flatten(-2)
    found = rotate(x, group)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("group", POWERS)
def test_it_undoes_itself(group: int) -> None:
    x = torch.randn(5, 2 * group, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate(rotate(x, group), group), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("group", POWERS)
def test_the_product_of_both_sides_rotated_stays(group: int) -> None:
    numbers = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 2 * group, generator=numbers), torch.randn(6, 2 * group, generator=numbers)
    torch.testing.assert_close(rotate(x, group) @ rotate(weight, group).T, x @ weight.T, rtol=0, atol=1e-3)


def test_sizes_are_powers_of_four() -> None:
    assert [size for size in range(-5, 70_000) if is_group_size(size)] == [4**power for power in range(1, 9)]
    assert not any(is_group_size(value) for value in (True, 256.0, "256", None, [256]))


@pytest.mark.parametrize("scale", [torch.tensor([0.5]), torch.rand(7, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_turned_back_in_float32_and_rounded_once(
    scale: torch.Tensor, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = torch.randint(-127, 128, (7, 64), dtype=torch.int8)
    whole = dequantize_rotated(numbers, scale, 16, dtype)
    assert torch.equal(whole, rotate(numbers.float() * scale, 16).to(dtype))
    monkeypatch.setattr(rotation, "PIECE", 130)  # two rows at a time
    assert torch.equal(dequantize_rotated(numbers, scale, 16, dtype), whole)


def test_vectors_that_were_looked_up_have_a_scale_each() -> None:
    numbers, scale = torch.randint(-9, 9, (2, 3, 16), dtype=torch.int8), torch.rand(2, 3, 1)
    found = dequantize_rotated(numbers, scale, 16, torch.float32)
    assert torch.equal(found, rotate(numbers.float() * scale, 16))
