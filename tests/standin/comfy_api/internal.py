"""How the executor calls a node's method: with a class that cannot be written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class _Locked(type):
    def __setattr__(cls, name: str, value: Any) -> None:
        raise AttributeError(f"{cls.__name__}.{name} cannot be set: nodes are executed on a locked class")


def make_locked_method_func(type_obj: type, func: str, class_clone: type) -> Callable[..., Any]:
    """The class method `func` of a node, as a function of inputs by name, with a locked `class_clone` for its class."""
    method = getattr(type_obj, func).__func__
    locked = _Locked(class_clone.__name__, (class_clone,), {})

    def call(**inputs: Any) -> Any:
        return method(locked, **inputs)

    return call
