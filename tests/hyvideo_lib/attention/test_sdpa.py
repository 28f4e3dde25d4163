from __future__ import annotations

import pytest
import torch
from tiny import difference
from torch import Tensor

from hyvideo_lib.attention import attend
from hyvideo_lib.attention import sdpa as sdpa_module
from hyvideo_lib.attention.sdpa import has_kernel, is_unfused, sdpa, sdpa_in_rows

CUDA = torch.device("cuda")


def make_qkv(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 6, 8, generator=generator).to(dtype) for _ in range(3)]


def make_mask(*shape: int) -> Tensor:
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[..., 0] = True
    return mask


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The definition, in float64."""
    scores = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v.double()).float()


def test_masked_keys_are_not_seen() -> None:
    q, k, v = make_qkv()
    mask = make_mask(2, 1, 6, 6)
    assert difference(sdpa(q, k, v, mask), softmax_attention(q, k, v, mask)) <= 1e-6
    assert difference(sdpa(q, k, v), sdpa(q, k, v, torch.ones(6, 6, dtype=torch.bool))) <= 1e-6


# Cards without any fused kernel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [None, (6, 6), (2, 1, 1, 6), (2, 1, 6, 6), (2, 3, 6, 6)])
@pytest.mark.parametrize("num_bytes", [1, 2 * 4 * 6 * 4, 2**27], ids=["one query", "four queries", "all"])
def test_a_few_queries_at_a_time_attend_as_all_do(
    monkeypatch, dtype: torch.dtype, shape: tuple[int, ...] | None, num_bytes: int
) -> None:
    monkeypatch.setattr(sdpa_module, "FLOAT32_BYTES", num_bytes)
    q, k, v = (part.transpose(1, 2).contiguous().transpose(1, 2) for part in make_qkv(dtype))
    kept = k.clone()
    mask = None if shape is None else make_mask(*shape)
    found = sdpa_in_rows(q, k, v, mask)
    assert (found.dtype, found.shape) == (dtype, q.shape)
    if dtype == torch.float32:
        assert difference(found, softmax_attention(q, k, v, mask)) <= 1e-6
    else:
        assert_rounded_once(found, softmax_attention(q, k, v, mask))
    assert torch.equal(k, kept)


def test_pytorch_is_asked_for_a_kernel(monkeypatch) -> None:
    q, k, v = make_qkv()
    answers = dict.fromkeys(sdpa_module.CHECKS, False)
    for name in answers:
        monkeypatch.setattr(torch.backends.cuda, name, lambda asked, name=name: answers[name])
    assert not has_kernel(q, k, v)
    for name in answers:
        answers[name] = True
        assert has_kernel(q, k, v, make_mask(2, 1, 6, 6))
        answers[name] = False
    monkeypatch.delattr(torch.backends.cuda, "SDPAParams")
    assert has_kernel(q, k, v)  # an older PyTorch cannot be asked


# Cards without a fused kernel for bfloat16


@pytest.mark.parametrize(
    ("capability", "dtype", "hip", "expected"),
    [
        ((7, 5), torch.bfloat16, None, True),
        ((7, 0), torch.bfloat16, None, True),
        ((8, 0), torch.bfloat16, None, False),
        ((12, 0), torch.bfloat16, None, False),
        ((7, 5), torch.float16, None, False),
        ((7, 5), torch.float32, None, False),
        ((7, 5), torch.bfloat16, "6.2", False),  # AMD's
    ],
)
def test_old_cards_have_no_fused_kernel_for_bfloat16(monkeypatch, capability, dtype, hip, expected: bool) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert is_unfused(CUDA, dtype) is expected
    assert not is_unfused(torch.device("cpu"), dtype)


@pytest.fixture
def dtypes(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The CPU as a card without such a kernel, for one head at a time; what PyTorch's attention is then called with."""
    monkeypatch.setattr(sdpa_module, "is_unfused", lambda device, dtype: dtype == torch.bfloat16)
    monkeypatch.setattr(sdpa_module, "FLOAT32_BYTES", 1)
    called: list[torch.dtype] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def listen(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        assert q.shape[:2] == k.shape[:2] == v.shape[:2] == (1, 1)
        called.append(q.dtype)
        return original(q, k, v, attn_mask)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", listen)
    return called


def assert_rounded_once(found: Tensor, exact: Tensor) -> None:
    """bfloat16 holds 8 bits of a number."""
    torch.testing.assert_close(found.float(), exact, rtol=1.001 * 2**-8, atol=1e-6)


@pytest.mark.parametrize("shape", [None, (6, 6), (2, 1, 1, 6), (2, 1, 6, 6), (2, 3, 6, 6)])
def test_there_heads_attend_in_float32_a_few_at_a_time(dtypes, shape: tuple[int, ...] | None) -> None:
    q, k, v = (part.transpose(1, 2).contiguous().transpose(1, 2) for part in make_qkv(torch.bfloat16))
    mask = None if shape is None else make_mask(*shape)
    found = sdpa(q, k, v, mask)
    assert dtypes == [torch.float32] * 6
    assert (found.dtype, found.shape) == (torch.bfloat16, q.shape)
    assert_rounded_once(found, softmax_attention(q, k, v, mask))


def test_there_items_of_unequal_length_attend_too(dtypes: list[torch.dtype]) -> None:
    q, k, v = make_qkv(torch.bfloat16)
    found = attend(q, k, v, [6, 4])
    assert dtypes == [torch.float32] * 6
    assert_rounded_once(found[1, :, :4], softmax_attention(*(part[:, :, :4] for part in (q, k, v)))[1])
