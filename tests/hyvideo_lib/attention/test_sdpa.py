from __future__ import annotations

import torch
from tiny import difference

from hyvideo_lib.attention.sdpa import sdpa


def test_masked_keys_are_not_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 6, 8, generator=generator) for _ in range(3))
    mask = torch.rand(2, 1, 6, 6, generator=generator) < 0.5
    mask[..., 0] = True
    scores = (q.double() @ k.double().transpose(-1, -2) / 8**0.5).masked_fill(~mask, float("-inf"))
    assert difference(sdpa(q, k, v, mask), (scores.softmax(-1) @ v.double()).float()) <= 1e-6
    assert difference(sdpa(q, k, v), sdpa(q, k, v, torch.ones(6, 6, dtype=torch.bool))) <= 1e-6
