"""Hostile pickles through everything that opens files: none may run, all must be refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.hostile.figures import Figure, Scale
from benchmarks.hostile.pickle_files import HostilePickle, hostile_pickles
from benchmarks.hostile.surroundings import silence
from hyvideo_lib.checkpoint import FileReport, inspect_file, load_text_encoder, load_transformer, load_vae
from hyvideo_lib.cli import main
from hyvideo_lib.errors import BadInput, UnsupportedFile
from hyvideo_lib.lora import check_names, read_lora
from hyvideo_lib.pipeline import load_embeds, load_latents
from hyvideo_lib.text import load_tokenizer
from hyvideo_lib.transformer import TransformerConfig
from hyvideo_lib.video import read_settings

RELEASED = TransformerConfig(16, 16, 3072, 24, 20, 40)


def refuse_unsupported(report: FileReport) -> FileReport:
    """A report, unless its verdict is that the file cannot be used: then that verdict as an error."""
    if not report.supported:
        raise UnsupportedFile(report.reason)
    return report


READERS: Mapping[str, Callable[[Path], object]] = {
    "inspect_file": lambda path: refuse_unsupported(inspect_file(path)),
    "load_transformer": load_transformer,
    "load_vae": load_vae,
    "load_text_encoder": load_text_encoder,
    "load_latents": load_latents,
    "load_embeds": load_embeds,
    "load_tokenizer": load_tokenizer,
    "read_settings": read_settings,
    "check_names": check_names,
    "read_lora": lambda path: read_lora(path, RELEASED),
}
"""What the library opens files with; each must refuse."""
LOADERS = {
    "LoadTransformer": ("load", "diffusion_models", "file"),
    "LoadVAE": ("load", "vae", "file"),
    "LoadTextEncoders": ("load", "text_encoders", "llm"),
    "LoadLora": ("lora", "loras", "file"),
}
"""Loader nodes: their module, the folder that they list, and the widget that names a file."""


def opened_carelessly(data: bytes, canary: Path) -> bool:
    """Whether a file makes the canary when a fork of this process opens it as pickles used to be opened."""
    child = os.fork()
    if not child:
        try:
            os.setsid()
            with tempfile.TemporaryFile() as file:
                file.write(data)
                for load in (torch.load, pickle.load):
                    file.seek(0)
                    with contextlib.suppress(Exception):  # what it raises does not matter, what it did does
                        load(file, **({"weights_only": False} if load is torch.load else {}))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    try:
        return os.path.lexists(canary)
    finally:
        _remove(canary)


def _remove(canary: Path) -> None:
    if canary.is_dir() and not canary.is_symlink():
        canary.rmdir()
    else:
        canary.unlink(missing_ok=True)


def check_readers(path: Path, canary: Path) -> str | None:
    """What is wrong with how the library takes a hostile file."""
    for name, read in READERS.items():
        try:
            read(path)
        except BadInput:
            pass
        except Exception as error:
            return f"{name} raises {type(error).__name__}: {str(error)[:200]}"
        else:
            return f"{name} takes it"
        if os.path.lexists(canary):
            return f"{name} ran it"
    return None


def check_inspect_verb(path: Path, canary: Path) -> str | None:
    """`inspect` describes a pickle without opening it, and never says that it can be used."""
    answer = io.StringIO()
    with silence(), contextlib.redirect_stdout(answer):
        code = main(["inspect", str(path), "--json"])
    if os.path.lexists(canary):
        return "inspect ran it"
    (entry,) = json.loads(answer.getvalue())["files"]
    return "inspect says it can be used" if entry.get("supported") else None if code in (0, 2) else f"inspect: {code}"


def check_convert_verb(path: Path, canary: Path) -> str | None:
    """`convert` reads good pickles, so it is where a hostile one comes closest."""
    output = path.with_name("converted.safetensors")
    with silence():
        code = main(["convert", str(path), str(output), "--json"])
    if os.path.lexists(canary):
        return "convert ran it"
    return f"convert wrote {output.name}" if output.exists() else None if code == 2 else f"convert ends with {code}"


def check_nodes(pack: ModuleType, model_folder: Path, case: HostilePickle, canary: Path) -> str | None:
    """A file in every model folder: not offered under a pickle's name, and refused under any other."""
    demo = pack.nodes.files.DEMO
    for node_name, (module, kind, widget) in LOADERS.items():
        path = model_folder / kind / case.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(case.data)
        try:
            node = getattr(getattr(pack.nodes, module), node_name)
            listed = case.name in pack.nodes.comfy_host.list_files(kind)
            if listed and not case.name.lower().endswith(pack.nodes.comfy_host.MODEL_SUFFIXES):
                return f"{node_name} lists {case.name}"
            values: dict[str, Any] = {"llm": demo, "clip": demo} if widget == "llm" else {}
            verdict = node.validate_inputs(**{**values, widget: case.name})
            if verdict is True:
                return f"{node_name} accepts {case.name}"
            if node_name == "LoadLora":
                values["model"] = pack.nodes.load.LoadTransformer.execute(demo).result[0]
            try:
                node.execute(**{**values, widget: case.name})
            except pack.hyvideo_lib.errors.BadInput:
                pass
            else:
                return f"{node_name} opens {case.name}"
        finally:
            path.unlink()
        if os.path.lexists(canary):
            return f"{node_name} ran it"
    return None


def run_over(
    figure: Figure, cases: list[HostilePickle], folder: Path, check: Callable[[Path, HostilePickle], str | None]
) -> Figure:
    """Put every case under its name into a folder and check it there."""
    for case in cases:
        path = folder / case.name
        path.write_bytes(case.data)
        try:
            problem = check(path, case)
        except Exception as error:
            problem = f"{type(error).__name__}: {str(error)[:200]}"
        finally:
            path.unlink(missing_ok=True)
            (folder / "converted.safetensors").unlink(missing_ok=True)
        figure.add(problem and f"{case.kind} as {case.name}: {problem}")
    return figure


def control(cases: list[HostilePickle], canary: Path, enough: int) -> Figure:
    """That the canary sings at all: opened as pickles used to be, `enough` of the cases run."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sang = sum(opened_carelessly(case.data, canary) for case in cases)
    figure = Figure("pickles", "control: run code when opened carelessly, of which at least a quarter should")
    figure.wanted, figure.found = enough, min(sang, enough)
    figure.notes.update(ran=sang, of=len(cases))
    return figure


def run(scale: Scale, pack: ModuleType, model_folder: Path) -> Iterator[Figure]:
    """300 hostile pickles through the library, the command line and the nodes."""
    canary = scale.folder / "canary"
    cases = hostile_pickles(scale.seed, scale.count(300), str(canary))
    yield control(cases, canary, enough=max(1, len(cases) // 4))
    checks: dict[str, Callable[[Path, HostilePickle], str | None]] = {
        "refused unopened by all readers": lambda path, case: check_readers(path, canary),
        "refused unopened by `inspect`": lambda path, case: check_inspect_verb(path, canary),
        "refused by `convert`": lambda path, case: check_convert_verb(path, canary),
        "refused unopened by the loader nodes": lambda path, case: check_nodes(pack, model_folder, case, canary),
    }
    for what, check in checks.items():
        yield run_over(Figure("pickles", what), cases, scale.folder, check)
    executed = Figure("pickles", "left unexecuted at the end")
    executed.add("the canary is there" if os.path.lexists(canary) else None)
    yield executed
