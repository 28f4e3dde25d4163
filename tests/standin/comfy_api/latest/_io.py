"""Sockets, widgets, schemas and nodes. Inputs take the keywords of ComfyUI 0.3.64 and refuse every other."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

# Inputs and outputs

PLAIN = ("display_name", "optional", "tooltip", "lazy")
WIDGET = (*PLAIN, "default", "socketless")
NUMBER = (*WIDGET, "force_input", "min", "max", "step", "display_mode")


class _Entry:
    """One line of a schema. keywords: what its constructor takes beside the id."""

    keywords: ClassVar[tuple[str, ...]] = ()
    Parent: ClassVar[type]

    def __init__(self, id: str | None = None, **given: Any) -> None:
        if unknown := set(given) - set(self.keywords):
            raise TypeError(f"{type(self).__qualname__} got unexpected keywords {sorted(unknown)}")
        self.id = id
        for name in self.keywords:
            setattr(self, name, given.get(name, False if name in ("optional", "is_output_list") else None))

    @property
    def io_type(self) -> str:
        return self.Parent.io_type

    def get_io_type(self) -> str:
        return self.io_type

    def as_dict(self) -> dict[str, Any]:
        """What goes to the page: everything that was given."""
        values = {name: getattr(self, name) for name in self.keywords if name != "extra_dict"}
        return {name: value for name, value in values.items() if value is not None}


class Input(_Entry):
    keywords = (*PLAIN, "extra_dict")


class WidgetInput(Input):
    keywords = (*WIDGET, "widget_type", "force_input", "extra_dict")


class Output(_Entry):
    keywords = ("display_name", "tooltip", "is_output_list")


class ComfyType:
    """A kind of value on a wire, with the entries that take and give it."""

    io_type: ClassVar[str]
    Input: ClassVar[type[Input]]
    Output: ClassVar[type[Output]]


def _kind(io_type: str, base: type[Input] = Input, keywords: tuple[str, ...] | None = None) -> type[ComfyType]:
    kind = type(io_type.title(), (ComfyType,), {"io_type": io_type})
    kind.Input = type("Input", (base,), {"Parent": kind, "keywords": keywords or base.keywords})
    kind.Output = type("Output", (Output,), {"Parent": kind})
    return kind


def Custom(io_type: str) -> type[ComfyType]:  # noqa: N802
    """A socket type of one's own."""
    return _kind(io_type)


Boolean = _kind("BOOLEAN", WidgetInput, (*WIDGET, "force_input", "label_on", "label_off"))
Int = _kind("INT", WidgetInput, (*NUMBER, "control_after_generate"))
Float = _kind("FLOAT", WidgetInput, (*NUMBER, "round"))
String = _kind("STRING", WidgetInput, (*WIDGET, "force_input", "multiline", "placeholder", "dynamic_prompts"))
Combo = _kind("COMBO", WidgetInput, (*WIDGET, "options", "control_after_generate", "upload", "image_folder", "remote"))
Image, Mask, Latent = _kind("IMAGE"), _kind("MASK"), _kind("LATENT")
Sigmas, Conditioning = _kind("SIGMAS"), _kind("CONDITIONING")


class MultiType:
    """A socket that takes several types."""

    io_type = "COMFY_MULTITYPED_V3"

    class Input(Input):
        keywords = ("types", *Input.keywords)

        def get_io_type(self) -> str:
            return ",".join(kind.io_type for kind in self.types)

        def as_dict(self) -> dict[str, Any]:
            return {name: value for name, value in super().as_dict().items() if name != "types"}


MultiType.Input.Parent = MultiType


class Hidden(str, Enum):
    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"
    dynprompt = "DYNPROMPT"


class HiddenHolder:
    """The hidden inputs of one execution; None for those not asked for."""

    def __init__(self, values: dict[Hidden, Any]) -> None:
        self.__dict__.update({key.name: value for key, value in values.items()})

    def __getattr__(self, name: str) -> None:
        return None


# Schemas and nodes


@dataclass
class Schema:
    """What a node is. `validate` and `finalize` are called by ComfyUI when it reads the node."""

    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Input] | None = None
    outputs: list[Output] | None = None
    hidden: list[Hidden] | None = None
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False

    def validate(self) -> None:
        """Raises ValueError if an id stands twice, among the inputs and outputs together."""
        ids = [entry.id for entry in (*(self.inputs or []), *(self.outputs or []))]
        if twice := {entry_id for entry_id in ids if ids.count(entry_id) > 1}:
            raise ValueError(f"ids of inputs and outputs must be unique, but these are not: {sorted(twice)}")

    def finalize(self) -> None:
        """Name the outputs that have no id; output nodes get the prompt and the workflow as well."""
        if self.is_output_node:
            wanted = [*(self.hidden or []), Hidden.prompt, Hidden.extra_pnginfo]
            self.hidden = list(dict.fromkeys(wanted))
        for index, output in enumerate(self.outputs or []):
            if output.id is None:
                output.id = f"_{index}_{output.io_type}_"


class NodeOutput:
    """What `execute` returns: the values of the outputs in order, and what the page shows."""

    def __init__(
        self,
        *args: Any,
        ui: dict[str, Any] | None = None,
        expand: dict[str, Any] | None = None,
        block_execution: str | None = None,
    ) -> None:
        self.args, self.ui, self.expand, self.block_execution = args, ui, expand, block_execution

    @property
    def result(self) -> tuple[Any, ...] | None:
        return self.args or None

    def __getitem__(self, index: int) -> Any:
        return self.args[index]


class ComfyNode:
    """Base of all nodes. Only classes are used, never instances."""

    hidden: ClassVar[HiddenHolder | None] = None

    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError

    @classmethod
    def execute(cls, **kwargs: Any) -> NodeOutput:
        raise NotImplementedError

    @classmethod
    def validate_inputs(cls, **kwargs: Any) -> bool | str:
        raise NotImplementedError

    @classmethod
    def fingerprint_inputs(cls, **kwargs: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def VALIDATE_CLASS(cls) -> None:  # noqa: N802
        for name in ("define_schema", "execute"):
            if getattr(cls, name).__func__ is getattr(ComfyNode, name).__func__:
                raise TypeError(f"{cls.__name__} has no {name}")

    @classmethod
    def FINALIZE_SCHEMA(cls) -> Schema:  # noqa: N802
        schema = cls.define_schema()
        schema.finalize()
        return schema

    @classmethod
    def GET_SCHEMA(cls) -> Schema:  # noqa: N802
        """The schema as ComfyUI registers it. Raises what is wrong with it."""
        cls.VALIDATE_CLASS()
        schema = cls.FINALIZE_SCHEMA()
        schema.validate()
        return schema

    @classmethod
    def PREPARE_CLASS_CLONE(cls, hidden_inputs: dict[Hidden, Any]) -> type[ComfyNode]:  # noqa: N802
        """A class of its own for one execution, with that execution's hidden inputs."""
        return type(f"{cls.__name__}Clone", (cls,), {"hidden": HiddenHolder(hidden_inputs)})

    @classmethod
    def EXECUTE_NORMALIZED(cls, *args: Any, **kwargs: Any) -> NodeOutput:  # noqa: N802
        output = cls.execute(*args, **kwargs)
        if inspect.iscoroutine(output) or not isinstance(output, NodeOutput):
            raise TypeError(f"{cls.__name__} returned {type(output).__name__}, not a NodeOutput")
        return output
