from __future__ import annotations

import pytest
import torch
from graph import run, validate
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def latents(embeds, model, pack):
    """A clip of the demo, 5 frames of 64 x 64."""
    empty = {"samples": torch.zeros(1, 16, 2, 8, 8)}
    inputs = {"model": model, "embeds": embeds, "latents": empty, "steps": 2, "guidance": 2.0, "shift": 3.0}
    return run(pack.nodes.sample.Sampler, **inputs)[0]


@pytest.fixture
def decode(pack, vae):
    def decode(latents, **inputs):
        return run(pack.nodes.decode.Decode, vae=vae, latents=latents, **inputs)[0]

    return decode


def expected(vae, samples: torch.Tensor, tiles=None) -> torch.Tensor:
    """The library's answer as ComfyUI's images."""
    return (vae.vae.decode(samples, tiles)[0].permute(1, 2, 3, 0) / 2 + 0.5).clamp(0, 1)


def test_latents_become_images(decode, latents, vae):
    frames = decode(latents)
    assert (frames.shape, frames.dtype, frames.device.type) == ((5, 64, 64, 3), torch.float32, "cpu")
    assert frames.min() >= 0
    assert frames.max() <= 1
    assert frames.is_contiguous()
    assert torch.equal(frames, expected(vae, latents["samples"]))


def test_a_video_smaller_than_a_tile_is_the_same_in_every_mode(decode, latents):
    whole = decode(latents, tiles="none")
    for mode in ("reference", "fit"):
        assert torch.equal(decode(latents, tiles=mode), whole)
    assert torch.equal(decode(latents, tiles="custom", tile_size=64, tile_frames=16), whole)


def test_custom_tiles_are_the_librarys(decode, latents, vae, pack):
    frames = decode(latents, tiles="custom", tile_size=32, tile_frames=16)
    assert torch.equal(frames, expected(vae, latents["samples"], pack.hyvideo_lib.vae.Tiles(32, 16)))
    assert not torch.equal(frames, decode(latents, tiles="none"))


def test_tiles_can_share_their_norms(decode, latents, vae, pack):
    frames = decode(latents, tiles="custom", tile_size=32, tile_frames=16, shared_norms=True)
    tiles = pack.hyvideo_lib.vae.Tiles(32, 16, shared_norms=True)
    assert torch.equal(frames, expected(vae, latents["samples"], tiles))
    assert not torch.equal(frames, decode(latents, tiles="custom", tile_size=32, tile_frames=16))
    assert torch.equal(decode(latents, tiles="none", shared_norms=True), decode(latents, tiles="none"))


def test_fitting_tiles_shrink_with_the_memory(pack, vae):
    work = pack.hyvideo_lib.pipeline.VAEWork.of(vae.vae, 129, 720, 1280, torch.device("cpu"))

    def chosen(free: int):
        return pack.nodes.decode.choose_tiles(work, "fit", 256, 64, False, lambda: free)

    whole = work.working_bytes(None)
    assert chosen(whole) is None
    tiles = [chosen(whole // part) for part in (2, 8, 64)]
    sizes = [tile.size**2 * tile.frames for tile in tiles]
    assert sizes == sorted(set(sizes), reverse=True)
    assert (chosen(0).size, chosen(0).frames) == (128, 16)


def test_fit_looks_at_the_memory_of_the_vaes_device(decode, latents, vae, pack, mm, monkeypatch):
    monkeypatch.setattr(pack.hyvideo_lib.memory.fit, "SIZES", (64, 32))
    small = pack.hyvideo_lib.vae.Tiles(32, 16)
    mm.pretend(limit=vae.managed.model_size() + 2**10)
    assert torch.equal(decode(latents, tiles="fit"), expected(vae, latents["samples"], small))


def test_a_still_image_is_one_frame(decode):
    frames = decode({"samples": torch.zeros(1, 16, 4, 4)})
    assert frames.shape == (1, 32, 32, 3)


def test_videos_of_a_batch_stand_one_after_the_other(decode):
    samples = torch.randn(2, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    both = decode({"samples": samples})
    single = [decode({"samples": row}) for row in samples.split(1)]
    assert torch.equal(both, torch.cat(single))


@pytest.mark.parametrize("shape", [(1, 4, 2, 4, 4), (1, 128, 2, 4, 4), (16, 4, 4), (0, 16, 2, 4, 4), (1, 16, 0, 4, 4)])
def test_latents_of_other_models_are_refused(decode, pack, shape):
    with pytest.raises(pack.hyvideo_lib.errors.InvalidSetting, match=r"^The latents are \[.*\[invalid_setting\]$"):
        decode({"samples": torch.zeros(shape)})


def test_black_videos_are_refused(decode, pack):
    with pytest.raises(pack.hyvideo_lib.errors.NonFiniteOutput, match=r"float32.*\[non_finite\]$"):
        decode({"samples": torch.full((1, 16, 1, 2, 2), float("nan"))})


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"tiles": "huge"}, "tiles is 'huge'"),
        ({"tile_size": 16}, "tile_size is 16, but must be at least 32."),
        ({"tile_frames": 4096}, "tile_frames is 4096"),
        ({"tiles": "custom", "tile_size": 40}, "multiples of 32"),
        ({"tiles": "custom", "tile_frames": 20}, "multiples of 16"),
    ],
)
def test_tiles_that_cannot_be_are_refused_before_the_run(pack, inputs, said):
    assert said in validate(pack.nodes.decode.Decode, **inputs)


def test_custom_numbers_count_only_for_custom_tiles(pack):
    assert validate(pack.nodes.decode.Decode, tiles="fit", tile_size=40, tile_frames=20) is True
    assert validate(pack.nodes.decode.Decode, tiles=None, tile_size=None, tile_frames=None) is True


def test_impossible_tiles_are_refused_in_the_run_as_well(decode, latents, pack):
    with pytest.raises(pack.hyvideo_lib.errors.InvalidTiles, match=r"\[invalid_tiles\]$"):
        decode(latents, tiles="custom", tile_size=40)


def test_every_tile_moves_the_bar_and_the_text(decode, latents, bars, texts):
    decode(latents, tiles="custom", tile_size=32, tile_frames=16)
    assert bars.shown == [(i, 9) for i in range(1, 10)]
    assert bars.nodes == {"7"}
    assert texts()[0] == "decoding"
    assert texts()[-2].startswith("decoding 9/9, ")
    assert texts()[-1].endswith(", tiles 32 x 32 x 16, overlap 0.25")  # the report


def test_the_time_left_is_that_of_one_video(decode, bars, texts):
    """Each video of a batch has a bar of its own, so that seconds per tile start anew."""
    decode({"samples": torch.zeros(2, 16, 1, 2, 2)})
    assert bars.shown == [(1, 1), (1, 1)]
    assert [text.split(",")[0] for text in texts()].count("decoding") == 2


def test_cancelling_stops_at_the_next_tile(decode, latents, bars, mm):
    bars.on_update = lambda value, total: mm.interrupt_current_processing() if value == 2 else None
    with pytest.raises(mm.InterruptProcessingException):
        decode(latents, tiles="custom", tile_size=32, tile_frames=16)
    assert bars.shown[-1] == (2, 9)
    assert not mm.processing_interrupted()


@pytest.fixture
def out_of_memory(vae, monkeypatch):
    """out_of_memory(times): so many tiles from now on find no memory."""
    pixels = vae.vae.pixels

    def arm(times: int) -> list[torch.Size]:
        seen: list[torch.Size] = []

        def fail(tile):
            seen.append(tile.shape)
            if len(seen) <= times:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return pixels(tile)

        monkeypatch.setattr(vae.vae, "pixels", fail)
        return seen

    return arm


@pytest.fixture
def ladder(pack, monkeypatch):
    """Smaller tiles than users get, for the demo's small videos."""
    monkeypatch.setattr(pack.hyvideo_lib.memory.fit, "SIZES", (64, 32))


@pytest.mark.usefixtures("ladder")
def test_smaller_tiles_follow_when_memory_runs_out(decode, latents, vae, pack, out_of_memory, texts, folder, caplog):
    wanted = expected(vae, latents["samples"], pack.hyvideo_lib.vae.Tiles(32, 16))
    seen = out_of_memory(1)
    assert torch.equal(decode(latents, tiles="none"), wanted)
    assert seen[0][3:] == (8, 8)
    assert {tuple(shape[3:]) for shape in seen[1:]} <= {(4, 4), (4, 2), (2, 4), (2, 2)}
    message = "Memory ran out while decoding in one piece; it starts again in tiles of 32 pixels and 16 frames"
    assert any(text.startswith(message) for text in texts())
    assert message in caplog.text
    assert texts()[-1].endswith("asked for none, memory ran out, so: tiles of 32 pixels and 16 frames after one piece")
    assert list(folder("temp").iterdir()) == []


@pytest.mark.usefixtures("ladder")
def test_memory_that_runs_out_in_the_smallest_tiles_is_told_with_numbers_and_the_latents_kept(
    decode, latents, pack, vae, mm, out_of_memory, folder
):
    seen = out_of_memory(99)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        decode(latents, tiles="custom", tile_size=64, tile_frames=32)
    assert [tuple(shape[3:]) for shape in seen] == [(8, 8), (4, 4)]
    (kept,) = folder("output").iterdir()
    assert list(folder("temp").iterdir()) == []
    message = str(caught.value)
    assert "in tiles of 32 pixels and 16 frames; no smaller tiles are left" in message
    assert "GiB" in message
    assert str(kept) in message
    assert message.endswith("[out_of_memory]")
    assert vae.managed.loaded_size() == 0
    assert torch.equal(pack.hyvideo_lib.pipeline.load_latents(kept)[0], latents["samples"])


def test_latents_are_in_the_temporary_folder_while_they_are_decoded(decode, latents, bars, folder):
    kept = []
    bars.on_update = lambda value, total: kept.append(load_file(next(folder("temp").iterdir())))
    decode(latents)
    (tensors,) = kept
    assert sorted(tensors) == ["latent_format_version_0", "latent_tensor"]  # what ComfyUI's Load Latent looks for
    assert torch.equal(tensors["latent_tensor"], latents["samples"])
    assert list(folder("temp").iterdir()) == []


def test_cancelled_latents_stay_in_the_temporary_folder(decode, latents, bars, mm, folder):
    bars.on_update = lambda value, total: mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        decode(latents, tiles="custom", tile_size=32, tile_frames=16)
    (kept,) = folder("temp").iterdir()
    assert torch.equal(load_file(kept)["latent_tensor"], latents["samples"])
    assert list(folder("output").iterdir()) == []


def test_every_video_of_a_batch_is_kept_in_a_file_that_decodes(decode, pack, out_of_memory, folder):
    samples = torch.randn(2, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    out_of_memory(99)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        decode({"samples": samples})
    kept = [path for path in folder("output").iterdir() if str(path) in str(caught.value)]
    found = [pack.hyvideo_lib.pipeline.load_latents(path)[0] for path in kept]
    assert len(found) == 2
    assert all(any(torch.equal(row, one) for one in found) for row in samples.split(1))


@pytest.mark.parametrize("free", [None, 1000])
def test_frames_that_ram_cannot_hold_are_told_with_numbers_and_the_latents_kept(
    decode, latents, pack, folder, monkeypatch, free
):
    def fail(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(pack.nodes.decode, "free_ram_bytes", lambda: free)
    monkeypatch.setattr(pack.nodes.decode, "free_swap_bytes", lambda: 0)
    if free is None:
        monkeypatch.setattr(pack.nodes.decode.torch, "empty", fail)
    with pytest.raises(
        torch.OutOfMemoryError, match=r"5 of 64 x 64 pixels take 0.00 GiB.*\[out_of_memory\]$"
    ) as caught:
        decode(latents)
    (kept,) = folder("output").iterdir()
    assert str(kept) in str(caught.value)


def test_a_full_temporary_folder_stops_nobody(decode, latents, folder, tmp_path):
    folder("output")
    (tmp_path / "comfyui" / "temp").write_text("no folder")
    assert decode(latents).shape[0] == 5


def test_the_vae_leaves_the_device_when_comfyui_asks(decode, latents, vae, mm):
    before = decode(latents)
    assert vae.managed.loaded_size() == vae.managed.model_size()
    mm.unload_all_models()
    assert vae.managed.loaded_size() == 0
    assert torch.equal(decode(latents), before)


# A tiny VAE


@pytest.fixture
def tiny(pack, folder):
    """A TAEHV file of few channels in ComfyUI's folder for previews' decoders, loaded."""
    vae = pack.hyvideo_lib.vae
    torch.manual_seed(0)
    save_file(vae.TinyVAE(vae.TinyVAEConfig((8, 6, 4, 4))).state_dict(), folder("models/vae_approx") / "t.safetensors")
    return run(pack.nodes.load.LoadVAE, file="t.safetensors")[0]


def test_a_tiny_vae_decodes_previews(pack, tiny, latents):
    assert repr(tiny) == "HYV_VAE(tiny, for previews, 16 channels, float32)"
    for mode in ("reference", "fit", "none"):
        (frames,) = run(pack.nodes.decode.Decode, vae=tiny, latents=latents, tiles=mode)
        assert torch.equal(frames, expected(tiny, latents["samples"]))
    assert frames.std() > 0


def test_a_tiny_vae_encodes_nothing(pack, tiny):
    with pytest.raises(pack.hyvideo_lib.errors.InvalidSetting, match=r"only decodes previews.*\[invalid_setting\]$"):
        run(pack.nodes.latents.EncodeVideo, vae=tiny, frames=torch.zeros(1, 32, 32, 3))


def test_a_vae_without_an_encoder_decodes_and_says_at_once_that_it_does_not_encode(pack, folder, latents, monkeypatch):
    weights = load_file(pack.hyvideo_lib.demo.assets.VAE)
    decoder = {name: tensor for name, tensor in weights.items() if name.startswith(("decoder.", "post_quant_conv."))}
    save_file(decoder, folder("models/vae") / "d.safetensors", {"hyvideo.config": '{"norm_groups": 4}'})
    vae = run(pack.nodes.load.LoadVAE, file="d.safetensors")[0]
    (frames,) = run(pack.nodes.decode.Decode, vae=vae, latents=latents)
    assert torch.equal(frames, expected(vae, latents["samples"]))
    monkeypatch.setattr(pack.nodes.latents, "run_in_tiles", None)  # no work is begun
    with pytest.raises(pack.hyvideo_lib.errors.InvalidSetting, match="only a decoder"):
        run(pack.nodes.latents.EncodeVideo, vae=vae, frames=torch.zeros(1, 32, 32, 3))


def test_a_tiny_vae_without_memory_is_told_at_once(pack, tiny, latents, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(tiny.vae, "_advance", fail)
    with pytest.raises(torch.OutOfMemoryError, match="in one piece; no smaller tiles are left"):
        run(pack.nodes.decode.Decode, vae=tiny, latents=latents)
