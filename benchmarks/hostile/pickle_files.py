"""Pickles that run code when opened: many things to call, many ways to call them, many wrappings and names.

Every payload does one harmless thing, it makes the canary file. Where none is, no pickle was opened.
"""

from __future__ import annotations

import cProfile
import gzip
import io
import logging
import os
import pathlib
import pickle
import random
import shutil
import sqlite3
import subprocess
import tarfile
import timeit
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

NAMES = ("a.pt", "a.ckpt", "a.bin", "a.pth", "a.pkl", "a.safetensors", "a.sft", "a.SAFETENSORS", "a.gguf", "a.json")


@dataclass(frozen=True)
class HostilePickle:
    """One file: what it calls in which wrapping, the name it goes by, its bytes."""

    kind: str
    name: str
    data: bytes


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


class Built:
    """Pickles as an object with a state; the state is the call."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (), None, None, iter([("state_dict", self.call)])


def calls(canary: str) -> dict[str, Call]:
    """What a pickle may call to leave a trace."""
    touch = f"open({canary!r}, 'w').close()"
    inner = pickle.dumps(Call(exec, touch))
    opened = f"__import__('torch').load(__import__('io').BytesIO({inner!r}), weights_only=False)"
    return {
        "os.system": Call(os.system, f"touch '{canary}'"),
        "os.mkdir": Call(os.mkdir, canary),
        "os.symlink": Call(os.symlink, "/", canary),
        "os.open": Call(os.open, canary, os.O_CREAT | os.O_WRONLY),
        "exec": Call(exec, touch),
        "eval": Call(eval, touch),
        "open": Call(open, canary, "w"),
        "subprocess.call": Call(subprocess.call, ["touch", canary]),
        "subprocess.check_output": Call(subprocess.check_output, ["touch", canary]),
        "pathlib.Path.touch": Call(pathlib.Path.touch, pathlib.Path(canary)),
        "shutil.copyfile": Call(shutil.copyfile, "/etc/hostname", canary),
        "timeit.timeit": Call(timeit.timeit, touch, "pass", timeit.default_timer, 1),
        "cProfile.runctx": Call(cProfile.runctx, touch, {}, {}, canary),
        "logging.FileHandler": Call(logging.FileHandler, canary),
        "sqlite3.connect": Call(sqlite3.connect, canary),
        "zipfile.ZipFile": Call(zipfile.ZipFile, canary, "w"),
        "pickle.loads": Call(pickle.loads, inner),
        "torch.load": Call(eval, opened),
    }


# Ways to write the call down


def _by_protocol(protocol: int) -> Callable[[Call, str], bytes]:
    return lambda call, canary: pickle.dumps(call, protocol=protocol)


def _by_hand(text: str) -> Callable[[Call, str], bytes]:
    """Protocol 0 by hand, for opcodes that pickle.dumps does not use any more; always the same call."""
    return lambda call, canary: text.format(command=f"touch '{canary}'").encode()


OPCODES: Mapping[str, Callable[[Call, str], bytes]] = {
    **{f"protocol {protocol}": _by_protocol(protocol) for protocol in range(6)},
    "in a dict": lambda call, canary: pickle.dumps({"state_dict": {"w": torch.zeros(2).numpy()}, "epoch": call}),
    "in a state": lambda call, canary: pickle.dumps(Built(call)),
    "deep": lambda call, canary: pickle.dumps({"module": {"ema": [({"a": (call,)},)]}}),
    "INST": _by_hand('(S"{command}"\nios\nsystem\n.'),
    "OBJ": _by_hand('(cos\nsystem\nS"{command}"\no.'),
    "GLOBAL and REDUCE": _by_hand('cos\nsystem\n(S"{command}"\ntR.'),
    "after a good object": lambda call, canary: pickle.dumps({}) + pickle.dumps(call),
    "memo and POP": _by_hand('cposix\nsystem\np0\n0g0\n(S"{command}"\ntR0(dp1\n.'),
}


# Wrappings


def _zip(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _torch_zip(data: bytes) -> bytes:
    return _zip({"archive/data.pkl": data, "archive/byteorder": b"little", "archive/version": b"3\n"})


def _torch_legacy(data: bytes) -> bytes:
    magic, protocol, info = 0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001}
    return b"".join(pickle.dumps(part, protocol=2) for part in (magic, protocol, info)) + data


def _tar(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _corrupt(data: bytes) -> bytes:
    """A zip whose directory is damaged, but not its members."""
    made = _torch_zip(data)
    spot = made.rindex(b"PK\x01\x02")
    return made[:spot] + b"PK\x09\x09" + made[spot + 4 :]


WRAPPINGS: Mapping[str, Callable[[bytes], bytes]] = {
    "bare": lambda data: data,
    "torch zip": _torch_zip,
    "torch legacy": _torch_legacy,
    "zip of another shape": lambda data: _zip({"data.pkl": data, "../data.pkl": data, "constants.pkl": data}),
    "deflated zip": lambda data: _zip({"archive/data.pkl": data}, zipfile.ZIP_DEFLATED),
    "zip in a zip": lambda data: _zip({"archive/data.pkl": _torch_zip(data)}),
    "corrupt zip": _corrupt,
    "cut zip": lambda data: _torch_zip(data)[:-30],
    "tar": _tar,
    "gzip": gzip.compress,
    "behind a safetensors header": lambda data: len(data).to_bytes(8, "little") + b"{}" + data,
    "behind blanks": lambda data: b"\n\n  " + data,
}


def hostile_pickles(seed: int, count: int, canary: str) -> list[HostilePickle]:
    """`count` files; every call, way of writing, wrapping and name is among the first few dozen."""
    rng = random.Random(seed)
    payloads = calls(canary)
    made = []
    for number in range(count):
        call, opcode, wrapping, name = (
            list(table)[number % len(table)] if number < len(payloads) else rng.choice(list(table))
            for table in (payloads, OPCODES, WRAPPINGS, NAMES)
        )
        data = WRAPPINGS[wrapping](OPCODES[opcode](payloads[call], canary))
        made.append(HostilePickle(f"{call}, {opcode}, {wrapping}", name, data))
    return made
