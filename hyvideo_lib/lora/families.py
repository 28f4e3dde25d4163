"""How LoRA files are written: what stands before a module's name in a tensor's name, and what behind it.

Three things vary independently: whose module names (Tencent's, ComfyUI's, diffusers'), the prefix, which also says
whether the dots of the name became underscores, and the suffix that says which matrix a tensor is. Facts: the key lists
of trainers and of public files.
"""

from __future__ import annotations

DOTTED_PREFIXES = (
    "diffusion_model.",
    "transformer.",
    "base_model.model.",
    "base_model.model.transformer.",
    "model.diffusion_model.",
    "",
)
"""Before a module's name as it is."""
UNDERSCORED_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_", "Hunyuan_video_I2V_lora_")
"""Before a module's name with underscores for dots."""
MODULE_NAMES = {"tencent": "Tencent's", "comfyui": "ComfyUI's", "diffusers": "diffusers'"}
"""Layouts that modules are named in, and whose names they are."""

DOWN, UP, ALPHA, DIFF, BIAS_DIFF = "down", "up", "alpha", "diff", "diff_b"
SUFFIXES = {
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_A.default.weight": DOWN,
    ".lora_B.default.weight": UP,
    ".lora_A": DOWN,
    ".lora_B": UP,
    "_lora.down.weight": DOWN,
    "_lora.up.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    ".alpha": ALPHA,
    ".diff": DIFF,
    ".diff_b": BIAS_DIFF,
}
"""Ends of tensors' names, and what such a tensor is. None is the end of another."""

REFUSED_SUFFIXES = {
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".lora_magnitude_vector.weight": "DoRA",
    ".lora_magnitude_vector.default.weight": "DoRA",
    **{f".hada_{part}": "LoHa" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{part}": "LoKr" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    ".lora_mid.weight": "LoRA with a Tucker core",
    ".oft_blocks": "OFT",
    ".oft_diag": "OFT",
    ".on_input": "(IA)3",
    ".set_weight": "replacement weights",
    ".reshape_weight": "LoRA that widens layers",
}
"""Ends of tensors' names that belong to other methods, which are not applied here, and the methods' names."""


def split_suffix(name: str) -> tuple[str, str] | None:
    """(what stands before, the role) of a tensor of a LoRA; None if its name ends otherwise."""
    for suffix, role in SUFFIXES.items():
        if name.endswith(suffix) and len(name) > len(suffix):
            return name.removesuffix(suffix), role
    return None


def refused_method(name: str) -> str | None:
    """The method that a tensor belongs to, if it is one that is not applied here."""
    return next((method for suffix, method in REFUSED_SUFFIXES.items() if name.endswith(suffix)), None)
