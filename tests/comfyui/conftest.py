"""Tests against a real ComfyUI. Without COMFYUI_PATH and COMFYUI_PYTHON they skip with one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

ASK = "set COMFYUI_PATH (a checkout of ComfyUI) and COMFYUI_PYTHON (the Python that runs it) for these tests"


def pytest_collection_modifyitems(items):
    if os.environ.get("COMFYUI_PATH") and os.environ.get("COMFYUI_PYTHON"):
        return
    for item in items:
        if "tests/comfyui" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason=ASK))


def put_demo_files(models: Path) -> None:
    """The demo's files under the names that the workflows for the released model ask for."""
    from comfy_server import PACK

    from hyvideo_lib.demo import assets

    kinds = {
        "HyvLoadTransformer": {"file": ("diffusion_models", assets.TRANSFORMER)},
        "HyvLoadVAE": {"file": ("vae", assets.VAE)},
        "HyvLoadTextEncoders": {"llm": ("text_encoders", assets.LLM), "clip": ("text_encoders", assets.CLIP)},
    }
    for path in (PACK / "workflows" / "api").glob("720p*.json"):
        for node in json.loads(path.read_text()).values():
            for key, (folder, source) in kinds.get(node["class_type"], {}).items():
                target = models / folder / node["inputs"][key]
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
                tokenizer = source.with_suffix(".tokenizer.json")
                if tokenizer.is_file():
                    shutil.copy(tokenizer, target.with_suffix(".tokenizer.json"))


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    from comfy_server import Server

    from hyvideo_lib.demo import assets

    base = tmp_path_factory.mktemp("comfyui")
    models = base / "models" / "diffusion_models"
    models.mkdir(parents=True)
    shutil.copy(assets.VAE, models / "a_vae.safetensors")
    (models / "cut.safetensors").write_bytes(assets.TRANSFORMER.read_bytes()[:100_000])
    (models / "words.safetensors").write_bytes(b"this is no model" * 10)
    put_demo_files(base / "models")
    with Server(base) as running:
        yield running


@pytest.fixture
def client(server):
    from comfy_server import Client

    page = Client(server)
    yield page
    page.close()
