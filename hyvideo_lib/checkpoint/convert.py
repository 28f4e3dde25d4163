"""From any known file to a safetensors file of a chosen layout and storage, one tensor at a time.

The new file is whole or not there. Pickles are opened by another process (`unpickle`), which writes the new file too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..atomic import check_output, whole_file
from ..errors import InvalidSetting
from ..host import HeadlessHost, Host
from .folder import find_pickles, map_header, open_header
from .isolate import check_pickle, convert_in_child
from .pickles import read_pickle
from .read import map_tensors, read_header
from .rewrite import Opened, Request, plan_conversion
from .scale_map import map_beside
from .write import write_safetensors


def convert_file(
    source: str | Path,
    target: str | Path,
    request: Request | None = None,
    overwrite: bool = False,
    host: Host | None = None,
) -> dict[str, Any]:
    """Write `target` from `source`, and tell what changed: a file of any known layout, a pickle, a folder of either.

    Raises FileMissing, FileTruncated, FileUnreadable, WrongKind, UnsupportedFile, InvalidSetting, OutputExists,
    OutputNotWritable, DiskFull, Interrupted.
    """
    source, target = Path(source), Path(target)
    request, host = request or Request(), host or HeadlessHost()
    if target.suffix != ".safetensors":
        raise InvalidSetting(f"The new file is called {target.name!r}, but its name must end in .safetensors.")
    folder, files = find_pickles(source)
    if files or _is_pickle(source):
        for path in files or (source,):
            check_pickle(path)
        check_output(target, overwrite)
        with whole_file(target, overwrite) as temporary:
            manifest = convert_in_child(folder or source, temporary, request, host, files)
            read_header(temporary)  # what another process wrote is looked at before it gets its name
        return manifest
    opened = _open(source)
    plan = plan_conversion(opened, request, _open_map(opened.header.path))
    check_output(target, overwrite)
    host.stage("converting", len(plan.pieces))
    with whole_file(target, overwrite) as temporary:
        write_safetensors(temporary, plan.pieces, plan.metadata, host)
    return dict(plan.manifest)


def _is_pickle(path: Path) -> bool:
    try:
        return path.is_file() and read_pickle(path) is not None
    except (OSError, ValueError):
        return False  # `open_header` has words for it


def _open(path: Path) -> Opened:
    header = open_header(path)
    return Opened(header, map_header(header))


def _open_map(path: Path) -> Opened | None:
    """The scale map beside a file, if there is one."""
    beside = map_beside(path)
    if not beside.is_file() or beside == path:
        return None
    header = read_header(beside)
    return Opened(header, map_tensors(header))
