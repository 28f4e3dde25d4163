"""Files that are whole or not there: written under another name in the same folder, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import DiskFull, OutputExists, OutputNotWritable

FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""What the system says when a disk, a quota or the largest allowed file is full."""


def check_output(path: Path, overwrite: bool = False) -> None:
    """Try out, before any work, whether `path` can be written: its folder is made, and a file in it, which goes again.

    Raises OutputExists for a file that is there unless `overwrite`, OutputNotWritable, DiskFull.
    """
    try:
        if path.is_dir():
            raise OutputNotWritable(f"{path} is a folder. Name a file in it.")
        if path.exists() and not overwrite:
            raise OutputExists(f"{path} exists already. Give another name, or --force to replace it.")
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)  # objects to names that are too long or hold a NUL; the temporary name would not show it
        path.parent.mkdir(parents=True, exist_ok=True)
        _reserve(path).unlink()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _explain(error, path) from error


@contextmanager
def whole_file(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary file beside `path` to write to; when the block ends well it becomes `path`, else it is removed.

    An existing file is replaced only if `overwrite`. Raises OutputExists, OutputNotWritable, DiskFull.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _reserve(path)
    except (OSError, ValueError) as error:
        raise _explain(error, path) from error
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        _publish(temporary, path, overwrite)
    except OSError as error:
        raise _explain(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def move_file(source: Path, path: Path) -> None:
    """Move a file, to another disk as well; nobody sees a part of it, and none is replaced. Raises as `whole_file`."""
    with whole_file(path) as temporary:
        shutil.copyfile(source, temporary)
    with suppress(OSError):
        source.unlink()


def is_disk_full(error: BaseException) -> bool:
    """Whether an operating system's error says that there is no room left."""
    return isinstance(error, OSError) and error.errno in FULL


def _reserve(path: Path) -> Path:
    """A new empty file in the folder of `path`, readable by those whom the user's umask allows; hidden on Unix."""
    temporary = path.with_name(f".hyvideo-{secrets.token_hex(6)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


def _publish(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)  # unlike a rename it never takes the place of a file that appeared meanwhile
    except FileExistsError as error:
        raise OutputExists(f"{path} appeared while the run was going on. Give another name, or --force.") from error
    except OSError:  # a file system without links
        if path.exists():
            raise OutputExists(f"{path} appeared while the run was going on. Give another name, or --force.") from None
        temporary.replace(path)


def _explain(error: OSError | ValueError, path: Path) -> DiskFull | OutputNotWritable:
    if is_disk_full(error):
        return DiskFull(f"There is no room left to write {path}. Free some space, or name a file on another disk.")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return OutputNotWritable(f"{path} cannot be written: {reason}. Name a file in a folder you may write to.")
