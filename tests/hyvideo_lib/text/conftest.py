"""The two real vocabularies, where they are to be had: building them takes seconds, so once for all tests."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from hyvideo_lib.text import build_llama3_tokenizer
from hyvideo_lib.text.llama3_tokenizer import LLAMA3_PACKAGE


@pytest.fixture(scope="session")
def llama3() -> Tokenizer:
    if importlib.util.find_spec(LLAMA3_PACKAGE) is None:
        pytest.skip("the real Llama-3 vocabulary is in the package llama-models (pip install llama-models)")
    return build_llama3_tokenizer()


@pytest.fixture(scope="session")
def clip_folder() -> Path:
    """The folder with vocab.json and merges.txt that ComfyUI carries."""
    folder = Path(os.environ.get("COMFYUI_PATH", "")) / "comfy" / "sd1_tokenizer"
    if not (folder / "vocab.json").is_file():
        pytest.skip("CLIP's real vocabulary is taken from ComfyUI: set COMFYUI_PATH to a checkout of it")
    return folder
