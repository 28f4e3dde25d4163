"""The one place that knows ComfyUI: its progress bars and previews, its memory manager, its model folders.

Everything ComfyUI-specific is imported inside the function that needs it, so that reading the node list costs nothing.
"""

from __future__ import annotations

import errno
import gc
import importlib.util
import logging
import os
import re
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..hyvideo_lib.attention import Backend, Kernel
from ..hyvideo_lib.shortage import is_out_of_memory

if TYPE_CHECKING:
    from ..hyvideo_lib.memory import Offloader

logger = logging.getLogger(__name__)
LOAD_STEPS = 8
"""So much of a model's weights fewer come at each further try."""


# Folders


MODEL_SUFFIXES = (".safetensors", ".sft", ".gguf")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


def list_files(*kinds: str) -> list[str]:
    """Names of the model files in ComfyUI's folders of these kinds, each once; a model in parts by its first part.

    ComfyUI's own lists leave out GGUF files. Pickles are never opened, so they are not listed.
    """
    import folder_paths

    names: dict[str, None] = {}
    for kind in kinds:
        if kind in folder_paths.folder_names_and_paths:
            names |= dict.fromkeys(folder_paths.get_filename_list(kind))
            names |= dict.fromkeys(name for name in _files_in(*model_folders(kind)) if name.lower().endswith(".gguf"))
        else:
            names |= dict.fromkeys(_files_in(*model_folders(kind)))
    return [name for name in names if name.lower().endswith(MODEL_SUFFIXES) and not _is_later_part(name)]


def _is_later_part(name: str) -> bool:
    return bool(_SHARD.search(name)) and "-00001-of-" not in name


def find_file(name: str, *kinds: str) -> Path | None:
    """Where a listed file is; None if it is in none of the folders."""
    import folder_paths

    for kind in kinds:
        if kind in folder_paths.folder_names_and_paths:
            found = folder_paths.get_full_path(kind, name)
        else:
            found = next(
                (path for root in model_folders(kind) if (path := inside(root, name)) and path.is_file()), None
            )
        if found:
            return Path(found)
    return None


def _files_in(*folders: Path) -> list[str]:
    """Names of all files beneath these folders, relative to each."""
    return sorted(path.relative_to(root).as_posix() for root in folders for path in root.rglob("*") if path.is_file())


def model_folders(kind: str) -> list[Path]:
    """ComfyUI's folders for a kind of file; for a kind that nobody registered, the folder of that name among models."""
    import folder_paths

    if kind in folder_paths.folder_names_and_paths:
        return [Path(folder) for folder in folder_paths.get_folder_paths(kind)]
    return [Path(folder_paths.models_dir) / kind]


def candidates(name: str, *kinds: str) -> list[Path]:
    """Where a file or folder of this name would be: inside ComfyUI's folders of these kinds, and nowhere else."""
    return [path for kind in kinds for root in model_folders(kind) if (path := inside(root, name))]


def inside(folder: Path, name: str) -> Path | None:
    """The path of this name in a folder; None if the name leads out of it, or is too long for any file. Links that lie
    in the folder are followed, as many people keep their models elsewhere.
    """
    path = Path(os.path.normpath(folder / name))
    return path if path.is_relative_to(os.path.normpath(folder)) and not _is_too_long(path) else None


def _is_too_long(path: Path) -> bool:
    """Whether the system has no room for such a name: asked what is there, it raises instead of saying "nothing"."""
    try:
        path.is_file()
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def native_tokenizers() -> list[Path]:
    """The folders in which ComfyUI carries the tokenizers of CLIP-L and of Llama-3; those that are there."""
    found = importlib.util.find_spec("comfy")
    roots = map(Path, found.submodule_search_locations or ()) if found else ()
    folders = [root / name for root in roots for name in ("sd1_tokenizer", "text_encoders/llama_tokenizer")]
    return [folder for folder in folders if folder.is_dir()]


def output_folder() -> Path:
    import folder_paths

    return Path(folder_paths.get_output_directory())


def input_folder() -> Path:
    import folder_paths

    return Path(folder_paths.get_input_directory())


def temp_folder() -> Path:
    """ComfyUI's folder for files that are in nobody's way: emptied when ComfyUI starts and when it stops."""
    import folder_paths

    return Path(folder_paths.get_temp_directory())


def next_output(prefix: str, suffix: str) -> tuple[Path, str]:
    """The next free file for a prefix in the output folder, and its folder's name within it.

    Raises what ComfyUI raises for a prefix that leads out of the output folder.
    """
    import folder_paths

    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, str(output_folder()))
    return Path(folder) / f"{name}_{counter:05}_{suffix}", subfolder


# Devices and memory


def compute_device() -> torch.device:
    import comfy.model_management as mm

    device: torch.device = mm.get_torch_device()
    return device


def text_device(choice: str) -> torch.device:
    """ "auto" is ComfyUI's choice for text encoders; "cpu" and "gpu" say it."""
    import comfy.model_management as mm

    device: torch.device = {
        "auto": mm.text_encoder_device,
        "gpu": mm.get_torch_device,
        "cpu": lambda: torch.device("cpu"),
    }[choice]()
    return device


def vae_device() -> torch.device:
    import comfy.model_management as mm

    device: torch.device = mm.vae_device()
    return device


def free_bytes(device: torch.device) -> int:
    import comfy.model_management as mm

    return int(mm.get_free_memory(device))


def recover() -> None:
    """Give back what a failed attempt had on the device: every model leaves it, as ComfyUI itself does then."""
    import comfy.model_management as mm

    gc.collect()
    mm.unload_all_models()
    mm.soft_empty_cache()


def room_bytes(device: torch.device) -> int | None:
    """Bytes that a run can have if every model that ComfyUI could move away did, less what ComfyUI always leaves free
    (--reserve-vram); None on a CPU, which has no bound."""
    if device.type == "cpu":
        return None
    import comfy.model_management as mm

    there = sum(model.loaded_size() for model in mm.loaded_models() if model.load_device == device)
    return max(0, free_bytes(device) + int(there) - int(mm.extra_reserved_memory()))


def out_of_memory_type() -> type[Exception]:
    """What ComfyUI takes for running out of memory."""
    import comfy.model_management as mm

    kind: type[Exception] = mm.OOM_EXCEPTION
    return kind


def interruption_type() -> type[Exception]:
    """What ComfyUI raises where a run is cancelled."""
    import comfy.model_management as mm

    kind: type[Exception] = mm.InterruptProcessingException
    return kind


def manage(offloader: Offloader, device: torch.device) -> Any:
    """Make a model known to ComfyUI's memory manager: an object to keep as long as the model is wanted."""
    return _managed_class()(offloader, device)


def load(*managed: Any, working_bytes: int, most: int | None = None) -> None:
    """Bring managed models to their device; others move out if that and `working_bytes` beside them need the room.

    most: bytes of each that may be there; None is without bound. Fewer blocks come where memory runs out on the way, as
    it does if another program took some meanwhile.
    """
    import comfy.model_management as mm

    size = sum(int(model.model_size()) for model in managed)
    more = 0
    for model in managed:
        model.most = most
    while not _came(managed, working_bytes + more, is_last=more >= size):
        mm.soft_empty_cache()
        more += max(1, size // LOAD_STEPS)
        logger.warning("memory ran out while weights were loaded: trying with fewer blocks")
    for model in managed:
        # A model that was there already is not made smaller by ComfyUI when a run needs more room than the last one.
        missing = 0 if model.load_device.type == "cpu" else working_bytes - free_bytes(model.load_device)
        if most is not None:
            missing = max(missing, model.loaded_size() - most)
        if missing > 0:
            freed = model.partially_unload(model.offload_device, missing)
            logger.info("%d MiB of blocks stay in RAM to make room for the run", freed // 2**20)


def _came(managed: Sequence[Any], working_bytes: int, is_last: bool) -> bool:
    """Whether ComfyUI could load the models; on the last try its error is raised."""
    import comfy.model_management as mm

    try:
        mm.load_models_gpu(list(managed), memory_required=working_bytes)
    except (MemoryError, RuntimeError) as error:
        if is_last or not is_out_of_memory(error):
            raise
        return False
    return True


@cache
def _managed_class() -> type[Any]:
    """Made when first needed: its base class is ComfyUI's."""
    from comfy.model_patcher import ModelPatcher

    class ManagedModel(ModelPatcher):  # type: ignore[misc]
        """A model of ours as ComfyUI's memory manager sees it. What it is asked for, the Offloader does.

        ComfyUI's own way of moving weights would copy those mapped from a file into RAM when they leave the device.
        """

        def __init__(self, offloader: Offloader, load_device: torch.device) -> None:
            self.offloader = offloader
            self.most: int | None = None
            super().__init__(offloader.module, load_device, torch.device("cpu"), size=offloader.num_bytes)

        def clone(self, *args: Any, **kwargs: Any) -> Any:
            return self

        def loaded_size(self) -> int:
            return self.offloader.loaded_bytes

        def current_loaded_device(self) -> torch.device:
            return self.offloader.device or self.offload_device

        def model_dtype(self) -> torch.dtype:
            return next(self.offloader.module.parameters()).dtype

        def partially_load(self, device_to: torch.device, extra_memory: float = 0, **_: Any) -> int:
            budget = None if extra_memory >= 1e30 else self.offloader.loaded_bytes + int(extra_memory)
            budget = min((bound for bound in (budget, self.most) if bound is not None), default=None)
            return self.offloader.load(device_to, budget)

        def partially_unload(self, device_to: torch.device, memory_to_free: float = 0, **_: Any) -> int:
            wanted = int(min(memory_to_free, 2**62))
            freed = self.offloader.forget()
            return freed if freed >= wanted else freed + self.offloader.unload(wanted - freed)

        def patch_model(self, *args: Any, **kwargs: Any) -> Any:
            return self.model

        def unpatch_model(self, device_to: torch.device | None = None, unpatch_weights: bool = True) -> None:
            if unpatch_weights:
                self.offloader.go_home()

        def detach(self, unpatch_all: bool = True) -> Any:
            self.unpatch_model(unpatch_weights=unpatch_all)
            return self.model

        def __del__(self) -> None:
            return None

    return ManagedModel


# Attention


def load_attention() -> Kernel:
    """The attention that ComfyUI itself uses, by its own options."""
    from comfy.ldm.modules.attention import optimized_attention

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = optimized_attention(q, k, v, heads=q.shape[1], skip_reshape=True)  # [B, L, N D]
        return out.unflatten(-1, (q.shape[1], -1)).transpose(1, 2)

    return attend


ATTENTION = Backend(
    "comfyui",
    load_attention,
    "It is ComfyUI's own, chosen by the options ComfyUI was started with.",
    is_exact=False,
    extra=3.5,
)
"""Not exact as far as can be told, and counted as the most that it may take: with --use-sage-attention it is that."""


# Progress, previews, interruption


class ComfyHost:
    """The host of a node's run: one bar per stage with text under it, previews, and ComfyUI's cancel button."""

    def __init__(self, node_id: str | None, device: torch.device | None = None, has_previews: bool = False) -> None:
        self._node_id = node_id
        self._device = device or compute_device()
        self._previewer = _find_previewer(self._device) if has_previews else None
        self._bar: Any = None
        self._title, self._total, self._done, self._started = "", 0, 0, 0.0

    @property
    def device(self) -> torch.device:
        return self._device

    def stage(self, name: str, total: int) -> None:
        self._title, self._total, self._done, self._started = name, total, 0, time.monotonic()
        self._bar = self._make_bar(total) if total else None
        self.say(name)

    def step(self, done: int, total: int) -> None:
        if self._bar is None or total != self._total:  # a stage that did not know its length when it began
            self._total, self._bar = total, self._make_bar(total)
        self._done = done
        self.say(describe_progress(self._title, done, total, time.monotonic() - self._started))
        self._bar.update_absolute(done, total)

    def _make_bar(self, total: int) -> Any:
        from comfy.utils import ProgressBar

        return ProgressBar(total, node_id=self._node_id)

    def preview(self, latents: torch.Tensor) -> None:
        if self._previewer is None or self._bar is None:
            return
        try:
            image = self._previewer.decode_latent_to_preview_image("JPEG", latents)
        except (RuntimeError, ValueError, TypeError) as error:
            logger.warning("no previews in this run: the previewer could not show these latents (%s)", error)
            self._previewer = None
            return
        self._bar.update_absolute(self._done, self._total, image)

    def check_interrupt(self) -> None:
        import comfy.model_management as mm

        mm.throw_exception_if_processing_interrupted()

    def request_memory(self, num_bytes: int) -> None:
        import comfy.model_management as mm

        mm.free_memory(num_bytes, self._device)

    def say(self, text: str) -> None:
        show_text(self._node_id, text)


def describe_progress(title: str, done: int, total: int, seconds: float) -> str:
    """ "sampling 3/20, 1.25 s/it, 0:21 left"."""
    if not done:
        return f"{title} 0/{total}"
    each = seconds / done
    left = round(each * (total - done))
    return f"{title} {done}/{total}, {each:.2f} s/it, {left // 60}:{left % 60:02} left"


def show_text(node_id: str | None, text: str) -> None:
    """Text on the node, for the client whose run this is; nothing where there is no server or no page.

    Its lines end in two blanks: the page's Nodes 2.0 takes the text for Markdown, which runs lines together.
    """
    if node_id is None:
        return
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None and server.client_id is not None:
        server.send_progress_text(text.replace("\n", "  \n"), node_id, server.client_id)


def _find_previewer(device: torch.device) -> Any:
    """ComfyUI's previewer for HunyuanVideo's latents under the user's settings; None if previews are off."""
    import latent_preview
    from comfy.latent_formats import HunyuanVideo

    return latent_preview.get_previewer(device, HunyuanVideo())
