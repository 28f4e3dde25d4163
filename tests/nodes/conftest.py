"""The demo's handles, loaded once, and ComfyUI's surroundings as they are at its start, for every test anew."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from graph import run

PROMPT = "a red circle moving left on a black background"


@pytest.fixture(autouse=True)
def surroundings(comfy: None, tmp_path: Path) -> Iterator[None]:
    """Empty folders, a CPU without bound, nobody watching, nothing loaded, nothing cancelled."""
    sys.modules["folder_paths"].set_base(tmp_path / "comfyui")
    yield
    mm = sys.modules["comfy.model_management"]
    mm.pretend()
    mm.unload_all_models()
    mm.interrupt_current_processing(False)
    sys.modules["comfy.utils"].set_progress_bar_global_hook(None)
    sys.modules["latent_preview"].has_previews = False
    server = sys.modules["server"].PromptServer
    if hasattr(server, "instance"):
        del server.instance


@pytest.fixture
def mm() -> ModuleType:
    """ComfyUI's memory manager."""
    return sys.modules["comfy.model_management"]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """A folder in ComfyUI's base folder, made when asked for."""

    def make(name: str) -> Path:
        path = tmp_path / "comfyui" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    return make


@pytest.fixture
def texts() -> Callable[[], list[str]]:
    """Opens a page; then says what was written on the nodes so far. Its lines must stay lines in Markdown too."""
    server = sys.modules["server"].PromptServer(None)
    server.client_id = "page"

    def written() -> list[str]:
        assert all(line.endswith("  ") for _, text, _ in server.texts for line in text.split("\n")[:-1])
        return [text.replace("  \n", "\n") for _, text, _ in server.texts]

    return written


class Bars:
    """What the progress bars showed. on_update: called with (value, total)."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, int]] = []
        self.previews: list[Any] = []
        self.nodes: set[str | None] = set()
        self.on_update: Callable[[int, int], None] = lambda value, total: None

    def __call__(self, value: int, total: int, preview: Any, node_id: str | None = None) -> None:
        self.nodes.add(node_id)
        if preview is None:
            self.shown.append((value, total))
        else:
            self.previews.append(preview)
        self.on_update(value, total)


@pytest.fixture
def bars() -> Bars:
    bars = Bars()
    sys.modules["comfy.utils"].set_progress_bar_global_hook(bars)
    return bars


# Loaded once; tests must leave them as they found them


@pytest.fixture(scope="session")
def model(pack: ModuleType) -> Any:
    return run(pack.nodes.load.LoadTransformer)[0]


@pytest.fixture(scope="session")
def text_encoders(pack: ModuleType) -> Any:
    return run(pack.nodes.load.LoadTextEncoders)[0]


@pytest.fixture(scope="session")
def vae(pack: ModuleType) -> Any:
    return run(pack.nodes.load.LoadVAE)[0]


@pytest.fixture(scope="session")
def embeds(pack: ModuleType, text_encoders: Any) -> Any:
    return run(pack.nodes.text.EncodePrompt, text_encoders=text_encoders, prompt=PROMPT)[0]


@pytest.fixture(scope="session")
def empty() -> dict[str, torch.Tensor]:
    """The smallest video that still moves: 5 frames of 32 x 32."""
    return {"samples": torch.zeros(1, 16, 2, 4, 4)}


@pytest.fixture(scope="session")
def sample(pack: ModuleType, model: Any, embeds: Any, empty: dict[str, torch.Tensor]) -> Callable[..., Any]:
    """The sampler on the demo, with few steps; returns the output's values."""

    def sample(**inputs: Any) -> Any:
        small = {"model": model, "embeds": embeds, "latents": empty, "steps": 3, "guidance": 2.0, "shift": 3.0}
        return run(pack.nodes.sample.Sampler, **{**small, **inputs})

    return sample
