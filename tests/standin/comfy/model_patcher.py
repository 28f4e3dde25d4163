"""A model as the memory manager knows it. The pack moves weights in its own way, so here nothing ever moves."""

from __future__ import annotations

import uuid
from typing import Any

import torch
from torch import nn

from . import model_management


class ModelPatcher:
    """Attributes and calls as ComfyUI's; those that move weights must be overridden."""

    def __init__(
        self,
        model: nn.Module,
        load_device: torch.device,
        offload_device: torch.device,
        size: int = 0,
        weight_inplace_update: bool = False,
    ) -> None:
        self.model = model
        self.size = size
        self.load_device, self.offload_device = load_device, offload_device
        self.weight_inplace_update = weight_inplace_update
        self.parent: ModelPatcher | None = None
        self.patches: dict[str, Any] = {}
        self.patches_uuid = uuid.uuid4()
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        if getattr(model, "device", None) is None:
            model.device = offload_device  # type: ignore[assignment]
        self.model_size()
        model_management.known.add(self)

    def model_size(self) -> int:
        if self.size <= 0:
            self.size = sum(tensor.nbytes for tensor in self.model.state_dict().values())
        return self.size

    def is_clone(self, other: Any) -> bool:
        return getattr(other, "model", None) is self.model

    def model_patches_to(self, device: torch.device | torch.dtype) -> None:
        return None

    def model_patches_models(self) -> list[ModelPatcher]:
        return []

    def model_dtype(self) -> torch.dtype | None:
        return None

    def lowvram_patch_counter(self) -> int:
        return 0

    # Moving weights: the pack's own

    def clone(self) -> ModelPatcher:
        raise NotImplementedError

    def loaded_size(self) -> int:
        raise NotImplementedError

    def current_loaded_device(self) -> torch.device:
        raise NotImplementedError

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> int:
        raise NotImplementedError

    def partially_unload(self, device_to: torch.device, memory_to_free: float = 0) -> int:
        raise NotImplementedError

    def patch_model(
        self,
        device_to: torch.device | None = None,
        lowvram_model_memory: float = 0,
        load_weights: bool = True,
        force_patch_weights: bool = False,
    ) -> nn.Module:
        raise NotImplementedError

    def unpatch_model(self, device_to: torch.device | None = None, unpatch_weights: bool = True) -> None:
        raise NotImplementedError

    def detach(self, unpatch_all: bool = True) -> nn.Module:
        raise NotImplementedError

    def __del__(self) -> None:
        self.detach(unpatch_all=False)
