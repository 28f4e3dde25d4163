"""Tests against a real ComfyUI. Without COMFYUI_PATH and COMFYUI_PYTHON they skip with one line."""

from __future__ import annotations

import os
import shutil

import pytest

ASK = "set COMFYUI_PATH (a checkout of ComfyUI) and COMFYUI_PYTHON (the Python that runs it) for these tests"


def pytest_collection_modifyitems(items):
    if os.environ.get("COMFYUI_PATH") and os.environ.get("COMFYUI_PYTHON"):
        return
    for item in items:
        if "tests/comfyui" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason=ASK))


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
    with Server(base) as running:
        yield running


@pytest.fixture
def client(server):
    from comfy_server import Client

    page = Client(server)
    yield page
    page.close()
