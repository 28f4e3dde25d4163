"""The pack as ComfyUI would load it, on the stand-in of the tests, with all folders under one base."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
STANDIN = ROOT / "tests" / "standin"


def load_pack(base: Path) -> ModuleType:
    """Import the checkout under its path for a name. The stand-in stays importable for the rest of the process."""
    name = str(ROOT).replace(".", "_x_")
    if name not in sys.modules:
        sys.path.insert(0, str(STANDIN))
        sys.modules["nodes"] = ModuleType("nodes", "ComfyUI's own nodes.")
    importlib.import_module("folder_paths").set_base(base)
    return sys.modules[name] if name in sys.modules else _import_checkout(name)


def _import_checkout(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    importlib.import_module(f"{name}.nodes.extension")
    return module


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing on stdout and stderr from Python in the block: thousands of refusals are not to be read."""
    with (
        Path(os.devnull).open("w") as sink,
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
    ):
        yield
