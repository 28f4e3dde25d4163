"""Packages that backends import, standing in for those that are not installed: they really compute."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from hyvideo_lib.attention import choose
from hyvideo_lib.attention.probe import judge


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Nothing is remembered from one test to the next."""
    judge.cache_clear()
    choose._seconds.clear()
    yield
    judge.cache_clear()
    choose._seconds.clear()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """install("a.b", name=function): a module of that name that can be imported."""

    def install(path: str, **members: Any) -> None:
        parent = ""
        for leaf in path.split("."):
            parent = f"{parent}.{leaf}" if parent else leaf
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        vars(sys.modules[path]).update(members)

    return install


def tokens_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention over [B, L, N, D]."""
    weights = (torch.einsum("bqnd,bknd->bnqk", q, k) * q.shape[-1] ** -0.5).softmax(-1)
    return torch.einsum("bnqk,bknd->bqnd", weights, v)


def heads_first(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """The same over [B, N, L, D]. Raises TypeError for options that sageattn has not."""
    if set(options) - {"tensor_layout", "is_causal"}:
        raise TypeError(f"unexpected options {options}")
    return tokens_first(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


MODULES: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "flash_attn_2": ("flash_attn", "flash_attn_func", tokens_first),
    "flash_attn_3": ("flash_attn_interface", "flash_attn_func", lambda *qkv: (tokens_first(*qkv), None)),
    "sage": ("sageattention", "sageattn", heads_first),
    "xformers": ("xformers.ops", "memory_efficient_attention", tokens_first),
    "comfy_kitchen": ("comfy_kitchen", "int8_attention", heads_first),
}
"""What each optional backend imports, and a function of the right form."""


@pytest.fixture
def modules() -> dict[str, tuple[str, str, Callable[..., Any]]]:
    return MODULES
