"""What the whole suite shares: `import tiny` from any test, one thread, as tiny tensors gain nothing from more, and the
checkout as the package that ComfyUI would import."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)  # how long an example takes decides no test
settings.load_profile("untimed")

ROOT = Path(__file__).parents[1]
STANDIN = Path(__file__).parent / "standin"
collect_ignore = ["standin"]


def standin_names() -> list[str]:
    """The modules of the stand-in, packages before what is in them."""
    files = sorted(STANDIN.rglob("*.py"), key=lambda file: (file.name != "__init__.py", file))
    parts = [file.relative_to(STANDIN).with_suffix("").parts for file in files]
    names = [".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts]
    return sorted(names, key=lambda name: name.count("."))


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """ComfyUI's modules under their names, as the stand-in has them; only while tests want them."""
    names = standin_names()
    clash = [name for name in names if name in sys.modules]
    assert not clash, f"these are imported already, from elsewhere: {clash}"
    sys.path.insert(0, str(STANDIN))
    try:
        for name in names:
            importlib.import_module(name)
    finally:
        sys.path.remove(str(STANDIN))
    # ComfyUI has a module of this name, which no import of the pack may replace.
    sys.modules["nodes"] = ModuleType("nodes", "ComfyUI's own nodes.")
    sys.modules["folder_paths"].set_base(tmp_path_factory.mktemp("comfyui"))
    yield
    for name in [*names, "nodes"]:
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def pack(comfy: None) -> Iterator[ModuleType]:
    """The checkout, imported as ComfyUI does: from its file, with its path for a name, whatever the folder is called.

    Objects of the library come from here in node tests (`pack.hyvideo_lib`): in one run it exists a second time, under
    its own name, with other classes.
    """
    name = str(ROOT).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    importlib.import_module(f"{name}.nodes.extension")
    yield module
    for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
        del sys.modules[loaded]
