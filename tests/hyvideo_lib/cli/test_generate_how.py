"""`hyvideo generate`: options of how a video is computed: tiles, storage, swapped blocks, attention, compiling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hyvideo_lib.attention import BACKENDS, Backend
from hyvideo_lib.attention.sdpa import sdpa
from hyvideo_lib.cli import build_parser
from hyvideo_lib.cli.options import precision_options, rope_options
from hyvideo_lib.memory import fit
from hyvideo_lib.pipeline import load_latents
from hyvideo_lib.transformer import CompileConfig, RopeSettings, compiling
from hyvideo_lib.vae import CausalVideoVAE, TinyVAE, TinyVAEConfig
from hyvideo_lib.video import read_frames, read_settings

PROMPT = "a red circle moving left"


def latents_of(path: Path | str) -> torch.Tensor:
    return load_latents(Path(path))[0]


def test_tile_options_reach_the_vae(generate):
    for name, words in (("whole", ["--tiles", "none"]), ("small", ["--tiles", 32, "--tile-overlap", 0.25])):
        assert generate(PROMPT, "--width", 64, *words, "--out", f"{name}.mp4").code == 0
    whole, small = (read_frames(Path(f"{name}.mp4"), 64, 32, 5, 24) for name in ("whole", "small"))
    assert not torch.equal(whole, small)
    assert read_settings(Path("small.mp4"))["tiles"] == {
        "size": 32,
        "frames": 64,
        "overlap": 0.25,
        "shared_norms": False,
    }
    assert read_settings(Path("whole.mp4"))["tiles"] is None


def test_tiles_that_fit_are_chosen_and_written_down(generate):
    answer = generate(PROMPT, "--tiles", "fit", "--out", "a.mp4")
    assert answer.code == 0
    assert read_settings(Path("a.mp4"))["tiles"] is None  # in one piece
    assert generate(PROMPT, "--tiles", "fit", "--tile-frames", 16).error == "invalid_tiles"


def test_smaller_tiles_follow_when_memory_runs_out_and_the_file_says_which(generate, monkeypatch):
    monkeypatch.setattr(fit, "SIZES", (64, 32))
    pixels, left = CausalVideoVAE.pixels, [2]

    def fail(self, tile):
        if tile.is_meta:  # which is only counted
            return pixels(self, tile)
        left[0] -= 1
        if left[0] == 0:  # in the second span, when the first is in ffmpeg's hands
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return pixels(self, tile)

    size = ["--width", 64, "--height", 32, "--frames", 25]
    monkeypatch.setattr(CausalVideoVAE, "pixels", fail)
    answer = generate(PROMPT, *size, "--tiles", 64, "--tile-frames", 16, "--shared-norms", "--out", "a.mp4")
    assert answer.code == 0
    (video,) = answer.report["videos"]
    assert [warning["code"] for warning in video["warnings"]] == ["smaller_tiles"]
    assert answer.report["warnings"] == video["warnings"]
    tiles = read_settings(Path("a.mp4"))["tiles"]
    assert tiles == video["settings"]["tiles"] == {"size": 32, "frames": 16, "overlap": 0.25, "shared_norms": True}
    generate(PROMPT, *size, "--tiles", 32, "--tile-frames", 16, "--shared-norms", "--out", "b.mp4")
    assert torch.equal(*(read_frames(Path(name), 64, 32, 25, 24) for name in ("a.mp4", "b.mp4")))


def test_a_tiny_vae_decodes_previews_and_the_file_says_so(generate):
    torch.manual_seed(0)
    save_file(TinyVAE(TinyVAEConfig((8, 6, 4, 4))).state_dict(), "taehv.safetensors")
    answer = generate(PROMPT, "--vae", "taehv.safetensors", "--out", "a.mp4")
    assert answer.code == 0
    assert read_frames(Path("a.mp4"), 32, 32, 9, 24).shape == (5, 32, 32, 3)
    settings = read_settings(Path("a.mp4"))
    assert (settings["preview"], settings["tiles"], settings["files"]["vae"]) == (True, None, "taehv.safetensors")
    refused = generate(PROMPT, "--vae", "taehv.safetensors", "--input-video", "a.mp4", "--out", "b.mp4")
    assert (refused.code, refused.error) == (2, "invalid_setting")
    assert "only decodes previews" in refused.message


def test_fp8_storage_and_bf16_compute_can_be_asked_for(generate):
    answer = generate(PROMPT, "--storage-dtype", "float8_e4m3fn", "--dtype", "bfloat16", "--out", "a.mp4")
    settings = answer.report["videos"][0]["settings"]
    assert (settings["storage_dtype"], settings["dtype"]) == ("float8_e4m3fn", "bfloat16")


def test_swapped_blocks_make_the_same_video(generate):
    words = ("--swap-double", 1, "--swap-single", 1, "--prefetch", 2)
    assert generate(PROMPT, "--seed", 1, "--out", "a.mp4").code == 0
    assert generate(PROMPT, "--seed", 1, *words, "--out", "b.mp4").code == 0
    frames = [read_frames(Path(f"{name}.mp4"), 64, 32, 5, 24) for name in "ab"]
    assert torch.equal(*frames)
    assert generate(PROMPT, "--swap-double", -2, "--out", "c.mp4").error == "invalid_setting"
    assert generate(PROMPT, "--prefetch", "many", "--out", "c.mp4").error == "invalid_setting"


def test_fp8_products_are_taken_where_there_are_fp8_weights(generate):
    words = ("--dtype", "bfloat16", "--matmul", "fp8")
    refused = generate(PROMPT, *words, "--storage-dtype", "bfloat16", "--out", "a.mp4")
    assert (refused.code, refused.error) == (2, "invalid_setting")
    assert "loading" not in refused.stderr
    answer = generate(PROMPT, *words, "--storage-dtype", "float8_e4m3fn", "--out", "a.mp4")
    if answer.error and "too slow on this processor" in answer.message:
        pytest.skip("this processor multiplies fp8 too slowly, and is refused")
    assert answer.report["videos"][0]["settings"]["matmul"] == "fp8"


def test_the_attention_that_ran_is_told_and_one_that_cannot_run_is_refused_before_anything_is_loaded(
    generate, monkeypatch
):
    answer = generate(PROMPT, "--out", "a.mp4")
    assert answer.report["videos"][0]["settings"]["attention"] == "sdpa"

    def gone():
        raise ModuleNotFoundError("No module named 'sageattention'")

    monkeypatch.setitem(BACKENDS, "sage", Backend("sage", gone, "Install it."))
    refused = generate(PROMPT, "--out", "b.mp4", "--attention", "sage")
    assert (refused.code, refused.error) == (2, "missing_package")
    assert "loading" not in refused.stderr
    assert generate(PROMPT, "--out", "b.mp4", "--attention", "magic").error == "invalid_setting"


def test_an_attention_that_is_wrong_at_the_runs_size_alone_is_refused_before_anything_is_loaded(generate, monkeypatch):
    def shorter(q, k, v):
        return sdpa(q, k, v) * (1 - 40 / (k.shape[2] + 40))

    monkeypatch.setitem(BACKENDS, "shorter", Backend("shorter", lambda: shorter, "Mend it."))
    refused = generate(PROMPT, "--out", "a.mp4", "--attention", "shorter")
    assert (refused.code, refused.error) == (2, "invalid_setting")
    assert "gives wrong numbers for 264 tokens" in refused.message
    assert "loading" not in refused.stderr


@pytest.mark.parametrize(("option", "scope"), [("--compile", "blocks"), ("--compile-pieces", "pieces")])
def test_compiling_is_an_option_and_stands_in_the_settings(generate, monkeypatch, option, scope):
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda fn, backend, **options: original(fn, backend="eager", **options))
    forget_compiled()
    plain = generate(PROMPT, "--seed", 1, "--out", "a.mp4").report["videos"][0]["settings"]
    settings = generate(PROMPT, "--seed", 1, option, "--out", "b.mp4").report["videos"][0]["settings"]
    forget_compiled()
    assert plain["compile"] is plain["compile_asked"] is None
    asked = {"backend": "inductor", "mode": "default", "dynamic": True, "scope": scope}
    assert settings["compile"] == settings["compile_asked"] == asked
    assert settings["report"]["stages"]["sample"]["uncompiled"] is None
    refused = generate(PROMPT, "--out", "c.mp4", "--compile", "--compile-pieces")
    assert (refused.code, refused.error) == (2, "bad_input")
    frames = [read_frames(Path(f"{name}.mp4"), 64, 32, 5, 24).float() for name in "ab"]
    assert (frames[0] - frames[1]).abs().max() <= 16


def forget_compiled() -> None:
    for made in (compiling.compiled_pieces, compiling.compiled_chunks, compiling._failure):
        made.cache_clear()


def test_a_run_whose_blocks_could_not_be_compiled_says_so_everywhere(generate, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda fn, backend, **options: original(fn, backend=full, **options))
    forget_compiled()
    answer = generate(PROMPT, "--compile-pieces", "--videos", 2, "--out", "a.mp4")
    forget_compiled()
    told = [record.message for record in caplog.records if "uncompiled" in record.message]
    assert told == ["The blocks run uncompiled: [Errno 28] No space left on device."] * 2
    for number, video in enumerate(answer.report["videos"], 1):
        (warning,) = video["warnings"]
        assert warning["code"] == "uncompiled"
        assert "No space left on device" in warning["message"]
        for settings in (video["settings"], read_settings(Path(f"a-{number}.mp4"))):
            assert settings["compile"] is None
            assert settings["compile_asked"]["scope"] == "pieces"
            assert "No space left" in settings["report"]["stages"]["sample"]["uncompiled"]
    assert len(answer.report["warnings"]) == 2


def test_compiling_and_positions_can_be_told_in_full():
    words = ["generate", PROMPT, "--compile-pieces", "--compile-mode", "max-autotune-no-cudagraphs"]
    words += ["--compile-backend", "eager", "--compile-static", "--rope-scale", "1,0.5,2"]
    options = build_parser().parse_args(words)
    assert precision_options(options).compiling == CompileConfig(
        "eager", "max-autotune-no-cudagraphs", dynamic=False, scope="pieces"
    )
    assert rope_options(options) == RopeSettings(False, (1.0, 0.5, 2.0))


def test_a_rope_scale_changes_the_video_and_is_in_the_file(generate):
    for name, words in (("plain", []), ("scaled", ["--rope-scale", "1,0.5,0.5"])):
        answer = generate(PROMPT, *words, "--out", f"{name}.mp4", "--save-latents", f"{name}.safetensors")
        assert answer.code == 0, answer.stderr
    assert answer.report["videos"][0]["settings"]["rope_scale"] == [1.0, 0.5, 0.5]
    assert not torch.equal(latents_of("plain.safetensors"), latents_of("scaled.safetensors"))
