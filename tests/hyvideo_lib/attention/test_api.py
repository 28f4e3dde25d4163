from __future__ import annotations

import pytest
import torch
from tiny import difference
from torch import Tensor

from hyvideo_lib.attention import api, attend

LENGTHS = [(7, 7), (7, 3), (1, 7), (2, 5)]


@pytest.fixture(params=["masked", "item by item"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which items of unequal length can run."""
    monkeypatch.setattr(api, "PER_ITEM_TOKENS", 1 << 30 if request.param == "masked" else 0)


def make_qkv(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 7, 8, generator=generator) for _ in range(3)]


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition, in float64."""
    weights = (torch.einsum("nqd,nkd->nqk", q.double(), k.double()) / q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("nqk,nkd->nqd", weights, v.double()).float()


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("lengths", LENGTHS)
def test_every_token_sees_exactly_the_valid_tokens_of_its_own_item(lengths: tuple[int, int]) -> None:
    q, k, v = make_qkv()
    out = attend(q, k, v, lengths)
    for item, n in enumerate(lengths):
        expected = softmax_attention(q[item, :, :n], k[item, :, :n], v[item, :, :n])
        assert difference(out[item, :, :n], expected) <= 1e-6


def test_without_lengths_all_tokens_are_valid() -> None:
    q, k, v = make_qkv()
    for item in range(2):
        assert difference(attend(q, k, v)[item], softmax_attention(q[item], k[item], v[item])) <= 1e-6
    assert torch.equal(attend(q, k, v), attend(q, k, v, [7, 7]))


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("lengths", LENGTHS[1:])
def test_what_padding_holds_changes_nothing_and_comes_back_finite(lengths: tuple[int, int]) -> None:
    q, k, v = make_qkv()
    out = attend(q, k, v, lengths)
    for item, n in enumerate(lengths):
        for tensor in (q, k, v):
            tensor[item, :, n:] = 1e4
    again = attend(q, k, v, lengths)
    for item, n in enumerate(lengths):
        assert torch.equal(again[item, :, :n], out[item, :, :n])
    assert again.isfinite().all()


@pytest.mark.parametrize("lengths", LENGTHS)
def test_items_that_run_one_by_one_may_be_put_where_their_queries_were(lengths: tuple[int, int], monkeypatch) -> None:
    monkeypatch.setattr(api, "PER_ITEM_TOKENS", 0)
    q, k, v = make_qkv()
    expected = attend(q, k, v, lengths)
    found = attend(q, k, v, lengths, into=q)
    assert found is q or lengths == (7, 7)
    assert found.isfinite().all()
    for item, n in enumerate(lengths):
        assert torch.equal(found[item, :, :n], expected[item, :, :n])


@pytest.mark.usefixtures("_way")
def test_gradients_flow_to_the_valid_tokens_only() -> None:
    q, k, v = (tensor.requires_grad_() for tensor in make_qkv())
    attend(q, k, v, [7, 3])[1, :, :3].sum().backward()
    for tensor in (q, k, v):
        assert tensor.grad is not None
        assert (tensor.grad[1, :, :3] != 0).any()
        assert (tensor.grad[1, :, 3:] == 0).all()
        assert (tensor.grad[0] == 0).all()


def test_transposed_inputs_give_the_same_numbers() -> None:
    q, k, v = make_qkv()
    strided = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (q, k, v)]
    assert difference(attend(*strided, [7, 4]), attend(q, k, v, [7, 4])) <= 1e-6
