"""The demo verb, with the model that comes with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyvideo_lib.checkpoint import inspect_file
from hyvideo_lib.cli import main
from hyvideo_lib.cli.demo import one_thread
from hyvideo_lib.demo import assets
from hyvideo_lib.video import read_frames, read_settings


def demo_frames(path: Path) -> torch.Tensor:
    return read_frames(path, assets.WIDTH, assets.HEIGHT, assets.FRAMES, assets.FPS)


def test_out_of_the_box_a_clip_appears_and_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the default output is replaced each time
        assert main(["demo"]) == 0
    assert capsys.readouterr().out.startswith(str(Path("output", "demo.mp4")))
    assert [path.name for path in Path("output").iterdir()] == ["demo.mp4"]
    settings = read_settings(Path("output/demo.mp4"))
    assert settings["prompt"] == assets.PROMPT
    assert settings["steps"] == assets.STEPS
    assert demo_frames(Path("output/demo.mp4")).shape == (assets.FRAMES, assets.HEIGHT, assets.WIDTH, 3)


def test_the_prompt_decides_what_is_seen(hyvideo):
    for color in ("red", "blue"):
        prompt = f"a {color} circle standing still on a black background"
        assert hyvideo("demo", prompt, "--out", f"{color}.mp4").code == 0
    red, blue = (demo_frames(Path(f"{color}.mp4")).float().sum(dim=(0, 1, 2)) for color in ("red", "blue"))
    assert red[0] > 2 * red[2]
    assert blue[2] > 2 * blue[0]


def test_its_own_lora_has_a_name(hyvideo):
    words = ["demo", assets.LORA_PROMPT, "--steps", 4]
    for name, more in (("plain", []), ("large", ["--lora", "large"]), ("off", ["--lora", "large:0"])):
        answer = hyvideo(*words, *more, "--out", f"{name}.mp4")
        assert answer.code == 0, answer.stderr
    assert read_settings(Path("large.mp4"))["loras"] == [
        {"file": assets.LORAS["kohya"].name, "strength": 1.0, "blocks": ""}
    ]
    plain, large, off = (demo_frames(Path(f"{name}.mp4")) for name in ("plain", "large", "off"))
    assert torch.equal(off, plain)
    assert not torch.equal(large, plain)


def test_a_file_that_was_named_is_not_replaced_without_force(hyvideo):
    Path("a.mp4").write_text("precious")
    answer = hyvideo("demo", "--out", "a.mp4", "--steps", 1)
    assert (answer.code, answer.error) == (2, "output_exists")
    assert Path("a.mp4").read_text() == "precious"
    assert hyvideo("demo", "--out", "a.mp4", "--steps", 1, "--force").code == 0


def test_the_same_seed_makes_the_same_clip(hyvideo):
    for name in ("a", "b"):
        assert hyvideo("demo", "--seed", 3, "--steps", 2, "--out", f"{name}.mp4").code == 0
    assert hyvideo("demo", "--seed", 4, "--steps", 2, "--out", "c.mp4").code == 0
    a, b, c = (demo_frames(Path(f"{name}.mp4")) for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_number_of_threads_is_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([""], "empty_prompt"),
        (["--steps", 0], "invalid_steps"),
        (["--seed", "x"], "invalid_seed"),
        (["--cfg-scale", 0], "invalid_guidance"),
        (["--solver", "x"], "invalid_setting"),
        (["--out", "x.gif"], "invalid_setting"),
        (["--frames", 17], "bad_input"),
    ],
)
def test_bad_input_is_refused(hyvideo, words, code):
    answer = hyvideo("demo", *words)
    assert (answer.code, answer.error) == (2, code)


def test_an_incomplete_installation_is_told(hyvideo, monkeypatch, tmp_path):
    monkeypatch.setattr(assets, "VAE", tmp_path / "vae.safetensors")
    answer = hyvideo("demo")
    assert (answer.code, answer.error) == (2, "file_missing")
    assert "vae.safetensors" in answer.message


def test_the_help_counts_the_demos_own_blocks(capsys):
    config = inspect_file(assets.TRANSFORMER).config
    assert (config["num_double_blocks"], config["num_single_blocks"]) == (assets.DOUBLE_BLOCKS, assets.SINGLE_BLOCKS)
    assert main(["demo", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "of the 2 double blocks" in text
    assert "of the 6 single blocks" in text
