"""Devices, the memory manager, and the cancel button.

The manager keeps a list of loaded models, the latest first. Loading asks each model to come with a budget: without
bound on a CPU; otherwise what is free, less what the run itself needs. Others leave for that, first in part, then
wholly. It holds models weakly: one that nobody wants any more drops out.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch

OOM_EXCEPTION = torch.cuda.OutOfMemoryError
UNBOUNDED = 1e32

# Devices


def get_torch_device() -> torch.device:
    return _pretended.device


def text_encoder_device() -> torch.device:
    return _pretended.text_device


def vae_device() -> torch.device:
    return _pretended.device


def get_free_memory(dev: torch.device | None = None, torch_free_too: bool = False) -> Any:
    """Bytes that are free. Every known model counts, whether the manager has it in its list or not."""
    dev = get_torch_device() if dev is None else dev
    limit = 2**40 if _pretended.limit is None else _pretended.limit
    free = limit - sum(model.loaded_size() for model in known if model.current_loaded_device() == dev)
    return (free, free) if torch_free_too else free


def extra_reserved_memory() -> float:
    return 0


def minimum_inference_memory() -> float:
    return 0


# Loaded models


class LoadedModel:
    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        self.device = model.load_device
        self.model_finalizer: Any = None

    @property
    def model(self) -> Any:
        return self._model()

    def model_load(self, lowvram_model_memory: float = 0, force_patch_weights: bool = False) -> None:
        self.model.model_patches_to(self.device)
        self.model.model_patches_to(self.model.model_dtype())
        self.model_use_more_vram(lowvram_model_memory or UNBOUNDED, force_patch_weights)
        self.model_finalizer = weakref.finalize(self.model.model, cleanup_models)

    def model_use_more_vram(self, extra_memory: float, force_patch_weights: bool = False) -> int:
        return self.model.partially_load(self.device, extra_memory, force_patch_weights=force_patch_weights)

    def model_unload(self, memory_to_free: float | None = None, unpatch_weights: bool = True) -> bool:
        """Whether all of it left; part of it may be enough."""
        if memory_to_free is not None and memory_to_free < self.model.loaded_size():
            freed = self.model.partially_unload(self.model.offload_device, memory_to_free)
            if freed >= memory_to_free:
                return False
        self.model.detach(unpatch_weights)
        self.model_finalizer.detach()
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoadedModel) and self.model is other.model

    __hash__ = None  # type: ignore[assignment]


current_loaded_models: list[LoadedModel] = []


def cleanup_models() -> None:
    """Forget the models that are gone."""
    current_loaded_models[:] = [entry for entry in current_loaded_models if entry.model is not None]


def free_memory(
    memory_required: float, device: torch.device, keep_loaded: Sequence[LoadedModel] = ()
) -> list[LoadedModel]:
    """Send models off the device until so many bytes are free; returns those that left wholly.

    First come those that are away in part already.
    """
    cleanup_models()
    there = [entry for entry in current_loaded_models if entry.device == device and entry not in list(keep_loaded)]
    gone = []
    for entry in sorted(there, key=lambda entry: entry.model.loaded_size() - entry.model.model_size()):
        missing = memory_required - get_free_memory(device)
        if missing < 0:
            break
        if entry.model_unload(missing):
            gone.append(entry)
            current_loaded_models.remove(entry)
    return gone


def load_models_gpu(
    models: Iterable[Any],
    memory_required: float = 0,
    force_patch_weights: bool = False,
    minimum_memory_required: float | None = None,
    force_full_load: bool = False,
) -> None:
    working = max(minimum_inference_memory(), memory_required + extra_reserved_memory())
    wanted = [LoadedModel(model) for model in dict.fromkeys(models)]
    for entry in wanted:
        for known_entry in [known for known in current_loaded_models if entry.model.is_clone(known.model)]:
            current_loaded_models.remove(known_entry)
            known_entry.model.detach(unpatch_all=False)
            known_entry.model_finalizer.detach()
    if _pretended.limit is not None:
        missing = sum(entry.model.model_size() - entry.model.loaded_size() for entry in wanted)
        free_memory(1.1 * missing + working, get_torch_device())
    for entry in wanted:
        budget = 0.0
        if _pretended.limit is not None and not force_full_load:
            budget = max(0.1, get_free_memory(entry.device) - working)
        entry.model_load(budget, force_patch_weights)
        current_loaded_models.insert(0, entry)


def loaded_models(only_currently_used: bool = False) -> list[Any]:
    return [entry.model for entry in current_loaded_models]


def unload_all_models() -> None:
    """What `/free` and running out of memory lead to."""
    free_memory(1e30, get_torch_device())


def soft_empty_cache(force: bool = False) -> None:
    """On a CPU there is nothing to give back."""


# The cancel button


class InterruptProcessingException(Exception):  # noqa: N818
    pass


_mutex = threading.RLock()
interrupt_processing = False


def interrupt_current_processing(value: bool = True) -> None:
    global interrupt_processing
    with _mutex:
        interrupt_processing = value


def processing_interrupted() -> bool:
    with _mutex:
        return interrupt_processing


def throw_exception_if_processing_interrupted() -> None:
    """One press cancels one run."""
    global interrupt_processing
    with _mutex:
        if interrupt_processing:
            interrupt_processing = False
            raise InterruptProcessingException


# What the tests may set

known: weakref.WeakSet[Any] = weakref.WeakSet()
"""Every model that was made and is still wanted by somebody."""


class _Pretended:
    device = torch.device("cpu")
    text_device = torch.device("cpu")
    limit: int | None = None


_pretended = _Pretended()


def pretend(device: str = "cpu", text_device: str = "cpu", limit: int | None = None) -> None:
    """Which devices there are, and how many bytes the main one has; None is a CPU that has no bound."""
    _pretended.device, _pretended.text_device = torch.device(device), torch.device(text_device)
    _pretended.limit = limit
