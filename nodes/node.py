"""What all nodes share: checks before the run, and errors in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from comfy_api.latest import io

from ..hyvideo_lib.errors import HyvError, InvalidSetting, OutOfMemory
from . import comfy_host

if TYPE_CHECKING:
    from ..hyvideo_lib.pipeline import StageLog

CATEGORY = "HunyuanVideo"
NOT_LINKED: Any = object()
"""Default of an optional socket in `validate_inputs`: a linked one is None there, as its value is not known yet."""
Result = TypeVar("Result")


def check_inputs(
    node: type[io.ComfyNode], values: dict[str, Any], check: Callable[[], object] | None = None
) -> str | bool:
    """For `validate_inputs`: True, or the sentence that says what is wrong. Never raises.

    Naming an input in `validate_inputs` switches off ComfyUI's own range check for it, so ranges and options of the
    schema are checked here as well. values: by input id; None for what comes over a wire and is not known yet.
    check: the library's own rules; called only when all of `values` are known.
    """
    try:
        inputs = {entry.id: entry for entry in node.define_schema().inputs or []}
        for name, value in values.items():
            if value is not None:
                _check_value(inputs[name], value)
        if check is not None and None not in values.values():
            check()
    except HyvError as error:
        return str(error)
    except Exception as error:
        return f"The inputs of this node could not be checked ({type(error).__name__}: {error})."
    return True


def _check_value(entry: Any, value: Any) -> None:
    options = getattr(entry, "options", None)
    if options is not None and value not in options:
        listed = ", ".join(map(str, options[:20])) or "nothing: there is no such file yet"
        raise InvalidSetting(f"{entry.id} is {value!r}, but must be one of: {listed}.")
    low, high = getattr(entry, "min", None), getattr(entry, "max", None)
    if low is not None and not value >= low:  # so that "not a number" is refused as well
        raise InvalidSetting(f"{entry.id} is {value}, but must be at least {low}.")
    if high is not None and value > high:
        raise InvalidSetting(f"{entry.id} is {value}, but must be at most {high}.")


def names_its_errors(execute: Callable[..., Result]) -> Callable[..., Result]:
    """Decorator of `execute`: our errors carry their stable code at the end of the sentence.

    All others pass untouched: ComfyUI looks at the types of interruption and of running out of memory. Ours of the
    latter kind becomes ComfyUI's, which then lets every model go.
    """

    @wraps(execute)
    def wrapped(*args: Any, **kwargs: Any) -> Result:
        try:
            return execute(*args, **kwargs)
        except OutOfMemory as error:
            raise comfy_host.out_of_memory_type()(f"{error} [{error.code}]") from error
        except HyvError as error:
            raise type(error)(f"{error} [{error.code}]") from error

    return wrapped


@contextmanager
def reported(host: comfy_host.ComfyHost, result: Callable[[], str] | None = None) -> Iterator[StageLog]:
    """Measure what a node does. When it ended well the node shows the report, behind what it says of its result."""
    from ..hyvideo_lib.pipeline import measured

    with measured(host.device) as log:
        yield log
    assert log.report is not None
    host.say(", ".join([*([result()] if result else []), log.report.describe()]))
