"""--cache and its companions, of `generate` and `demo`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hyvideo_lib.caches import load_curve
from hyvideo_lib.pipeline import load_latents
from hyvideo_lib.video import read_settings

STEPS = ("--steps", 6)


def make(generate, name: str, *words: object):
    answer = generate("a red circle", "--out", f"{name}.mp4", "--save-latents", f"{name}.safetensors", *STEPS, *words)
    assert answer.code == 0, answer.report
    return answer, load_latents(Path(f"{name}.safetensors"))[0]


def test_what_was_skipped_stands_in_the_report_and_in_the_file(generate) -> None:
    plain, latents = make(generate, "plain")
    assert plain.report["videos"][0]["settings"]["cache"] is None
    words = ("--cache", "teacache:1e9", "--cache-start", 0.2, "--cache-end", 0.9, "--cache-max-skips", 2)
    answer, cached = make(generate, "cached", *words)
    (video,) = answer.report["videos"]
    assert video["settings"]["cache"] == {
        "method": "teacache",
        "threshold": 1e9,
        "start": 0.2,
        "end": 0.9,
        "max_skips": 2,
        "on_host": False,
        "curve": None,
        "steps": 6,
        "skipped_steps": 3,  # of 1 to 4, with one between them after two skips
        "passes": 6,
        "skipped_passes": 3,
    }
    assert read_settings(Path("cached.mp4"))["cache"] == video["settings"]["cache"]
    assert "teacache skipped 3 of 6 steps" in answer.stderr
    assert not torch.equal(cached, latents)


@pytest.mark.parametrize("words", [["teacache:0"], ["first_block:0"], ["easycache:0", "--cache-on-host"]])
def test_a_threshold_of_zero_changes_nothing(generate, words: list[str]) -> None:
    _, latents = make(generate, "plain")
    answer, cached = make(generate, "cached", "--cache", *words)
    assert torch.equal(cached, latents)
    assert answer.report["videos"][0]["settings"]["cache"]["skipped_steps"] == 0


def test_ratios_are_measured_and_used(generate, hyvideo) -> None:
    _, latents = make(generate, "plain")
    answer, measured = make(generate, "measured", "--measure-ratios", "ratios.json", "--videos", 1)
    assert torch.equal(measured, latents)  # measuring skips nothing
    about = json.loads(Path("ratios.json").read_text())
    assert (about["steps"], about["videos"], about["files"]["vae"]) == (6, 1, "vae.safetensors")
    assert len(load_curve(Path("ratios.json")).ratios) == 5
    words = ("--cache", "magcache:9", "--cache-ratios", "ratios.json")
    answer, _ = make(generate, "cached", *words)
    told = answer.report["videos"][0]["settings"]["cache"]
    assert told["skipped_steps"] > 0
    assert told["curve"] == load_curve(Path("ratios.json")).fingerprint
    again = generate("a red circle", "--out", "b.mp4", "--measure-ratios", "ratios.json")
    assert again.error == "output_exists"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cache", "teacup"], "must be one of: teacache"),
        (["--cache", "teacache:much"], "threshold is 'much', but must be a number"),
        (["--cache", "teacache:-1"], "threshold is -1.0"),
        (["--cache", "teacache", "--cache-start", "0.9", "--cache-end", "0.5"], "start before the end"),
        (["--cache-start", "0.5"], "--cache-start needs a step cache"),
        (["--cache-on-host"], "--cache-on-host needs a step cache"),
        (["--cache-max-skips", "2"], "--cache-max-skips needs a step cache"),
        (["--cache", "magcache"], "there are none for a transformer of width 32 with 1 + 1 blocks"),
        (["--cache", "teacache", "--cache-ratios", "r.json"], "--cache-ratios is for magcache"),
        (["--cache", "magcache", "--cache-ratios", "none.json"], "none.json holds no magnitude ratios"),
        (["--cache", "teacache", "--measure-ratios", "r.json"], "leave out --cache"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(generate, words: list[str], said: str) -> None:
    answer = generate("a red circle", "--out", "a.mp4", *words)
    assert (answer.code, answer.error) == (2, "invalid_setting")
    assert said in answer.message
    assert not Path("a.mp4").exists()


def test_measuring_needs_two_steps(generate) -> None:
    answer = generate("a red circle", "--out", "a.mp4", "--steps", 1, "--measure-ratios", "ratios.json")
    assert answer.error == "invalid_setting"
    assert "two steps or more" in answer.message
    assert not Path("a.mp4").exists()  # nothing was made for it


def test_ratios_are_measured_with_cfg_for_a_part_of_the_run(hyvideo) -> None:
    words = ("--cfg-scale", 3, "--cfg-end", 0.5, "--measure-ratios", "ratios.json")
    answer = hyvideo("demo", "--steps", 4, *words)
    assert answer.code == 0, answer.report
    assert len(load_curve(Path("ratios.json")).ratios) == 3


def test_the_demo_has_ratios_of_its_own(hyvideo) -> None:
    answer = hyvideo("demo", "--steps", 4, "--cache", "magcache:1")
    assert answer.code == 0
    assert answer.report["videos"][0]["settings"]["cache"]["skipped_steps"] > 0
