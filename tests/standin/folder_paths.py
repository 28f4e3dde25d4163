"""Model folders, and the input and output folder, under a base folder that the tests set."""

from __future__ import annotations

import os
from pathlib import Path

supported_pt_extensions = {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"}
folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {}
output_directory = input_directory = temp_directory = models_dir = ""


def map_legacy(folder_name: str) -> str:
    """Old names of folder kinds; a kind goes by its new name only."""
    return {"unet": "diffusion_models", "clip": "text_encoders"}.get(folder_name, folder_name)


def get_output_directory() -> str:
    return output_directory


def get_input_directory() -> str:
    return input_directory


def get_temp_directory() -> str:
    return temp_directory


def add_model_folder_path(folder_name: str, full_folder_path: str, is_default: bool = False) -> None:
    paths, _ = folder_names_and_paths.setdefault(map_legacy(folder_name), ([], set()))
    paths.insert(0 if is_default else len(paths), full_folder_path)


def get_folder_paths(folder_name: str) -> list[str]:
    return list(folder_names_and_paths[map_legacy(folder_name)][0])


def get_filename_list(folder_name: str) -> list[str]:
    """Names of all files of a kind, with their folders within, each once, sorted. No extensions means all of them."""
    roots, extensions = folder_names_and_paths[map_legacy(folder_name)]
    found = {
        os.path.relpath(os.path.join(place, name), root)
        for root in roots
        for place, _, names in os.walk(root, followlinks=True)
        for name in names
        if not extensions or os.path.splitext(name)[1].lower() in extensions
    }
    return sorted(found)


def get_full_path(folder_name: str, filename: str) -> str | None:
    """Where a file of a kind is; names cannot lead out of its folders."""
    inside = os.path.relpath(os.path.join("/", filename), "/")
    for root in folder_names_and_paths.get(map_legacy(folder_name), ([], set()))[0]:
        if os.path.isfile(os.path.join(root, inside)):
            return os.path.join(root, inside)
    return None


def get_save_image_path(
    filename_prefix: str, output_dir: str, image_width: int = 0, image_height: int = 0
) -> tuple[str, str, int, str, str]:
    """(folder, name, next number, folder within the output folder, prefix). Raises Exception for a prefix outside."""
    subfolder, name = os.path.split(os.path.normpath(filename_prefix))
    folder = os.path.join(output_dir, subfolder)
    if os.path.commonpath((output_dir, os.path.abspath(folder))) != output_dir:
        raise Exception(f"Saving outside the output folder is not allowed: {folder}")
    os.makedirs(folder, exist_ok=True)
    numbers = [0]
    for other in os.listdir(folder):
        digits = other.removeprefix(f"{name}_").split("_")[0]
        if other.startswith(f"{name}_") and digits.isdecimal():
            numbers.append(int(digits))
    return folder, name, max(numbers) + 1, subfolder, filename_prefix


# What the tests may set


def set_base(base: str | os.PathLike[str]) -> None:
    """Put all folders under this one, and forget the kinds that others added. Makes no folder."""
    global output_directory, input_directory, temp_directory, models_dir
    models = Path(base, "models")
    output_directory, input_directory = str(Path(base, "output")), str(Path(base, "input"))
    temp_directory, models_dir = str(Path(base, "temp")), str(Path(base, "models"))
    folder_names_and_paths.clear()
    for kind, names in {
        "diffusion_models": ("unet", "diffusion_models"),
        "vae": ("vae",),
        "text_encoders": ("text_encoders", "clip"),
        "loras": ("loras",),
        "vae_approx": ("vae_approx",),
    }.items():
        folder_names_and_paths[kind] = ([str(models / name) for name in names], supported_pt_extensions)
