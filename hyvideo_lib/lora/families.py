"""What trainers note in a LoRA file of the model that it is for."""

from __future__ import annotations

OTHER_MODELS = {
    "flux": "FLUX",
    "wan": "Wan",
    "ltx": "LTX-Video",
    "stable-diffusion": "Stable Diffusion",
    "stable_diffusion": "Stable Diffusion",
    "sdxl": "Stable Diffusion XL",
    "sd3": "Stable Diffusion 3",
    "qwen": "Qwen-Image",
    "cogvideo": "CogVideoX",
    "mochi": "Mochi",
}
"""How trainers begin the name of another model in a file's metadata. FLUX needs it: its blocks have the same names and
sizes as HunyuanVideo's."""
MODEL_METADATA = ("modelspec.architecture", "ss_base_model_version")
"""Where trainers note the model that a LoRA is for."""


def other_model(metadata: dict[str, str]) -> str | None:
    """The model that the file says it is for, if that is none of HunyuanVideo's."""
    for key in MODEL_METADATA:
        value = metadata.get(key, "").lower()
        for beginning, model in OTHER_MODELS.items():
            if value.startswith(beginning):
                return model
    return None
