"""Where the embedded demo model's files lie, and the settings it was made for."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "files"
TRANSFORMER = FOLDER / "transformer.safetensors"
VAE = FOLDER / "vae.safetensors"
LLM = FOLDER / "llm.safetensors"
"""Beside it stands llm.tokenizer.json, where the loader looks for it."""
CLIP = FOLDER / "clip.safetensors"
LORAS = {"kohya": FOLDER / "large_lora.safetensors", "diffusers": FOLDER / "large_lora_diffusers.safetensors"}
"""One LoRA for the transformer in two families of files. It teaches the word "large"."""

PROMPT = "a red circle moving left on a black background"
LORA_PROMPT = "a large red circle moving left on a black background"
WIDTH = 64
HEIGHT = 64
FRAMES = 17
STEPS = 20
SHIFT = 3.0
GUIDANCE = 2.0
FPS = 8
DOUBLE_BLOCKS, SINGLE_BLOCKS = 2, 6
