"""Layers from transformers, and filling them from a state dict: strict, without a copy, with readable complaints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from ..errors import MissingPackage, UnsupportedFile

_SHOWN = 4


@contextmanager
def importing_transformers() -> Iterator[None]:
    """Say what to do where the import within fails: transformers loads other packages, which may be missing or broken.

    Raises MissingPackage, or KeyboardInterrupt where an import made another error of that.
    """
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:
        if _is_interruption(error):
            raise KeyboardInterrupt from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MissingPackage(
            f"The text encoders' layers come from the package transformers, which could not be loaded: {reason}. "
            "Install or repair what that names (often torchaudio or torchvision of another build than torch); for "
            "transformers itself: pip install -U transformers"
        ) from error


def _is_interruption(error: BaseException | None) -> bool:
    """Whether a KeyboardInterrupt is behind an error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def assign_weights(model: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Make the given tensors the model's frozen parameters, in their own dtype and device, none copied.

    what: the encoder's name for the message. Raises UnsupportedFile if names or shapes are not exactly the model's.
    """
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    given = {name: tensor.shape for name, tensor in state_dict.items()}
    misfits = (name for name in wanted.keys() & given.keys() if wanted[name] != given[name])
    complaints = [
        _complaint("missing", wanted.keys() - given.keys()),
        _complaint("not expected", given.keys() - wanted.keys()),
        _complaint("of another shape", (f"{name} {tuple(given[name])} for {tuple(wanted[name])}" for name in misfits)),
    ]
    if any(complaints):
        raise UnsupportedFile(
            f"these weights do not fit the {what}: {'; '.join(filter(None, complaints))}. "
            "Give the file of this encoder, or a config with its sizes."
        )
    model.load_state_dict(dict(state_dict), strict=True, assign=True)
    model.requires_grad_(False)


def _complaint(fault: str, names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return f"{len(listed)} {fault} ({', '.join(listed[:_SHOWN])}{more})" if listed else ""
