"""`hyvideo generate`: what is asked for, what is refused, and the files that come of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from video_clips import clip

from hyvideo_lib.cli import main, render
from hyvideo_lib.errors import RunFailed
from hyvideo_lib.pipeline import load_latents
from hyvideo_lib.video import probe_video, read_frames, read_settings

PROMPT = "a red circle moving left"


def latents_of(path: Path | str) -> torch.Tensor:
    return load_latents(Path(path))[0]


def test_a_prompt_becomes_a_file_that_tells_how_it_was_made(generate):
    answer = generate(PROMPT, "--out", "new/folder/a.mp4", "--solver", "heun", "--shift", 3, "--guidance", 4.5)
    assert answer.code == 0
    (video,) = answer.report["videos"]
    assert video["file"] == str(Path("new/folder/a.mp4"))
    assert answer.report["failed"] == answer.report["warnings"] == []
    settings = read_settings(Path(video["file"]))
    assert settings == video["settings"]
    expected = {"prompt": PROMPT, "seed": 7, "width": 32, "frames": 5, "steps": 2, "solver": "heun", "shift": 3.0}
    assert (
        settings.items() >= (expected | {"guidance": 4.5, "cfg_scale": 1.0, "fps": 24.0, "template": "video"}).items()
    )
    assert settings["files"]["vae"] == "vae.safetensors"
    assert {"load_text", "encode_text", "load_transformer", "sample", "load_vae", "decode"} == settings[
        "seconds"
    ].keys()
    assert video["seconds"].keys() == settings["seconds"].keys() | {"write"}
    stages = video["report"]["stages"]
    assert {name: stage["seconds"] for name, stage in stages.items()} == video["seconds"]
    assert {**settings["report"]["stages"], "write": stages["write"]} == stages
    assert (stages["sample"]["attention"], stages["sample"]["swapped_blocks"]) == ("sdpa", 0)
    assert stages["decode"]["tiles"] == stages["decode"]["asked_tiles"] == "256 x 256 x 64, overlap 0.25"
    assert settings["tiles"] == settings["asked_tiles"]
    assert read_frames(Path(video["file"]), 32, 32, 5, 24).shape == (5, 32, 32, 3)
    assert [path.name for path in Path("new/folder").iterdir()] == ["a.mp4"]


def test_words_for_people_name_the_file_and_the_seed(tiny_files, tmp_path, capsys):
    words = [*tiny_files.arguments(), "--width", "32", "--height", "32", "--frames", "1", "--steps", "1"]
    assert main(["generate", PROMPT, *words, "--out", str(tmp_path / "a.mp4")]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{tmp_path / 'a.mp4'}  (1 frames of 32 x 32, seed ")
    seed = read_settings(tmp_path / "a.mp4")["seed"]
    assert f"Seed {seed}\n" in captured.err
    assert "sampling: " in captured.err


@pytest.mark.parametrize(
    "prompt", ['"quoted" = ; # \\ \\n', "two\nlines\r\n\ttab", "ü 日本 👩\u200d🚀 \u200f", "x" * 300_000]
)
def test_any_prompt_comes_back_from_the_file(generate, hyvideo, prompt):
    answer = generate(prompt, "--out", "a.mp4", "--frames", 1, "--steps", 1)
    assert answer.code == 0
    report = hyvideo("inspect", "a.mp4").report
    assert report["files"][0]["settings"]["prompt"] == prompt


def test_a_seed_makes_the_same_latents_again(generate):
    for name in ("a", "b"):
        assert generate(PROMPT, "--out", f"{name}.mp4", "--save-latents", f"{name}.safetensors").code == 0
    assert torch.equal(latents_of("a.safetensors"), latents_of("b.safetensors"))


def test_several_videos_are_those_of_consecutive_seeds(generate):
    answer = generate(PROMPT, "--videos", 2, "--out", "a.mp4", "--save-latents", "l.safetensors", "--seed", 7)
    assert [video["file"] for video in answer.report["videos"]] == ["a-1.mp4", "a-2.mp4"]
    assert [video["seed"] for video in answer.report["videos"]] == [7, 8]
    generate(PROMPT, "--seed", 8, "--out", "b.mp4", "--save-latents", "b.safetensors")
    assert torch.equal(latents_of("l-2.safetensors"), latents_of("b.safetensors"))
    assert not torch.equal(latents_of("l-1.safetensors"), latents_of("b.safetensors"))


def test_without_a_seed_one_is_drawn_and_told(generate, tiny_files, hyvideo):
    words = [*tiny_files.arguments(), "--width", 32, "--height", 32, "--frames", 1, "--steps", 1]
    seeds = {hyvideo("generate", PROMPT, *words, "--out", f"{i}.mp4").report["videos"][0]["seed"] for i in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("role", "other", "code"), [("llm", "clip", "invalid_template"), ("clip", "llm", "unsupported_file")]
)
def test_a_tokenizer_of_another_encoder_is_refused_before_anything_is_loaded(generate, tiny_files, role, other, code):
    path = getattr(tiny_files, other)
    answer = generate(PROMPT, f"--{role}-tokenizer", path.with_name(f"{path.stem}.tokenizer.json"))
    assert (answer.code, answer.error) == (2, code)
    assert "loading" not in answer.stderr


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--frames", 18], "invalid_frames", "17 or 21"),
        (["--frames", "many"], "invalid_frames", "'many'"),
        (["--width", 40], "invalid_size", "32 or 48"),
        (["--height", 0], "invalid_size", "height is 0"),
        (["--width", 2**30, "--height", 2**30], "invalid_size", "more than any machine"),
        (["--steps", 0], "invalid_steps", "steps is 0"),
        (["--steps", -3], "invalid_steps", "-3"),
        (["--steps", 2.5], "invalid_steps", "'2.5'"),
        (["--steps", 10**12], "invalid_steps", "at most"),
        (["--cfg-scale", 0.5], "invalid_guidance", "--cfg-scale is 0.5"),
        (["--cfg-scale", "nan"], "invalid_guidance", "nan"),
        (["--cfg-scale", 3, "--cfg-start", 0.6, "--cfg-end", 0.4], "invalid_guidance", "before the end"),
        (["--guidance", -1], "invalid_guidance", "-1"),
        (["--cfg-scale", 3, "--cfg-rescale", 2], "invalid_guidance", "--cfg-rescale is 2"),
        (["--swap-double", -5], "invalid_setting", "--swap-double is -5"),
        (["--compile-static"], "invalid_setting", "nothing is compiled"),
        (["--compile", "--compile-mode", "best"], "invalid_setting", "compile mode is 'best'"),
        (["--rope-scale", "1,2"], "invalid_setting", "three numbers"),
        (["--rope-scale", "1,2,x"], "invalid_setting", "--rope-scale is 'x'"),
        (["--rope-scale", "1,2,9"], "invalid_setting", "from 0.1 to 4"),
        (["--prefetch", -1], "invalid_setting", "--prefetch is -1"),
        (["--seed", "lucky"], "invalid_seed", "'lucky'"),
        (["--seed", -1], "invalid_seed", "-1"),
        (["--seed", 2**64], "invalid_seed", str(2**64)),
        (["--solver", "magic"], "invalid_setting", "euler, heun, dpmpp_2m, unipc"),
        (["--shift", 0], "invalid_setting", "from 0.01 to 100"),
        (["--shift", 1e30], "invalid_setting", "shift is 1e+30"),
        (["--guidance", 1e30], "invalid_guidance", "--guidance is 1e+30"),
        (["--cfg-scale", 1e30], "invalid_guidance", "--cfg-scale is 1e+30"),
        (["--fps", 0], "invalid_setting", "fps is 0"),
        (["--videos", 0], "invalid_setting", "videos is 0"),
        (["--strength", 0.5], "invalid_setting", "--input-video"),
        (["--template", "poem"], "invalid_setting", "video, image, none"),
        (["--template-text", "no place"], "invalid_template", "exactly one"),
        (["--tiles", "huge"], "invalid_tiles", "'huge', but must be reference, fit, none, or a whole number"),
        (["--tiles", 100], "invalid_tiles", "100"),
        (["--tiles", "none", "--shared-norms"], "invalid_tiles", "--shared-norms"),
        (["--tiles", "none", "--tile-frames", 16], "invalid_tiles", "--tiles is none"),
        (["--device", "toaster"], "invalid_setting", "cpu"),
        (["--dtype", "int8"], "invalid_setting", "bfloat16"),
        (["--storage-dtype", "int4"], "invalid_setting", "float8_e4m3fn"),
        (["--out", "video.avi"], "invalid_setting", ".mp4"),
        (["--out", "."], "invalid_setting", ".mp4"),
        (["--save-latents", "l.pt"], "invalid_setting", ".safetensors"),
        (["--unknown", 1], "bad_input", "--unknown"),
        (["--prompts-file", "none.txt"], "bad_input", "one of the two"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(generate, words, code, text):
    answer = generate(PROMPT, *words)
    assert (answer.code, answer.error) == (2, code)
    assert text in answer.message
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("prompt", "code"), [("", "empty_prompt"), (" \n\t ", "empty_prompt"), ("bad \udcff byte", "invalid_setting")]
)
def test_a_prompt_must_say_something(generate, prompt, code):
    answer = generate(prompt, "--out", "a.mp4")
    assert (answer.code, answer.error) == (2, code)
    assert list(Path().iterdir()) == []


def test_no_prompt_at_all_is_refused(generate):
    assert generate().error == "bad_input"


def test_files_that_are_not_named_are_asked_for(hyvideo, tiny_files):
    answer = hyvideo("generate", PROMPT, "--vae", tiny_files.vae)
    assert (answer.code, answer.error) == (2, "bad_input")
    assert "--transformer, --llm, --clip" in answer.message
    assert "hyvideo demo" in answer.message


def test_an_overlong_prompt_goes_on_and_tells_how_much_was_cut(generate):
    answer = generate("red " * 300, "--out", "a.mp4")
    assert answer.code == 0
    (warning,) = answer.report["warnings"]
    assert warning["code"] == "prompt_cut"
    assert "45 tokens" in warning["message"]  # 300 words and the template's <|eot_id|>, of which 256 are read
    assert "45 tokens" in answer.stderr
    assert answer.report["videos"][0]["warnings"] == [warning]


def test_a_missing_file_is_named(generate):
    answer = generate(PROMPT, "--vae", "nowhere/vae.safetensors")
    assert (answer.code, answer.error) == (2, "file_missing")
    assert "nowhere" in answer.message


def test_a_truncated_file_is_refused_with_the_missing_bytes(generate, tiny_files):
    Path("short.safetensors").write_bytes(tiny_files.transformer.read_bytes()[:-1000])
    answer = generate(PROMPT, "--transformer", "short.safetensors")
    assert (answer.code, answer.error) == (2, "file_truncated")
    assert "1000 are missing" in answer.message


def test_a_vae_given_as_transformer_is_named_as_what_it_is(generate, tiny_files):
    answer = generate(PROMPT, "--transformer", tiny_files.vae)
    assert (answer.code, answer.error) == (2, "wrong_kind")
    assert "vae.safetensors was given as a transformer (diffusion model), but it is a VAE" in answer.message


def test_a_file_that_is_no_model_is_refused(generate):
    Path("notes.safetensors").write_text("hello, this is text")
    answer = generate(PROMPT, "--llm", "notes.safetensors")
    assert (answer.code, answer.error) == (2, "file_unreadable")


def test_nothing_is_written_when_a_file_is_refused(generate, tiny_files):
    generate(PROMPT, "--out", "a.mp4", "--clip", tiny_files.vae)
    assert list(Path().iterdir()) == []


def test_an_existing_file_stays_unless_forced(generate):
    Path("a.mp4").write_text("precious")
    answer = generate(PROMPT, "--out", "a.mp4")
    assert (answer.code, answer.error) == (2, "output_exists")
    assert Path("a.mp4").read_text() == "precious"
    assert generate(PROMPT, "--out", "a.mp4", "--force").code == 0
    assert read_settings(Path("a.mp4"))["prompt"] == PROMPT


def test_a_folder_that_cannot_be_written_is_found_before_the_work(generate):
    Path("file").write_text("no folder")
    answer = generate(PROMPT, "--out", "file/a.mp4")
    assert (answer.code, answer.error) == (2, "output_not_writable")
    assert "loading" not in answer.stderr


def test_every_option_of_guidance_reaches_the_run(generate):
    words = ["--save-latents", "l.safetensors", "--force", "--out", "a.mp4"]
    variants = {
        "plain": [],
        "cfg": ["--cfg-scale", 3],
        "negative": ["--cfg-scale", 3, "--negative", "blue square"],
        "start": ["--cfg-scale", 3, "--cfg-start", 0.5],
        "end": ["--cfg-scale", 3, "--cfg-end", 0.5],
        "rescale": ["--cfg-scale", 3, "--cfg-rescale", 0.7],
        "guidance": ["--guidance", 1],
        "shift": ["--shift", 1],
        "solver": ["--solver", "heun"],
        "template": ["--template", "none"],
        "template text": ["--template-text", "<|eot_id|>the {} on"],
    }
    found = {}
    for name, extra in variants.items():
        assert generate(PROMPT, *words, *extra).code == 0
        found[name] = latents_of("l.safetensors")
    for a in found:
        for b in found:
            assert a == b or not torch.equal(found[a], found[b]), (a, b)
    assert generate(PROMPT, *words, "--cfg-scale", 3, "--cfg-in-turn").code == 0
    assert torch.allclose(latents_of("l.safetensors"), found["cfg"], atol=1e-4)


def test_prompts_from_a_file_are_all_made(generate):
    lines = [b"\xef\xbb\xbf# two prompts", b"", b"a red circle", b"  a blue square  \r", b""]
    Path("prompts.txt").write_bytes(b"\n".join(lines))
    answer = generate("--prompts-file", "prompts.txt", "--out", "a.mp4")
    assert answer.code == 0
    made = [(video["file"], video["prompt"], video["line"]) for video in answer.report["videos"]]
    assert made == [("a-1.mp4", "a red circle", 3), ("a-2.mp4", "a blue square", 4)]


def test_a_file_of_prompts_with_a_line_that_is_not_text_makes_nothing(generate):
    Path("prompts.txt").write_bytes(b"a red circle\nbroken \xff bytes\na blue square\n")
    answer = generate("--prompts-file", "prompts.txt", "--out", "a.mp4")
    assert (answer.code, answer.error) == (2, "prompt_file")
    assert "line 2" in answer.message
    assert [path.name for path in Path().iterdir()] == ["prompts.txt"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([PROMPT, "a \x1b[1mcat"], "invalid_setting", "Prompt 2 of 2 holds U+001B at character 3"),
        (
            [PROMPT, "--negative", "a\x00b", "--cfg-scale", 3],
            "invalid_setting",
            "The negative prompt holds U+0000 at character 2",
        ),
        ([PROMPT, "--template-text", "a\x07 {}"], "invalid_template", "The prompt template holds U+0007"),
        (["a c\ufffdt"], "invalid_setting", "The prompt holds U+FFFD at character 4"),
    ],
)
def test_text_that_a_wrong_decoding_made_is_refused_from_every_option(generate, words, code, told):
    answer = generate(*words, "--out", "a.mp4")
    assert (answer.code, answer.error) == (2, code)
    assert told in answer.message
    assert list(Path().iterdir()) == []


def test_a_prompt_among_others_makes_the_same_video_as_alone(generate):
    generate("a red circle", "a blue square moving up", "--out", "a.mp4", "--save-latents", "l.safetensors")
    generate("a blue square moving up", "--out", "b.mp4", "--save-latents", "b.safetensors")
    assert torch.equal(latents_of("l-2.safetensors"), latents_of("b.safetensors"))


def test_a_name_that_is_taken_stops_only_its_own_prompt(generate):
    Path("a-1.mp4").write_text("precious")
    answer = generate("a red circle", "a blue square", "--out", "a.mp4")
    assert (answer.code, answer.error) == (2, "output_exists")
    assert [video["file"] for video in answer.report["videos"]] == ["a-2.mp4"]
    assert [failed["prompt"] for failed in answer.report["failed"]] == ["a red circle"]


@pytest.mark.parametrize("content", [b"", b"# only\n\n#comments\n"])
def test_a_file_without_prompts_is_refused(generate, content):
    Path("prompts.txt").write_bytes(content)
    assert generate("--prompts-file", "prompts.txt").error == "prompt_file"
    assert generate("--prompts-file", "nowhere.txt").error == "prompt_file"


def test_a_broken_vae_keeps_the_latents_and_they_can_be_decoded_later(generate, hyvideo, tiny_files):
    tensors = load_file(tiny_files.vae)
    tensors["decoder.conv_out.conv.bias"] = torch.full_like(tensors["decoder.conv_out.conv.bias"], float("nan"))
    save_file(tensors, "nan.safetensors", {"hyvideo.config": json.dumps({"norm_groups": 4})})
    answer = generate(PROMPT, "--vae", "nan.safetensors", "--out", "a.mp4")
    assert (answer.code, answer.error) == (1, "non_finite")
    (failed,) = answer.report["failed"]
    kept = Path(failed["latents"])
    assert str(kept) in answer.message
    assert not Path("a.mp4").exists()

    whole = generate(PROMPT, "--out", "b.mp4")
    later = hyvideo("generate", "--decode", kept, "--vae", tiny_files.vae, "--out", "a.mp4")
    assert later.code == 0
    assert kept.exists()
    assert torch.equal(*(read_frames(Path(name), 32, 32, 5, 24) for name in ("a.mp4", "b.mp4")))
    timeless = [
        {k: v for k, v in a.report["videos"][0]["settings"].items() if k not in ("seconds", "files", "report")}
        for a in (whole, later)
    ]
    assert timeless[0] == timeless[1]


def test_decoding_needs_latents_of_this_vae(hyvideo, tiny_files):
    answer = hyvideo("generate", "--decode", tiny_files.llm, "--vae", tiny_files.vae)
    assert (answer.code, answer.error) == (2, "wrong_kind")
    save_file({"latent_tensor": torch.zeros(1, 4, 1, 4, 4)}, "l.safetensors")
    assert hyvideo("generate", "--decode", "l.safetensors", "--vae", tiny_files.vae).error == "invalid_size"


def test_a_video_is_changed_the_more_the_higher_the_strength(generate):
    generate(PROMPT, "--out", "in.mp4", "--frames", 9)
    found = {}
    for strength in (0.2, 0.6, 1.0):
        words = ["--input-video", "in.mp4", "--strength", strength, "--frames", 9, "--steps", 10, "--force"]
        answer = generate(PROMPT, *words, "--out", "out.mp4", "--save-latents", "l.safetensors")
        assert answer.code == 0
        found[strength] = latents_of("l.safetensors")
        assert answer.report["videos"][0]["settings"]["strength"] == strength
        assert "encode_video" in answer.report["videos"][0]["seconds"]
    generate(PROMPT, "--out", "noise.mp4", "--frames", 9, "--steps", 10, "--save-latents", "n.safetensors")
    assert torch.equal(found[1.0], latents_of("n.safetensors"))
    distances = [(found[strength] - found[1.0]).norm() for strength in (0.2, 0.6)]
    assert distances[0] > distances[1] > 0


def test_the_size_of_an_input_is_taken_over(hyvideo, generate, tiny_files):
    generate(PROMPT, "--out", "in.mp4", "--width", 48, "--frames", 9, "--save-latents", "in.safetensors")
    for words in (["--input-video", "in.mp4"], ["--input-latents", "in.safetensors"]):
        words = [*words, *tiny_files.arguments(), "--steps", 2, "--out", "out.mp4", "--force"]
        answer = hyvideo("generate", PROMPT, *words)
        settings = answer.report["videos"][0]["settings"]
        assert [settings[name] for name in ("width", "height", "frames", "strength")] == [48, 32, 9, 0.7]


def test_what_was_found_in_an_input_and_taken_of_it_is_told_and_written_down(generate, hyvideo, tiny_files):
    clip(Path("in.mp4"), 8, 19, "-vf", "scale=32:32,setsar=1", onset=0.0)
    words = [*tiny_files.arguments(), "--steps", 2, "--input-video", "in.mp4", "--out", "a.mp4"]
    answer = hyvideo("generate", PROMPT, *words, "--save-latents", "l.safetensors")
    assert answer.code == 0
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("Input in.mp4: ")]
    assert "19 frames of 32 x 32 at 8 per second" in line
    assert "frames 1 to 17, one by one, at 8 per second" in line
    assert "The last 2 are left out, as frames must be 4k + 1." in line
    assert line.endswith("Its sound is kept.")
    source = answer.report["input"]
    assert (source["taken"]["frames"], source["taken"]["fps"], source["taken"]["sound"]) == (17, 8.0, True)
    settings = read_settings(Path("a.mp4"))
    assert (settings["input"], settings["frames"], settings["fps"]) == (source, 17, 8.0)
    made = probe_video(Path("a.mp4"))
    assert (made.frames, made.rate, made.sound) == (17, 8, "aac")

    later = hyvideo("generate", "--decode", "l.safetensors", "--vae", tiny_files.vae, "--out", "later.mp4")
    assert "the sound of the input is lost" in later.stderr
    assert read_settings(Path("later.mp4"))["input"]["taken"]["sound"] is False
    assert probe_video(Path("later.mp4")).sound is None


def test_rate_and_number_of_an_inputs_frames_are_what_the_options_say(hyvideo, tiny_files):
    clip(Path("in.mp4"), 8, 9, "-vf", "scale=32:32,setsar=1")
    clip(Path("still.png"), 8, 1, "-vf", "scale=32:32,setsar=1")
    words = [*tiny_files.arguments(), "--steps", 1, "--out", "a.mp4", "--force", "--input-video"]
    for given, frames, fps, resampled in (
        (["in.mp4", "--frames", 5], 5, 8.0, False),
        (["in.mp4", "--fps", 16, "--frames", 17], 17, 16.0, True),
        (["still.png", "--fps", 8], 1, 8.0, False),
        (["still.png"], 1, 24.0, False),
    ):
        answer = hyvideo("generate", PROMPT, *words, *given)
        assert answer.code == 0
        taken = answer.report["input"]["taken"]
        assert (taken["frames"], taken["fps"], taken["resampled"]) == (frames, fps, resampled)
        assert probe_video(Path("a.mp4")).frames == frames


def test_inputs_that_do_not_fit_are_refused(generate):
    generate(PROMPT, "--out", "in.mp4", "--save-latents", "in.safetensors")
    assert generate(PROMPT, "--input-latents", "in.safetensors", "--frames", 9).error == "invalid_frames"
    assert generate(PROMPT, "--input-latents", "in.safetensors", "--width", 64).error == "invalid_size"
    short = generate(PROMPT, "--input-video", "in.mp4", "--frames", 9)
    assert (short.error, "--frames 5" in short.message) == ("invalid_frames", True)
    assert generate(PROMPT, "--input-video", "nowhere.mp4").error == "file_missing"
    assert generate(PROMPT, "--input-video", "in.safetensors").error == "file_unreadable"
    assert generate(PROMPT, "--input-video", "in.mp4", "--strength", 0).error == "invalid_setting"


def test_seconds_add_up_over_all_videos_though_they_share_stages(generate):
    generate(PROMPT, "--out", "in.mp4")
    answer = generate(PROMPT, "a blue square", "--videos", 2, "--input-video", "in.mp4", "--out", "a.mp4")
    videos = answer.report["videos"]
    assert sum(sum(video["seconds"].values()) for video in videos) <= answer.report["seconds"]
    own, of_prompt = {"sample", "decode", "write"}, {"encode_text", "load_transformer", "load_vae"}
    assert [set(video["seconds"]) - own - of_prompt for video in videos] == [
        {"load_text", "encode_video"},
        *[set()] * 3,
    ]
    assert [of_prompt <= set(video["seconds"]) for video in videos] == [True, False, True, False]
    assert all(own <= set(video["seconds"]) for video in videos)


def test_a_video_that_cannot_be_written_leaves_nothing_half_read(generate, monkeypatch):
    taken = []

    def write(path, frames, *_):
        taken.append(frames)
        next(frames)
        raise RunFailed("ffmpeg could not write it")

    monkeypatch.setattr(render, "write_video", write)
    words = ["--videos", 2, "--tiles", 32, "--shared-norms", "--width", 64, "--out", "a.mp4"]
    assert generate(PROMPT, *words).error == "run_failed"
    assert [frames.gi_frame for frames in taken] == [None, None]
