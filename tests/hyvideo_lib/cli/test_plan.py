"""`hyvideo plan` for runs that begin with something, held to what `hyvideo generate` does with the same words."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyvideo_lib.demo import assets
from hyvideo_lib.pipeline import save_latents
from hyvideo_lib.vae import TinyVAE, TinyVAEConfig
from hyvideo_lib.video import write_video

FILES = ["--transformer", assets.TRANSFORMER, "--vae", assets.VAE, "--llm", assets.LLM, "--clip", assets.CLIP]
CARD = ["--gpu-memory", "24GiB"]


@pytest.fixture
def plan(hyvideo):
    """hyvideo plan with the demo's files; what is given comes last, and so wins."""
    return lambda *words: hyvideo("plan", *FILES, *words)


@pytest.fixture
def inputs(hyvideo):
    """in.mp4 and in.safetensors, of 9 frames of 64 x 64, in the current folder."""
    write_video(Path("in.mp4"), torch.zeros(9, 64, 64, 3, dtype=torch.uint8), 64, 64, 24.0, {})
    save_latents(Path("in.safetensors"), torch.zeros(1, 16, 3, 8, 8), {})


@pytest.mark.usefixtures("inputs")
def test_a_video_that_a_run_begins_with_is_encoded_first(plan):
    stages = plan("--input-video", "in.mp4", *CARD).report["stages"]
    assert list(stages) == ["encode", "text", "sample", "decode"]
    assert stages["encode"]["weights_bytes"] == stages["decode"]["weights_bytes"]
    assert stages["encode"]["working_bytes"] != stages["decode"]["working_bytes"]
    assert "encode" not in plan("--input-latents", "in.safetensors", *CARD).report["stages"]
    assert "encode" not in plan(*CARD, "--width", 64, "--height", 64, "--frames", 9).report["stages"]


@pytest.mark.usefixtures("inputs")
def test_what_is_taken_of_an_input_is_told_by_a_plan_too(plan):
    answer = plan("--input-video", "in.mp4", *CARD)
    assert answer.report["input"]["taken"]["frames"] == 9
    assert "Input in.mp4: 9 frames of 64 x 64 at 24 per second" in answer.stderr
    assert "input" not in plan(*CARD).report


@pytest.mark.usefixtures("inputs")
def test_what_a_run_would_refuse_is_refused(plan, hyvideo):
    given = ["--input-latents", "in.safetensors"]
    save_file(TinyVAE(TinyVAEConfig((8, 6, 4, 4))).state_dict(), "taehv.safetensors")
    decoder = {name: part for name, part in load_file(assets.VAE).items() if name.startswith(("decoder.", "post_"))}
    save_file(decoder, "decoder.safetensors", {"hyvideo.config": '{"norm_groups": 4}'})
    for words in (
        [*given, "--frames", 1],
        [*given, "--width", 32],
        ["--input-video", "in.mp4", "--vae", "taehv.safetensors"],
        ["--input-video", "in.mp4", "--vae", "decoder.safetensors"],
        ["--clip", assets.LLM],
    ):
        planned, made = plan(*words, *CARD), hyvideo("generate", "a circle", *FILES, *words)
        assert (planned.error, planned.message) == (made.error, made.message)
        assert planned.code == 2


@pytest.mark.usefixtures("inputs")
def test_a_video_of_given_latents_is_advised_no_other_size(plan):
    small = ["--gpu-memory", "700MiB"]
    told = str(plan("--input-latents", "in.safetensors", *small).report["stages"])
    assert "its size is that of the latents" in told
    assert not any(option in told for option in ("--frames", "--width"))
    assert "--width" in str(plan("--input-video", "in.mp4", *small).report["stages"])


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (["--tiles", 512], "--tiles fit"),
        (["--tiles", 512, "--tile-frames", 32], "--tiles fit without --tile-frames"),
        (
            ["--tiles", 512, "--tile-frames", 32, "--tile-overlap", 0.5],
            "--tiles fit without --tile-frames and --tile-overlap",
        ),
    ],
)
def test_tiles_that_fit_are_advised_with_the_whole_change(hyvideo, words, change):
    answer = hyvideo("plan", "--vae", assets.VAE, "--width", 512, "--height", 512, "--gpu-memory", "900MiB", *words)
    assert answer.report["stages"]["decode"]["setting"].endswith(f", {change}")
