"""The weights in what a pickle held: tables within tables, of which one is the model.

Training programs keep a model beside counters, settings and the state of an optimiser, under words of their own, at
any depth. The words that are known are tried first. Then the one table that holds tensors is taken; of several, the
one that is a model that is known; and where the tables are the tree of the model's own modules, all of them. Nothing
is guessed: what stays open is refused with the names that are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ..errors import UnsupportedFile
from .header import MAX_NAME, MAX_TENSORS, Header, TensorInfo
from .variants import match_layout

WRAPPERS = ("module", "ema", "state_dict", "model", "model_state_dict", "params_ema", "params")
"""Keys under which training programs keep the weights, the one that is taken first."""
MAX_DEPTH = 16
MAX_ENTRIES = 4 * MAX_TENSORS
"""Of all tables together."""
SHOWN = 10
_OF_TRAINING = frozenset(
    (
        *("optimizer", "optimizers", "optimizer_state", "optimizer_states", "optimizer_state_dict", "optim", "opt"),
        *("lr_scheduler", "lr_schedulers", "scheduler", "schedulers", "scaler", "grad_scaler", "rng_state"),
        *("random_states", "callbacks", "loops", "hyper_parameters", "param_groups"),
    )
)
"""Keys of what is no model, whatever tensors are in it."""
Keys = tuple[str, ...]


@dataclass(frozen=True)
class Weights:
    """tensors: the model's, by name. wrappers: the keys that led to them. ignored: what else the tables hold."""

    tensors: Mapping[str, Tensor]
    wrappers: tuple[str, ...]
    ignored: tuple[str, ...]


def find_weights(loaded: Mapping[Any, Any], path: Path, kind: str | None = None) -> Weights:
    """The tensors of the one model in nested tables. path: of the file, for messages. kind: of the model that is
    meant where there are several. Raises UnsupportedFile.
    """
    found = _Entries(path)
    found.collect(loaded, ())
    tensors = found.tensors
    if not tensors:
        raise UnsupportedFile(f"{path.name} holds no tensors. Give the file that has the weights.")
    place: Keys = ()
    while (inner := _step(tensors, place, path, kind)) is not None:
        place = inner
    kept = _kept(tensors, place)
    left = [".".join(key) for key in tensors if key not in kept]
    return Weights(
        {".".join(key[len(place) :]): tensor for key, tensor in kept.items()},
        place,
        tuple(sorted({*found.ignored, *left}))[:MAX_TENSORS],
    )


class _Entries:
    """All tensors in tables within tables, by the keys that lead to them, and the keys of what is no tensor."""

    def __init__(self, path: Path) -> None:
        self.tensors: dict[Keys, Tensor] = {}
        self.ignored: list[str] = []
        self._path, self._count = path, 0

    def collect(self, table: Mapping[Any, Any], place: Keys) -> None:
        if len(place) > MAX_DEPTH:
            self._refuse(f"tables nested more than {MAX_DEPTH} deep")
        for key, value in table.items():
            self._count += 1
            if self._count > MAX_ENTRIES:
                self._refuse(f"more than {MAX_ENTRIES} entries")
            name = str(key)[:MAX_NAME]
            below = (*place, str(key))
            is_name = isinstance(key, str) or (type(key) is int and isinstance(value, Mapping))
            if is_name and isinstance(value, Tensor):
                self.tensors[below] = value
            elif is_name and isinstance(value, Mapping) and not _is_of_training(name, value):
                self.collect(value, below)
            else:
                self.ignored.append(".".join((*place, name))[:MAX_NAME])

    def _refuse(self, what: str) -> None:
        raise UnsupportedFile(f"{self._path.name} holds {what}, which no model has. Use its .safetensors version.")


def _is_of_training(name: str, table: Mapping[Any, Any]) -> bool:
    return name in _OF_TRAINING or "param_groups" in table


def _step(tensors: Mapping[Keys, Tensor], place: Keys, path: Path, kind: str | None) -> Keys | None:
    """The table in which to go on; None where the weights are here. Raises UnsupportedFile."""
    own, inner = _split(tensors, place)
    for word in WRAPPERS:
        if word in inner:
            return (*place, word)
    weights = [tensor for tensor in own.values() if tensor.ndim]
    if not inner or (weights and _kind_of(own, place)):
        return None
    kinds = {word: _kind_of(entries, (*place, word)) for word, entries in inner.items()}
    known = [word for word in kinds if kinds[word]]
    if kind in kinds.values():
        known = [word for word in kinds if kinds[word] == kind]
    if len(known) == 1:
        return (*place, known[0])
    if not known and _kind_of(_below(tensors, place), place):
        return None
    if not known and weights:
        return None
    if len(inner) == 1:
        return (*place, next(iter(inner)))
    names = ", ".join(".".join((*place, word)) for word in (known or list(inner))[:SHOWN])
    what = "models" if known else "tables of tensors"
    raise UnsupportedFile(
        f"{path.name} holds {len(known or inner)} {what} ({names}), and nothing tells which is meant. Save the one "
        "that is wanted by itself, or use its .safetensors version."
    )


def _kept(tensors: Mapping[Keys, Tensor], place: Keys) -> dict[Keys, Tensor]:
    """The model's tensors in a table: its own, and those of tables in it where these are the model's modules."""
    below = _below(tensors, place)
    own, inner = _split(tensors, place)
    has_weights = any(tensor.ndim for tensor in own.values())
    is_tree = bool(inner) and (not has_weights or not _kind_of(own, place)) and _kind_of(below, place)
    return below if is_tree else dict(own)


def _below(tensors: Mapping[Keys, Tensor], place: Keys) -> dict[Keys, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key[: len(place)] == place}


def _split(tensors: Mapping[Keys, Tensor], place: Keys) -> tuple[dict[Keys, Tensor], dict[str, dict[Keys, Tensor]]]:
    """The tensors that stand in a table itself, and those of the tables in it."""
    own: dict[Keys, Tensor] = {}
    inner: dict[str, dict[Keys, Tensor]] = {}
    depth = len(place)
    for key, tensor in _below(tensors, place).items():
        if len(key) == depth + 1:
            own[key] = tensor
        else:
            inner.setdefault(key[depth], {})[key] = tensor
    return own, inner


def _kind_of(tensors: Mapping[Keys, Tensor], place: Keys) -> str:
    """Which kind of model tensors are by their names below a table; empty for none that is known."""
    infos: dict[str, TensorInfo] = {}
    for key, tensor in tensors.items():
        name = ".".join(key[len(place) :])
        dtype = str(tensor.dtype).removeprefix("torch.")
        infos[name] = TensorInfo(name, dtype, tuple(tensor.shape), 0, 0)
    match = match_layout(Header(Path(), MappingProxyType(infos), MappingProxyType({}), 0))
    return match.layout.kind if match else ""
