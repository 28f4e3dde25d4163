"""Every kind of file that is saved: how one is written, and how one is found to be complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from hyvideo_lib.checkpoint import load_transformer
from hyvideo_lib.checkpoint.convert import convert_file
from hyvideo_lib.checkpoint.keymaps import COMPANIONS
from hyvideo_lib.checkpoint.read import map_tensors, read_header
from hyvideo_lib.checkpoint.rewrite import Request
from hyvideo_lib.demo import assets
from hyvideo_lib.lora.merge import merge_lora
from hyvideo_lib.pipeline import load_embeds, load_latents, save_embeds, save_latents
from hyvideo_lib.text import TextEmbeds
from hyvideo_lib.video import read_frames, read_settings, write_video

SIZE, FRAMES = 96, 65
SETTINGS = {"hyvideo": "test", "prompt": "x" * 2000}


@dataclass(frozen=True)
class Save:
    """One kind of save. write(path): the save, onto a name that may be taken. check(path): raises unless complete."""

    suffix: str
    write: Callable[[Path], None]
    check: Callable[[Path], None]


def _frames() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (FRAMES, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)


def _latents() -> torch.Tensor:
    return torch.arange(16 * 17 * 60 * 60, dtype=torch.float32).view(1, 16, 17, 60, 60)


def _embeds() -> TextEmbeds:
    states = torch.arange(256 * 1024, dtype=torch.float32).view(1, 256, 1024)
    return TextEmbeds(states, torch.ones(1, 256, dtype=torch.int64), torch.ones(1, 768), (0,))


def _write_video(path: Path) -> None:
    write_video(path, _frames(), SIZE, SIZE, 24, SETTINGS, overwrite=True)


def _check_video(path: Path) -> None:
    settings = read_settings(path)
    assert settings is not None, "no settings inside"
    assert settings["prompt"] == SETTINGS["prompt"], "other settings inside"
    count = len(read_frames(path, SIZE, SIZE, FRAMES + 1, 24))
    assert count == FRAMES, f"{count} of {FRAMES} frames"


def _check_latents(path: Path) -> None:
    assert torch.equal(load_latents(path)[0], _latents()), "other latents"


def _check_embeds(path: Path) -> None:
    assert torch.equal(load_embeds(path)[0].text_embeds, _embeds().text_embeds), "other embeds"


def _weights() -> dict[str, torch.Tensor]:
    return {f"blocks.{i}.weight": torch.full((512, 512), i / 16) for i in range(40)}


def _convert(path: Path, suffix: str, write: Callable[[dict[str, torch.Tensor], Path], None]) -> None:
    """Convert some weights, which lie above the folder of the save; they are written once."""
    source = path.parent.parent / f"source{suffix}"
    if not source.exists():
        write(_weights(), source)
    convert_file(source, path, Request(storage="float16", component="any"), overwrite=True)


def _check_conversion(path: Path) -> None:
    found, expected = map_tensors(read_header(path)), _weights()
    assert found.keys() == expected.keys(), "other tensors"
    assert all(torch.equal(found[name], tensor.half()) for name, tensor in expected.items()), "other numbers"


def _write_merged(path: Path) -> None:
    merge_lora(assets.TRANSFORMER, assets.LORAS["kohya"], path, overwrite=True)


def _check_merged(path: Path) -> None:
    header, source = read_header(path), read_header(assets.TRANSFORMER)
    gone = source.tensors.keys() - header.tensors.keys()  # the scales of weights that are in 16 bits now
    assert header.tensors.keys() <= source.tensors.keys(), "other tensors"
    assert all(name.rpartition(".")[2] in COMPANIONS for name in gone), "lost tensors"
    found, before = map_tensors(header), map_tensors(source)
    assert not all(torch.equal(found[name].float(), before[name].float()) for name in found), "nothing is merged"
    load_transformer(path)


SAVES: Mapping[str, Save] = {
    "mp4": Save(".mp4", _write_video, _check_video),
    "latents": Save(
        ".safetensors", lambda path: save_latents(path, _latents(), SETTINGS, overwrite=True), _check_latents
    ),
    "embeds": Save(
        ".embeds.safetensors",
        lambda path: save_embeds(path, _embeds(), None, "video", overwrite=True),
        _check_embeds,
    ),
    "converted file": Save(".safetensors", lambda path: _convert(path, ".safetensors", save_file), _check_conversion),
    "merged LoRA": Save(".safetensors", _write_merged, _check_merged),
    "converted pickle": Save(".safetensors", lambda path: _convert(path, ".pt", torch.save), _check_conversion),
}
