"""Nodes called as ComfyUI calls them: on a locked class of their own, by the names of their inputs."""

from __future__ import annotations

import inspect
from typing import Any

import torch

NODE_ID = "7"


def defaults(node: type) -> dict[str, Any]:
    """What a page sends for widgets that nobody touched."""
    values = {}
    for entry in node.define_schema().inputs or []:
        options = getattr(entry, "options", None)
        default = getattr(entry, "default", None)
        if default is not None or options:
            values[entry.id] = options[0] if default is None else default
    return values


def call(node: type, method: str, inputs: dict[str, Any], node_id: str = NODE_ID) -> Any:
    """One class method of a node, as the executor calls it."""
    from comfy_api.internal import make_locked_method_func
    from comfy_api.latest import io

    wanted = node.GET_SCHEMA().hidden or []
    hidden = {io.Hidden.unique_id: node_id} if io.Hidden.unique_id in wanted else {}
    return make_locked_method_func(node, method, node.PREPARE_CLASS_CLONE(hidden))(**inputs)


def run(node: type, **inputs: Any) -> Any:
    """Execute a node; widgets that are not given have their defaults. Returns its NodeOutput."""
    known = {entry.id for entry in node.define_schema().inputs or []}
    assert set(inputs) <= known, f"{node.__name__} has no input {sorted(set(inputs) - known)}"
    with torch.inference_mode():  # as ComfyUI does
        return call(node, "EXECUTE_NORMALIZED", {**defaults(node), **inputs})


def validate(node: type, **inputs: Any) -> bool | str:
    """What `validate_inputs` says before a run: it gets of all inputs those that it names; None is for linked ones."""
    sent = {**defaults(node), **inputs}
    names = inspect.getfullargspec(node.validate_inputs).args
    return call(node, "validate_inputs", {name: value for name, value in sent.items() if name in names})
