"""Hostile names through every string that becomes a path in the pack: nothing is written outside the output and temp
folders, nothing read outside the model and input folders.

An audit hook sees every file that Python opens and every folder it makes or lists; a copy of the forbidden ground is
compared at the end, so that what other code writes is seen as well.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.hostile.figures import Figure, Scale
from hyvideo_lib.demo import assets

DEVICES = ("CON", "NUL", "AUX", "PRN", "COM1", "LPT1", "CON.safetensors", "nul.txt", "COM¹", "CLOCK$")
WRITING = frozenset({"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"})
READING = frozenset({"os.listdir", "os.scandir"})


@dataclass
class Ground:
    """Folders of a run under one base, with something to steal and something to spoil beside them."""

    base: Path
    comfyui: Path = field(init=False)
    secret: Path = field(init=False)

    def __post_init__(self) -> None:
        self.comfyui, self.secret = self.base / "comfyui", self.base / "secret"

    def build(self, pack: ModuleType) -> None:
        """Valid files inside and, of the same kinds, outside; links between them."""
        sys.modules["folder_paths"].set_base(self.comfyui)  # type: ignore[attr-defined]
        for kind in ("diffusion_models", "vae", "text_encoders", "clip", "LLM", "loras"):
            (self.comfyui / "models" / kind).mkdir(parents=True, exist_ok=True)
        for folder in ("input", "output", "temp", "user"):
            (self.comfyui / folder).mkdir(parents=True, exist_ok=True)
        self.secret.mkdir()
        embeds = make_embeds(pack)
        for folder in (self.secret, self.comfyui, self.comfyui / "user", self.comfyui / "input"):
            pack.hyvideo_lib.pipeline.save_embeds(
                folder / "a.embeds.safetensors", embeds.positive, None, "video", overwrite=True
            )
            shutil.copyfile(assets.VAE, folder / "vae.safetensors")
            (folder / "tokenizer.json").write_text("{}")
        shutil.copyfile(assets.VAE, self.comfyui / "models" / "vae" / "vae.safetensors")
        for folder in (self.comfyui / "models" / "vae", self.comfyui / "input", self.comfyui / "output"):
            (folder / "loop").symlink_to(folder / "loop")
            (folder / "dangling").symlink_to(folder / "nowhere")

    def may_read(self, path: str) -> bool:
        return self._is_in(path, "models", "input", "output", "temp")

    def may_write(self, path: str) -> bool:
        return self._is_in(path, "output", "temp")

    def _is_in(self, path: str, *folders: str) -> bool:
        """Whether a path in the base is in one of these folders; paths elsewhere are the surroundings' affair."""
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(os.path.realpath(self.base)):
            return False
        return any(real.is_relative_to(os.path.realpath(self.comfyui / folder)) for folder in folders)

    def snapshot(self) -> dict[str, tuple[int, bytes]]:
        """Every file of the base outside the output and temp folders, with its contents."""
        return {
            str(path): (path.stat().st_size, path.read_bytes()[:4096])
            for path in self.base.rglob("*")
            if path.is_file() and not self.may_write(str(path))
        }


class Listener:
    """What Python did to files while it listens. The hook stays for the life of the process, as hooks do."""

    def __init__(self, ground: Ground) -> None:
        self._ground, self._is_on = ground, False
        self.violations: list[str] = []
        # What the interpreter and the libraries read for themselves: code, fonts, locales, the standard stream.
        own = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), "/proc", "/dev", "/usr", "/sys", "/etc/ssl")
        self._own = tuple(os.path.realpath(folder) for folder in own)
        sys.addaudithook(self._hear)

    def __enter__(self) -> Listener:
        self.violations, self._is_on = [], True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_on = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_on or (event != "open" and event not in WRITING | READING):
            return
        path = arguments[0]
        if isinstance(path, int) or path is None:
            return
        path = os.fsdecode(path)
        if "\0" in path or "\ud800" in path:  # the system will refuse it
            return
        self._is_on = False  # resolving a path looks at files as well
        try:
            mode, flags = (arguments[1], arguments[2]) if event == "open" else ("", 0)
            writes = event in WRITING or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if writes and not self._ground.may_write(path):
                self.violations.append(f"{event} {mode} {path[:200]} is written")
            elif not writes and not self._ground.may_read(path) and not self._is_own(path):
                self.violations.append(f"{event} {mode} {path[:200]} is read")
        finally:
            self._is_on = True

    def _is_own(self, path: str) -> bool:
        real = os.path.realpath(path)
        return any(Path(real).is_relative_to(folder) for folder in self._own)


def hostile_names(seed: int, count: int, ground: Ground) -> list[str]:
    """`count` names that try to lead elsewhere, or to upset whoever resolves them."""
    rng = random.Random(seed)
    inside = ("a.embeds.safetensors", "vae.safetensors", "tokenizer.json", "new/x", "x")
    outside = [str(ground.secret), str(ground.comfyui), "/etc", "/var/spool", "/root/.ssh"]

    def up(rng: random.Random) -> str:
        separator = rng.choice(("/", "/", "\\", "//", "/./"))
        return separator.join([".."] * rng.randrange(1, 8) + [rng.choice(("secret", "user", ".", "etc")), name(rng)])

    def name(rng: random.Random) -> str:
        return rng.choice(inside)

    makers: tuple[Callable[[random.Random], str], ...] = (
        up,
        lambda rng: "sub/" + up(rng),
        lambda rng: f"{rng.choice(outside)}/{name(rng)}",
        lambda rng: f"file://{rng.choice(outside)}/{name(rng)}",
        lambda rng: f"\\\\server\\share\\{name(rng)}",
        lambda rng: f"//server/share/{name(rng)}",
        lambda rng: f"C:{rng.choice(('', '/', chr(92)))}{name(rng)}",
        lambda rng: f"\\\\?\\C:\\{name(rng)}",
        lambda rng: rng.choice(DEVICES),
        lambda rng: f"{rng.choice(DEVICES)}/{name(rng)}",
        lambda rng: name(rng)[:3] + "\0" + up(rng),
        lambda rng: f"{name(rng)}\0.safetensors",
        lambda rng: rng.choice("a.é") * rng.choice((255, 256, 4096, 5000)),
        lambda rng: "a/" * 2048 + name(rng),
        lambda rng: "../" * 1365 + name(rng),
        lambda rng: rng.choice(("loop", "dangling", "loop/x", "dangling/x", "loop/../../../user/x")),
        lambda rng: rng.choice(("", ".", "..", "/", "//", " ", "~", "~root/x", "$HOME/x", "%TEMP%/x", "-", "--help")),
        lambda rng: (
            rng.choice(("．．/", "‥/", "..\u2215", "%2e%2e/", "..%2f", "..%c0%af", "\u202e..\u2044")) + name(rng)
        ),
        lambda rng: (
            rng.choice(("\ud800", "\udcff", "a\ud800b", "\x7f", "\r\n", "\x1b[2J", "\uffff", "é\u0301")) + name(rng)
        ),
        lambda rng: f"{name(rng)}{rng.choice((' [output]', ' [input]', ' [temp]', '/../../user/x [output]'))}",
        lambda rng: f"../user/{name(rng)} [output]",
        lambda rng: rng.choice(("%date:yyyy%", "%width%", "%year%/../../user/x", "%../..%")) + name(rng),
        lambda rng: "".join(chr(rng.randrange(1, 0xD800)) for _ in range(rng.randrange(1, 40))),
    )
    return [makers[i % len(makers)](rng) for i in range(count)]


def make_embeds(pack: ModuleType) -> Any:
    """The smallest encoded prompt."""
    text = pack.hyvideo_lib.text.TextEmbeds(
        torch.ones(1, 2, 4), torch.ones(1, 2, dtype=torch.int64), torch.ones(1, 3), (0,)
    )
    return pack.nodes.sockets.Embeds(text, None, "video")


def doors(pack: ModuleType) -> Mapping[str, Callable[[str], object]]:
    """Every input of a node that becomes a path, as ComfyUI's API reaches it."""
    load, files, text = pack.nodes.load, pack.nodes.files, pack.nodes.text
    embeds = make_embeds(pack)
    both = {"llm": files.DEMO, "clip": files.DEMO}
    return {
        "LoadTransformer.file": lambda name: load.LoadTransformer.execute(name),
        "LoadTransformer.file, checked": lambda name: load.LoadTransformer.validate_inputs(name),
        "LoadTransformer.file, fingerprint": lambda name: load.LoadTransformer.fingerprint_inputs(name),
        "LoadVAE.file": lambda name: load.LoadVAE.execute(name),
        "LoadVAE.file, checked": lambda name: load.LoadVAE.validate_inputs(name),
        "LoadTextEncoders.llm": lambda name: load.LoadTextEncoders.execute(**{**both, "llm": name}),
        "LoadTextEncoders.clip": lambda name: load.LoadTextEncoders.validate_inputs(**{**both, "clip": name}),
        "LoadTextEncoders.llm_tokenizer": lambda name: files.find_tokenizer(name),
        "LoadTextEncoders.llm_tokenizer, checked": lambda name: load.LoadTextEncoders.validate_inputs(
            **both, llm_tokenizer=name
        ),
        "LoadTextEncoders, fingerprint": lambda name: load.LoadTextEncoders.fingerprint_inputs(
            **both, clip_tokenizer=name
        ),
        "ModelInfo.file": lambda name: pack.nodes.info.describe_file(name),
        "LoadLora.file": lambda name: pack.nodes.lora.check_choice(name, ""),
        "LoadLora.file, checked": lambda name: pack.nodes.lora.LoadLora.validate_inputs(name),
        "LoadLora.file, fingerprint": lambda name: pack.nodes.lora.LoadLora.fingerprint_inputs(name),
        "LoadEmbeds.file": lambda name: text.LoadEmbeds.execute(name),
        "LoadEmbeds.file, checked": lambda name: text.LoadEmbeds.validate_inputs(name),
        "LoadEmbeds.file, fingerprint": lambda name: text.LoadEmbeds.fingerprint_inputs(name),
        "SaveEmbeds.filename_prefix": lambda name: text.SaveEmbeds.execute(embeds, name),
    }


def go_through(door: Callable[[str], object], name: str, pack: ModuleType, is_comfys: bool) -> str | None:
    """What is wrong with how a door takes a name: anything but a refusal in our words, or success inside the folders.

    is_comfys: ComfyUI itself refuses names at this door, in words and types of its own.
    """
    try:
        door(name)
    except pack.hyvideo_lib.errors.BadInput as error:
        message = str(error)
        return None if len(message) < 10_000 else f"a message of {len(message)} characters"
    except Exception as error:
        return None if is_comfys else f"{type(error).__name__}: {str(error)[:120]}"
    return None


def run(scale: Scale, pack: ModuleType) -> Iterator[Figure]:
    """2,000 names through every door."""
    ground = Ground(Path(tempfile.mkdtemp(dir=scale.folder)))
    ground.build(pack)
    before = ground.snapshot()
    listener = Listener(ground)
    contained = Figure("names", "names that lead nowhere else")
    refused = Figure("names", "doors x names that end in a sentence")
    names = hostile_names(scale.seed, scale.count(2000), ground)
    for name in names:
        broken = []
        for door_name, door in doors(pack).items():
            with listener:
                problem = go_through(door, name, pack, is_comfys=door_name.startswith("Save"))
            broken += [f"{door_name} with {name[:60]!r}: {violation}" for violation in listener.violations]
            refused.add(problem and f"{door_name} with {name[:60]!r}: {problem}")
        contained.add(broken[0] if broken else None)
    after = ground.snapshot()
    untouched = Figure("names", "files outside output and temp as they were")
    for path in before.keys() | after.keys():
        untouched.add(None if before.get(path) == after.get(path) else f"{path} changed")
    yield contained
    yield untouched
    yield refused
