"""Where the embedded demo model's files lie, and the settings it was made for."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "files"
TRANSFORMER = FOLDER / "transformer.safetensors"
VAE = FOLDER / "vae.safetensors"
LLM = FOLDER / "llm.safetensors"
"""Beside it stands llm.tokenizer.json, where the loader looks for it."""
CLIP = FOLDER / "clip.safetensors"

PROMPT = "a red circle moving left on a black background"
WIDTH = 64
HEIGHT = 64
FRAMES = 17
STEPS = 20
SHIFT = 3.0
GUIDANCE = 2.0
FPS = 8
