"""The process that opens pickles, so that none is ever opened where people work: started, watched, and ended in time.

What it is asked and what it answers is one line of JSON each; `unpickle` is its program.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..errors import FileUnreadable, HyvError, RunFailed, UnsupportedFile
from ..host import Host
from .pickles import MAX_PICKLE_BYTES, read_pickle
from .rewrite import Request

MIN_TORCH = (2, 10)
BASE_SECONDS, BYTES_PER_SECOND = 600, 10_000_000
"""How long the process may take: on a busy machine, minutes until it has begun."""
ROOT = Path(__file__).resolve().parents[2]


def check_pickle(path: Path) -> None:
    """Refuse what is not a plain PyTorch file, by the directory of its zip.

    Raises UnsupportedFile, FileUnreadable.
    """
    check_torch(torch.__version__)
    facts = read_pickle(path)
    if path.suffix == ".safetensors":
        raise UnsupportedFile(
            f"{path.name} is a pickle under the name of a safetensors file. "
            "Files that run code are spread so. If you trust where it came from, rename it to .pt and convert it."
        )
    if facts is None or facts.layout != "torch_zip":
        what = facts.title if facts else "no pickle"
        raise UnsupportedFile(
            f"{path.name} is {what}; only files of torch.save from PyTorch 1.6 on can be converted. "
            "Use the .safetensors version of the file."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise FileUnreadable(f"{path.name} is damaged: {error}. Download or copy it again.") from error
    names = [member.filename for member in members]
    programs = [member for member in members if member.filename.endswith(".pkl")]
    is_plain = (
        len(set(names)) == len(names)
        and len(programs) == 1
        and programs[0].file_size <= MAX_PICKLE_BYTES
        and all(member.compress_type == zipfile.ZIP_STORED for member in members)
        and sum(member.file_size for member in members) <= path.stat().st_size
    )
    if not is_plain:
        raise UnsupportedFile(
            f"{path.name} is packed as torch.save packs no file (compressed, repeated or huge members). "
            "Use the .safetensors version of the file."
        )


def check_torch(version: str) -> None:
    """Raises UnsupportedFile for a PyTorch that cannot open pickles safely."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < MIN_TORCH:
        raise UnsupportedFile(
            f"Pickles are opened with PyTorch {'.'.join(map(str, MIN_TORCH))} or newer only, this is {version}: a file "
            "can make older ones run code. Update PyTorch, or use a .safetensors file."
        )


def convert_in_child(
    source: Path, out: Path, request: Request, host: Host, files: Sequence[Path] = ()
) -> dict[str, Any]:
    """Have another process convert a pickle into the file `out`; the manifest. files: of a folder in several pickles.

    Raises what it reports, FileUnreadable if it takes too long, RunFailed if it ends without a word, Interrupted.
    """
    files = files or (source,)
    limit = BASE_SECONDS + sum(path.stat().st_size for path in files) / BYTES_PER_SECOND
    whole = {"source": str(source.resolve()), "files": [str(path.resolve()) for path in files]}
    job = {**whole, "out": str(out.resolve()), **asdict(request)}
    package = __name__.rpartition(".checkpoint.")[0].rpartition(".")[2]
    environment = {name: value for name, value in os.environ.items() if "WEIGHTS_ONLY" not in name}
    command = [sys.executable, "-m", f"{package}.checkpoint.unpickle"]
    environment |= {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    host.stage("converting", 0)
    host.check_interrupt()
    with subprocess.Popen(  # noqa: S603 (our own program; the file's name travels as data)
        command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as child:
        try:
            answer, complaint = _await(child, json.dumps(job), time.monotonic() + limit, source.name, host)
        except BaseException:
            child.kill()
            raise
    return _parse_answer(answer, complaint, child.returncode, source.name)


def _await(child: subprocess.Popen[str], text: str, deadline: float, name: str, host: Host) -> tuple[str, str]:
    """What the child says on stdout and stderr. Raises FileUnreadable after the deadline, Interrupted."""
    unsent: str | None = text
    while True:
        try:
            return child.communicate(unsent, timeout=0.2)
        except subprocess.TimeoutExpired:
            unsent = None  # it is on its way; what is left of it is kept
            host.check_interrupt()
            if time.monotonic() > deadline:
                late = f"{name} was not read in the time that files of its size take. Download or copy it again."
                raise FileUnreadable(late) from None


def _parse_answer(answer: str, complaint: str, code: int, name: str) -> dict[str, Any]:
    try:
        report = json.loads(answer.splitlines()[-1])
        if "error" in report:
            raise _error_class(report["error"]["code"])(report["error"]["message"])
        manifest: dict[str, Any] = report["manifest"]
    except (ValueError, IndexError, KeyError, TypeError) as error:
        last = (complaint.strip().splitlines() or ["no word"])[-1][:200]
        raise RunFailed(f"The process that opened {name} ended with code {code}: {last}.") from error
    return manifest


def _error_class(code: str) -> type[HyvError]:
    def walk(kind: type[HyvError]) -> Iterator[type[HyvError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from walk(child)

    return next((kind for kind in walk(HyvError) if kind.code == code), RunFailed)
