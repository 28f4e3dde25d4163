from __future__ import annotations

import pytest
import torch
from tiny import difference, randomise

from hyvideo_lib.transformer import ops

STORAGES = [torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
def test_stored_weights_compute_as_if_cast_beforehand(storage: torch.dtype, compute: torch.dtype) -> None:
    linear, conv = ops.Linear(6, 9), ops.Conv3d(2, 4, (1, 2, 2), (1, 2, 2))
    for layer, shape in ((linear, (2, 5, 6)), (conv, (2, 2, 3, 4, 4))):
        randomise(layer, 0)
        layer.to(storage)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(compute)
        stored = layer(x)
        assert layer.weight.dtype == storage
        assert stored.dtype == compute
        assert torch.equal(stored, layer.to(compute)(x))


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_rows_compute_a_part_of_the_output(storage: torch.dtype) -> None:
    linear = ops.Linear(6, 9)
    randomise(linear, 0)
    linear.to(storage)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    for rows in (slice(0, 4), slice(4, None), slice(None)):
        assert difference(linear(x, rows), linear(x)[..., rows]) <= 1e-6


def test_a_layer_may_have_no_bias() -> None:
    linear = ops.Linear(6, 9, bias=False)
    assert torch.equal(linear(torch.zeros(2, 6)), torch.zeros(2, 9))
