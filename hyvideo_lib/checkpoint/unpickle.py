"""The program of the process that opens pickles: load, unwrap, and write what a conversion asks for.

`torch.load(weights_only=True)` builds tensors and plain containers and refuses everything else, and there is no second
way if it refuses. Run by `isolate`, and by nothing else.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..atomic import is_disk_full
from ..errors import FileUnreadable, HyvError, UnsupportedFile
from ..host import HeadlessHost
from .folder import sizes_of_config
from .header import MAX_NAME, MAX_TENSORS, Header, TensorInfo
from .isolate import check_pickle
from .nesting import find_weights
from .rewrite import KIND_OF_COMPONENT, Opened, Request, plan_conversion
from .scale_map import MAP_ENDING
from .write import CODES, write_safetensors

FREE_BYTES = 2**30
"""Memory that building the tables around the tensors may take, beyond the file itself, which is mapped."""
_GLOBAL = re.compile(r"GLOBAL ([\w.]{1,200})")


def main() -> None:
    """Do the job that stdin describes; the last line of stdout is what came of it."""
    job = json.loads(sys.stdin.readline())
    source, out = Path(job.pop("source")), Path(job.pop("out"))
    files = [Path(name) for name in job.pop("files")]
    try:
        report: dict[str, Any] = {"manifest": _convert(source, files, out, Request(**job))}
    except HyvError as error:
        report = {"error": {"code": error.code, "message": str(error)}}
    except MemoryError:
        report = {"error": {"code": "out_of_memory", "message": f"There is too little memory to open {source.name}."}}
    except OSError as error:
        code = "disk_full" if is_disk_full(error) else "output_not_writable"
        report = {"error": {"code": code, "message": f"The new file cannot be written: {error}."}}
    sys.stdout.write("\n" + json.dumps(report) + "\n")


def _convert(source: Path, files: list[Path], out: Path, request: Request) -> dict[str, Any]:
    kind = KIND_OF_COMPONENT.get(request.component)
    opened, facts = open_pickle(source, kind) if files == [source] else open_pickles(source, files)
    beside = source.with_name(f"{source.stem}{MAP_ENDING}{source.suffix}")
    scale_map = None
    if beside.is_file():
        check_pickle(beside)
        scale_map, _ = open_pickle(beside)
    plan = plan_conversion(opened, request, scale_map)
    write_safetensors(out, plan.pieces, plan.metadata, HeadlessHost())
    return {**plan.manifest, **facts}


def open_pickle(path: Path, kind: str | None = None) -> tuple[Opened, dict[str, Any]]:
    """The tensors of a pickle, and what was unwrapped and left out. kind: of the model that is meant, if it is said.

    Raises UnsupportedFile, FileUnreadable.
    """
    loaded = _load(path)
    if not isinstance(loaded, Mapping):
        raise UnsupportedFile(f"{path.name} holds a {type(loaded).__name__}, not a table of named tensors.")
    weights = find_weights(loaded, path, kind)
    tensors = {name: tensor.detach() for name, tensor in weights.tensors.items()}
    facts = {"wrappers": list(weights.wrappers), "ignored": list(weights.ignored)}
    return Opened(_header(path, tensors, path.stat().st_size), tensors), facts


def open_pickles(folder: Path, files: Sequence[Path]) -> tuple[Opened, dict[str, Any]]:
    """The tensors of a checkpoint in several pickles together, as those of a folder. Raises as `open_pickle`."""
    tensors: dict[str, Tensor] = {}
    wrappers: dict[str, None] = {}
    ignored: set[str] = set()
    for path in files:
        opened, facts = open_pickle(path)
        twice = tensors.keys() & opened.tensors.keys()
        if twice:
            raise FileUnreadable(f"{path.name} repeats {min(twice)!r} of another part. Download the parts again.")
        tensors |= opened.tensors
        wrappers |= dict.fromkeys(facts["wrappers"])
        ignored |= set(facts["ignored"])
    header = _header(folder, tensors, sum(path.stat().st_size for path in files))
    header = replace(header, metadata=MappingProxyType(sizes_of_config(folder)))
    return Opened(header, tensors), {"wrappers": list(wrappers), "ignored": sorted(ignored)}


def _load(path: Path) -> Any:
    try:
        with memory_limit(path.stat().st_size + FREE_BYTES):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError as error:
        raise UnsupportedFile(
            f"{path.name} is refused: it asks for more memory than its tensors take. Use the .safetensors version of "
            "the file."
        ) from error
    except Exception as error:  # a hostile file can make it raise anything
        asked = _GLOBAL.search(str(error))
        if asked:
            raise UnsupportedFile(
                f"{path.name} is refused: it asks for {asked[1]}, which is no tensor and could run code. Use the "
                ".safetensors version of the file, from a source you trust."
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise FileUnreadable(f"{path.name} is refused or damaged: {reason}. Download or copy it again.") from error


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[None]:
    """In the block, let this process take so many bytes more than it has, mapped files among them: MemoryError is
    raised beyond. Nothing is limited where the system cannot (anywhere but on Linux).

    `weights_only` lets a pickle of a few bytes build an array of any size, which would make the system end programs.
    """
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + num_bytes
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([wanted, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _header(path: Path, tensors: Mapping[str, Tensor], size: int) -> Header:
    """What a safetensors header would say of the tensors. Raises UnsupportedFile for those that it has no words for."""
    infos: dict[str, TensorInfo] = {}
    position = 0
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if len(name) > MAX_NAME or not name.isprintable():
            raise UnsupportedFile(f"{path.name} holds a tensor whose name is {name[:80]!a}.")
        if dtype not in CODES or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UnsupportedFile(f"{path.name} stores {name!r} as {dtype}, {tensor.layout}, which has no place here.")
        infos[name] = TensorInfo(name, dtype, tuple(tensor.shape), position, position + tensor.nbytes)
        position += tensor.nbytes
    if position > 2 * size or len(infos) > MAX_TENSORS:
        raise UnsupportedFile(
            f"{path.name} describes {len(infos)} tensors of {position} bytes, but has {size} itself. "
            "Use the .safetensors version of the file."
        )
    return Header(path, MappingProxyType(infos), MappingProxyType({}), size)


if __name__ == "__main__":
    main()
