"""Asks a ComfyUI, real or stand-in, for the calls it offers and for what it answers; prints both as JSON.

Run by `tests/nodes/test_standin.py` in a process of its own: host_probe.py PATH FOLDER, with the path of the modules
and an empty folder to work in.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

SOCKETS = ("Boolean", "Int", "Float", "String", "Combo", "Image", "Mask", "Latent", "Sigmas", "Conditioning")
CALLS = {
    "comfy_api.internal": ["make_locked_method_func"],
    "comfy_api.latest": [
        "ComfyExtension.get_node_list",
        "ComfyExtension.on_load",
        "io.Custom",
        *(f"io.{kind}.{side}" for kind in SOCKETS for side in ("Input", "Output")),
        "io.MultiType.Input",
        "io.NodeOutput",
        "io.Schema",
        "io.Schema.finalize",
        "io.Schema.validate",
        "io.ComfyNode.VALIDATE_CLASS",
        "io.ComfyNode.FINALIZE_SCHEMA",
        "io.ComfyNode.GET_SCHEMA",
        "io.ComfyNode.EXECUTE_NORMALIZED",
    ],
    "comfy.latent_formats": ["HunyuanVideo"],
    "comfy.model_management": [
        "get_torch_device",
        "text_encoder_device",
        "vae_device",
        "get_free_memory",
        "extra_reserved_memory",
        "minimum_inference_memory",
        "LoadedModel",
        "LoadedModel.model_load",
        "LoadedModel.model_use_more_vram",
        "LoadedModel.model_unload",
        "cleanup_models",
        "free_memory",
        "load_models_gpu",
        "loaded_models",
        "unload_all_models",
        "interrupt_current_processing",
        "processing_interrupted",
        "throw_exception_if_processing_interrupted",
    ],
    "comfy.model_patcher": [
        "ModelPatcher",
        "ModelPatcher.model_size",
        "ModelPatcher.is_clone",
        "ModelPatcher.model_patches_to",
        "ModelPatcher.model_patches_models",
        "ModelPatcher.model_dtype",
        "ModelPatcher.lowvram_patch_counter",
        "ModelPatcher.clone",
        "ModelPatcher.loaded_size",
        "ModelPatcher.current_loaded_device",
        "ModelPatcher.partially_load",
        "ModelPatcher.partially_unload",
        "ModelPatcher.patch_model",
        "ModelPatcher.unpatch_model",
        "ModelPatcher.detach",
    ],
    "comfy.utils": ["set_progress_bar_global_hook", "ProgressBar", "ProgressBar.update_absolute", "ProgressBar.update"],
    "latent_preview": ["get_previewer", "LatentPreviewer.decode_latent_to_preview_image"],
    "folder_paths": [
        "map_legacy",
        "get_output_directory",
        "get_input_directory",
        "add_model_folder_path",
        "get_folder_paths",
        "get_filename_list",
        "get_full_path",
        "get_save_image_path",
    ],
}
"""Everything the stand-in offers, by module; the server aside, whose import takes a whole installation."""
SERVER_CALLS = ("__init__", "send_progress_text")


def describe_call(call: Any) -> list[tuple[str, str, bool]]:
    """(name, kind, has a default) of every parameter, without self."""
    if keywords := getattr(call, "keywords", None):  # a stand-in's input or output
        return [("id", "POSITIONAL_OR_KEYWORD", True), *((name, "KEYWORD_ONLY", True) for name in keywords)]
    parameters = inspect.signature(call).parameters.values()
    return [(p.name, p.kind.name, p.default is not p.empty) for p in parameters if p.name != "self"]


def all_calls() -> dict[str, list[tuple[str, str, bool]]]:
    found = {}
    for module, names in CALLS.items():
        for name in names:
            call: Any = importlib.import_module(module)
            for part in name.split("."):
                call = getattr(call, part)
            found[f"{module}:{name}"] = describe_call(call)
    return found


def server_calls(source: Path) -> dict[str, list[tuple[str, str, bool]]]:
    """The server's calls, read from its file."""
    (server,) = (node for node in ast.parse(source.read_text()).body if getattr(node, "name", "") == "PromptServer")
    found = {}
    for node in ast.walk(server):
        if isinstance(node, ast.FunctionDef) and node.name in SERVER_CALLS:
            names = [argument.arg for argument in node.args.args][1:]
            needed = len(names) - len(node.args.defaults)
            kind = "POSITIONAL_OR_KEYWORD"
            found[f"server:PromptServer.{node.name}"] = [(name, kind, i >= needed) for i, name in enumerate(names)]
    return found


# What they answer


def sockets() -> dict[str, Any]:
    from comfy_api.latest import io

    kinds = [getattr(io, name) for name in SOCKETS]
    own = io.Custom("HYV_MODEL")
    both = io.MultiType.Input("both", types=[own, io.Image], optional=True)
    entries = [io.Int.Input("n", default=1, min=0, tooltip="t"), io.Combo.Input("c", options=["a"]), own.Input("m")]
    ids = {member: getattr(io.Hidden, member).value for member in ("unique_id", "prompt", "extra_pnginfo", "dynprompt")}
    return {
        "types": [str(kind.io_type) for kind in (*kinds, own)],
        "of entries": [str(entry.get_io_type()) for entry in (*entries, both, own.Output())],
        "defaults": [(entry.id, entry.optional, entry.tooltip) for entry in (*entries, both)],
        "options": entries[1].options,
        "hidden": ids,
        "refused": [refuses(io.Int.Input, "n", surprise=1), refuses(io.Schema, "n", surprise=1)],
    }


def refuses(call: Any, *args: Any, **kwargs: Any) -> str | None:
    """The type of what it raises."""
    try:
        call(*args, **kwargs)
    except Exception as error:
        return type(error).__name__
    return None


def nodes() -> dict[str, Any]:
    from comfy_api.internal import make_locked_method_func
    from comfy_api.latest import io

    class Form(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> Any:
            return io.Schema("HyvProbe", inputs=[], outputs=[io.Image.Output()], is_output_node=True)

        @classmethod
        def execute(cls, **inputs: Any) -> Any:
            try:
                cls.memory = 1
            except AttributeError:
                return io.NodeOutput(cls.hidden.unique_id, cls.hidden.prompt, inputs, ui={"text": ("t",)})
            return None

    schema = Form.GET_SCHEMA()
    given: dict[Any, Any] = {io.Hidden.unique_id: "5"}
    if "v3_data" in inspect.signature(Form.PREPARE_CLASS_CLONE).parameters:  # ComfyUI 0.4 and later
        given = {"hidden_inputs": given}
    clone = Form.PREPARE_CLASS_CLONE(given)
    output = make_locked_method_func(Form, "EXECUTE_NORMALIZED", clone)(a=1)
    twice = io.Schema("x", inputs=[io.Int.Input("a"), io.Float.Input("a")], outputs=[])
    return {
        "hidden": [entry.name for entry in schema.hidden],
        "ids": [entry.id for entry in schema.outputs],
        "output": [list(output.args), output.ui, output.result == output.args, output[0]],
        "nothing": [io.NodeOutput().result, io.NodeOutput().ui],
        "twice": refuses(twice.validate),
        "untouched": Form.hidden is None,
    }


def memory() -> dict[str, Any]:
    """The calls that a model gets, on a CPU."""
    import comfy.model_management as mm
    import torch
    from comfy.model_patcher import ModelPatcher

    heard: list[Any] = []
    cpu = torch.device("cpu")

    class Toy(ModelPatcher):
        loaded = 0

        def loaded_size(self) -> int:
            return self.loaded

        def current_loaded_device(self) -> Any:
            return cpu

        def model_dtype(self) -> Any:
            return torch.float32

        def partially_load(self, device_to: Any, extra_memory: float = 0, **rest: Any) -> int:
            heard.append(("load", str(device_to), extra_memory > 1e30, sorted(rest)))
            came, self.loaded = self.size - self.loaded, self.size
            return came

        def partially_unload(self, device_to: Any, memory_to_free: float = 0, **rest: Any) -> int:
            heard.append(("unload", str(device_to), memory_to_free))
            left = min(self.loaded, 64)
            self.loaded -= left
            return left

        def detach(self, unpatch_all: bool = True) -> Any:
            heard.append(("detach", unpatch_all))
            if unpatch_all:
                self.loaded = 0
            return self.model

        def __del__(self) -> None:
            return None

    def listen(title: str, call: Any, *args: Any, **kwargs: Any) -> None:
        heard.append(title)
        result = call(*args, **kwargs)
        heard.append((len(mm.loaded_models()), result is None))

    toys = [Toy(torch.nn.Linear(8, 8), cpu, cpu) for _ in range(2)]
    sizes = [(toy.model_size(), toy.parent, str(toy.load_device), str(toy.offload_device)) for toy in toys]
    listen("first", mm.load_models_gpu, toys[:1], memory_required=10)
    listen("again", mm.load_models_gpu, toys[:1], memory_required=10)
    listen("both", mm.load_models_gpu, toys, memory_required=10)
    free = mm.get_free_memory(cpu)
    listen("enough", mm.free_memory, free // 2, cpu)
    listen("all", mm.unload_all_models)
    listen("nothing", mm.unload_all_models)
    clones = [toys[0].is_clone(toys[1]), toys[0].is_clone(toys[0]), toys[0].model_patches_models()]
    mm.load_models_gpu(toys[:1])
    del toys[0]
    import gc

    gc.collect()
    gone = len([model for model in mm.loaded_models() if model is not None])
    return {"sizes": sizes, "heard": heard, "clones": clones, "gone": gone}


def interruption() -> list[Any]:
    import comfy.model_management as mm

    check = mm.throw_exception_if_processing_interrupted
    said = [refuses(check), mm.processing_interrupted()]
    mm.interrupt_current_processing()
    said += [mm.processing_interrupted(), refuses(check), mm.processing_interrupted(), refuses(check)]
    error = mm.InterruptProcessingException
    return [*said, error.__mro__[1].__name__, mm.OOM_EXCEPTION.__name__]


def progress() -> list[Any]:
    from comfy import utils

    heard: list[Any] = []
    utils.set_progress_bar_global_hook(lambda *args, **kwargs: heard.append((args, kwargs)))
    bar = utils.ProgressBar(4, node_id="5")
    bar.update_absolute(1)
    bar.update_absolute(2, 3, "picture")
    bar.update_absolute(9, 3)
    utils.set_progress_bar_global_hook(None)
    bar.update(1)
    utils.ProgressBar(2).update(1)
    return heard


def folders(base: Path) -> dict[str, Any]:
    import folder_paths

    models = base / "models"
    for name in ("vae/a.safetensors", "vae/inner/b.SFT", "vae/c.txt", "clip/d.pt", "text_encoders/d.pt", "LLM/e.any"):
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).touch()
    folder_paths.add_model_folder_path("LLM", str(models / "LLM"))
    output = folder_paths.get_output_directory()
    (base / "output").mkdir(exist_ok=True)

    def short(value: Any) -> Any:
        return None if value is None else str(value).replace(str(base), "BASE")

    saved = []
    for prefix in ("a", "a", "inner/a", "../a", "/tmp/a", "inner/../../a", "a_b"):
        try:
            folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output)
        except Exception as error:
            saved.append(type(error).__name__)
            continue
        Path(folder, f"{name}_{counter:05}_.x").touch()
        saved.append([short(folder), name, counter, subfolder])
    names = ("a.safetensors", "inner/b.SFT", "b.SFT", "../vae/a.safetensors", "", "..")
    return {
        "lists": [folder_paths.get_filename_list(kind) for kind in ("vae", "text_encoders", "clip", "LLM")],
        "places": [
            list(map(short, folder_paths.get_folder_paths(kind))) for kind in ("clip", "diffusion_models", "LLM")
        ],
        "found": [short(folder_paths.get_full_path("vae", name)) for name in names],
        "kinds": [kind in folder_paths.folder_names_and_paths for kind in ("vae", "clip", "loras", "LLM", "unet")],
        "directories": [short(output), short(folder_paths.get_input_directory())],
        "saved": saved,
    }


def previews() -> dict[str, Any]:
    import latent_preview
    import torch
    from comfy.latent_formats import HunyuanVideo

    shown = HunyuanVideo()
    factors = torch.tensor(shown.latent_rgb_factors)
    default = latent_preview.get_previewer(torch.device("cpu"), shown)
    plain = latent_preview.LatentPreviewer().decode_latent_to_preview_image("JPEG", torch.zeros(1, 16, 1, 2, 2))
    return {
        "format": [shown.scale_factor, shown.latent_channels, shown.latent_dimensions, list(factors.shape)],
        "default": default is None,
        "kind": [plain[0], plain[1], plain[2]],
    }


def main() -> None:
    path, base = Path(sys.argv[1]), Path(sys.argv[2])
    is_real = (path / "main.py").is_file()
    sys.path.insert(0, str(path))
    with contextlib.redirect_stdout(sys.stderr):
        if is_real:
            sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
            import comfy.options

            comfy.options.enable_args_parsing()
        import folder_paths

        if not is_real:
            folder_paths.set_base(base)
        answers = {
            "sockets": sockets(),
            "nodes": nodes(),
            "memory": memory(),
            "interruption": interruption(),
            "progress": progress(),
            "folders": folders(base),
            "previews": previews(),
        }
        calls = all_calls() | server_calls(path / "server.py")
    json.dump({"calls": calls, "answers": answers}, sys.stdout)


main()
