"""Full disks and too little memory, made real by the limits of a process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hyvideo_lib.video import read_frames

pytest.importorskip("resource", reason="limits of processes need POSIX")
SIZE = ["--width", 64, "--height", 64, "--frames", 17, "--steps", 1, "--seed", 1]


def limited(name: str, number: int) -> str:
    """Python that limits the process it runs in, to one thread as well: on some processors two round otherwise."""
    limit = f"resource.setrlimit(resource.{name}, ({number}, {number}))"
    return f"import resource, torch; torch.set_num_threads(1); {limit}"


def run(start_process, words: list[object], before: str = "pass") -> tuple[int, dict]:
    process = start_process([*words, "--json"], before)
    stdout, stderr = process.communicate(timeout=300)
    assert "Traceback" not in stderr
    return process.returncode, json.loads(stdout)


@pytest.fixture
def words(tiny_files) -> list[object]:
    return ["generate", "a red circle", *tiny_files.arguments(), *SIZE, "--out", "out/a.mp4"]


def test_a_full_disk_keeps_the_latents_which_make_the_video_later(start_process, hyvideo, tiny_files, words, tmp_path):
    code, report = run(start_process, words, limited("RLIMIT_FSIZE", 25_000))  # latents have 20 kB, the video more
    assert (code, report["error"]["code"]) == (1, "disk_full")
    (kept,) = (tmp_path / "out").iterdir()
    assert report["failed"][0]["latents"] == str(kept.relative_to(tmp_path))
    assert str(kept.relative_to(tmp_path)) in report["error"]["message"]

    assert hyvideo("generate", "--decode", kept, "--vae", tiny_files.vae, "--out", "later.mp4").code == 0
    assert hyvideo(*words).code == 0
    later, whole = (read_frames(Path(name), 64, 64, 17, 24) for name in ("later.mp4", "out/a.mp4"))
    assert torch.equal(later, whole)


def test_a_disk_too_full_for_the_latents_says_so(start_process, words, tmp_path):
    code, report = run(start_process, words, limited("RLIMIT_FSIZE", 8_000))
    assert (code, report["error"]["code"]) == (1, "disk_full")
    assert "could not be kept" in report["error"]["message"]
    assert list((tmp_path / "out").iterdir()) == []


def test_too_little_memory_names_the_stage_and_what_helps(start_process, words, tmp_path):
    huge = [*words, "--width", 2**19, "--height", 2**19, "--frames", 1]  # 256 GiB of noise
    code, report = run(start_process, huge, limited("RLIMIT_AS", 2**36))
    assert (code, report["error"]["code"]) == (4, "out_of_memory")
    assert report["error"]["message"].startswith("Sampling 1 frames of 524288 x 524288 takes ")
    assert "Make the video smaller or shorter (width, height, frames)" in report["error"]["message"]
    assert list((tmp_path / "out").iterdir()) == []
