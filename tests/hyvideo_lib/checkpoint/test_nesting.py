from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyvideo_lib.checkpoint import nesting
from hyvideo_lib.checkpoint.nesting import find_weights
from hyvideo_lib.errors import UnsupportedFile
from tests.hyvideo_lib.checkpoint.conversions import same, weights_of

Weights = dict[str, Tensor]
PATH = Path("old.pt")
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3, 3)}}, "param_groups": [{"lr": 0.1}]}


def as_tree(weights: Weights, indices: type = str) -> dict[Any, Any]:
    """The weights in a table for every module."""
    tree: dict[Any, Any] = {}
    for name, tensor in weights.items():
        *path, leaf = name.split(".")
        table = tree
        for word in path:
            table = table.setdefault(indices(word) if word.isdigit() else word, {})
        table[leaf] = tensor
    return tree


WRAPPINGS: dict[str, tuple[Callable[[Weights], Any], tuple[str, ...]]] = {
    "an unknown word": (lambda w: {"anything": w}, ("anything",)),
    "deep": (lambda w: {"a": {"b": {"c": {"d": {"e": w}}}}}, ("a", "b", "c", "d", "e")),
    "a known word in an unknown one": (lambda w: {"run": {"ema": w, "model": w}}, ("run", "ema")),
    "a known word that holds none": (lambda w: {"state_dict": {}, "model": {"name": "x"}, "net": w}, ("net",)),
    "an optimiser": (lambda w: {"net": w, "optimizer": OPTIMIZER, "second": OPTIMIZER, "step": 3}, ("net",)),
    "lists of tensors": (lambda w: {"net": w, "history": [torch.zeros(2)]}, ("net",)),
    "statistics": (lambda w: {"net": w, "stats": {"mean": torch.zeros(4)}}, ("net",)),
    "a counter beside": (lambda w: {"step": torch.tensor(5), "net": w}, ("net",)),
    "its modules' tree": (as_tree, ()),
    "a tree with numbers": (lambda w: {"net": as_tree(w, int)}, ("net",)),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("name", ["dit_tiny_t2v", "vae_tiny"])
def test_the_one_model_is_found(name: str, wrapping: str) -> None:
    weights, (wrap, wrappers) = weights_of(name), WRAPPINGS[wrapping]
    found = find_weights(wrap(weights), PATH)
    assert same(dict(found.tensors), weights)
    assert found.wrappers == wrappers


def test_what_is_no_model_is_told() -> None:
    wrapped = {"net": weights_of("vae_tiny"), "optimizer": OPTIMIZER, "stats": {"mean": torch.zeros(4)}, "steps": [1]}
    assert find_weights(wrapped, PATH).ignored == ("optimizer", "stats.mean", "steps")


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"first": weights_of("vae_tiny"), "second": weights_of("vae_tiny")},
        lambda: {"first": {"a": torch.zeros(2)}, "second": {"b": torch.zeros(2)}},
        lambda: {"first": weights_of("vae_tiny"), "second": weights_of("dit_tiny_t2v")},
    ],
)
def test_two_of_which_none_is_meant_are_refused_by_their_names(make: Callable[[], Any]) -> None:
    with pytest.raises(UnsupportedFile, match=r"first, second"):
        find_weights(make(), PATH)


def test_the_kind_that_is_asked_for_decides_between_two() -> None:
    weights = weights_of("vae_tiny")
    found = find_weights({"first": weights, "second": weights_of("dit_tiny_t2v")}, PATH, "vae")
    assert same(dict(found.tensors), weights)


def test_tables_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    endless: dict[str, Any] = {}
    endless |= {"a": endless, "b": endless}
    monkeypatch.setattr(nesting, "MAX_ENTRIES", 1000)
    with pytest.raises(UnsupportedFile, match=r"nested more than|more than 1000 entries"):
        find_weights(endless, PATH)
