from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from hyvideo_lib.errors import DiskFull, EmptyPrompt, Interrupted, NonFiniteOutput, OutOfMemory
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.pipeline import STAGES, Clock, Files, GenerateRequest, PixelStage, Precision, generate
from hyvideo_lib.pipeline.clock import describe_shortage
from hyvideo_lib.sampling import GuidanceConfig
from hyvideo_lib.vae import Tiles

REQUEST = GenerateRequest("a red circle", width=32, height=32, frames=5, steps=2, seed=5)


@pytest.fixture
def files(tiny_files) -> Files:
    return Files(**vars(tiny_files))


def test_a_prompt_becomes_frames(files):
    result = generate(REQUEST, files)
    assert (result.frames.shape, result.frames.dtype) == ((1, 5, 32, 32, 3), torch.uint8)
    assert result.latents.shape == (1, 16, 2, 4, 4)
    assert result.seeds == [5]
    assert result.frames.float().std() > 1


def test_two_runs_are_bit_equal_and_videos_are_those_of_their_seeds(files):
    both = generate(replace(REQUEST, videos=2), files)
    again = generate(replace(REQUEST, seed=6), files)
    assert torch.equal(both.latents[1:], again.latents)
    assert torch.equal(both.frames[1:], again.frames)
    assert both.seeds == [5, 6]


def test_stages_come_in_an_order_that_never_holds_two_models(files):
    stages = []
    generate(REQUEST, files, HeadlessHost(on_stage=lambda name, total: stages.append(name)))
    assert stages == [
        "loading text encoders",
        "encoding text",
        "loading transformer",
        "sampling",
        "loading VAE",
        "decoding",
    ]


def test_models_are_gone_when_the_next_are_loaded(files):
    import gc

    def modules() -> list[torch.nn.Module]:
        gc.collect()
        return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.nn.Module)]

    alive = {}
    others = modules()  # kept alive here, so that no new module can have the id of an old one
    known = {id(module) for module in others}

    def look(name: str, total: int) -> None:
        alive[name] = {type(module).__name__ for module in modules() if id(module) not in known}

    generate(REQUEST, files, HeadlessHost(on_stage=look))
    assert "LlamaTextEncoder" in alive["encoding text"]
    assert not {"LlamaTextEncoder", "ClipTextEncoder"} & alive["loading transformer"]
    assert "HunyuanVideoTransformer" in alive["sampling"]
    assert "HunyuanVideoTransformer" not in alive["loading VAE"]
    assert "CausalVideoVAE" in alive["decoding"]


def test_seconds_are_told_per_stage(files):
    result = generate(REQUEST, files)
    assert list(result.seconds) == ["load_text", "encode_text", "load_transformer", "sample", "load_vae", "decode"]
    assert all(value >= 0 for value in result.seconds.values())
    assert {name: stage.seconds for name, stage in result.report.stages.items()} == result.seconds


def test_cancelling_stops_within_a_step(files):
    host = HeadlessHost(on_step=lambda done, total: host.cancel())
    with pytest.raises(Interrupted):
        generate(REQUEST, files, host)


def test_bad_input_touches_no_file():
    nowhere = Files(*(None,) * 4)  # type: ignore[arg-type]
    with pytest.raises(EmptyPrompt):
        generate(replace(REQUEST, prompt=" "), nowhere)


def test_given_latents_steer_the_run(files):
    start = torch.full((1, 16, 2, 4, 4), 0.5)
    near = generate(replace(REQUEST, strength=0.1, steps=10), files, start=start)
    far = generate(replace(REQUEST, steps=10), files)
    assert (near.latents - start).norm() < (far.latents - start).norm()


def test_the_negative_prompt_counts_only_with_cfg(files):
    plain = generate(replace(REQUEST, negative_prompt="blue"), files)
    assert torch.equal(plain.latents, generate(REQUEST, files).latents)
    guided = replace(REQUEST, guidance=GuidanceConfig(cfg_scale=4.0))
    assert not torch.equal(
        generate(guided, files).latents, generate(replace(guided, negative_prompt="blue square"), files).latents
    )


def test_each_precision_reaches_its_stage(files):
    exact = generate(REQUEST, files)
    assert torch.equal(generate(REQUEST, files, precision=Precision("float32")).frames, exact.frames)
    for changed in (Precision(compute="bfloat16"), Precision(text="bfloat16"), Precision(storage="float8_e4m3fn")):
        latents = generate(REQUEST, files, precision=changed).latents
        assert latents.isfinite().all()
        assert not torch.equal(latents, exact.latents), changed
    decoded = generate(REQUEST, files, precision=Precision(vae="bfloat16"))
    assert torch.equal(decoded.latents, exact.latents)
    assert not torch.equal(decoded.frames, exact.frames)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_every_way_to_run_out_of_memory_is_one_error(error):
    with pytest.raises(OutOfMemory, match=r"while decoding: .*--vae-dtype"), Clock(HeadlessHost()).stage("decode"):
        raise error


CUDA_SAYS = "CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity of 7.79 GiB of which ..."
CPU_SAYS = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 3221225472 bytes. Error code 12"


@pytest.mark.parametrize(
    ("said", "device", "asked", "place"),
    [(CUDA_SAYS, "meta", "0.50 GiB", "of the device"), (CPU_SAYS, "cpu", "3.00 GiB", "of RAM")],
)
def test_a_shortage_is_told_in_numbers_and_not_in_the_allocators_words(monkeypatch, said, device, asked, place):
    monkeypatch.setattr("hyvideo_lib.pipeline.clock.free_ram_bytes", lambda: 2**30)
    monkeypatch.setattr("hyvideo_lib.pipeline.clock.free_device_bytes", lambda device: 2**30)
    told = describe_shortage("encode_text", RuntimeError(said), torch.device(device))
    assert f"Memory ran out while encoding text: {asked} more were asked for, 1.00 GiB {place} are free. Use" in told
    assert not any(words in told for words in ("Allocator", "CUDA", "capacity"))
    assert ("--device cpu" in told) == (device != "cpu")


@pytest.mark.parametrize("name", STAGES)
def test_on_a_cpu_no_advice_is_to_swap_blocks_or_to_go_there(name):
    told = describe_shortage(name, MemoryError(), torch.device("cpu"))
    assert not any(option in told for option in ("--swap", "--device cpu"))
    assert "--storage-dtype float8" not in told


def test_other_errors_go_through():
    with pytest.raises(RuntimeError, match="shapes"), Clock(HeadlessHost()).stage("decode"):
        raise RuntimeError("shapes cannot be multiplied")


def test_more_steps_than_are_remembered_give_the_same_video(files, monkeypatch):
    from hyvideo_lib.memory import memo
    from hyvideo_lib.pipeline import sampler

    expected = generate(replace(REQUEST, steps=5), files)
    monkeypatch.setattr(memo, "KEPT", 2)
    monkeypatch.setattr(sampler, "KEPT", 2)
    assert torch.equal(generate(replace(REQUEST, steps=5), files).latents, expected.latents)


# Frames as they are done


@pytest.fixture
def pixels(files):
    with closing(PixelStage(files.vae, Precision(), HeadlessHost(), Clock(HeadlessHost()))) as stage:
        yield stage


LATENTS = torch.randn(1, 16, 8, 5, 5, generator=torch.Generator().manual_seed(0))
TILES = Tiles(32, 16)


def test_the_stream_is_the_decoded_video_in_parts(pixels):
    parts = list(pixels.stream(LATENTS, TILES, Clock(HeadlessHost())))
    assert [len(part) for part in parts] == [13, 12, 4]
    whole = pixels.decode(LATENTS, TILES, Clock(HeadlessHost()))
    assert whole.shape == (29, 40, 40, 3)
    assert torch.equal(torch.cat(parts), whole)


def test_what_is_done_with_a_part_is_not_the_decoders_time(pixels):
    clock = Clock(HeadlessHost())
    with clock.stage("write"):
        for _ in pixels.stream(LATENTS, TILES, clock):
            time.sleep(0.2)
    assert list(clock.seconds) == ["decode", "write"]
    assert clock.seconds["write"] >= 0.6
    assert sum(clock.seconds.values()) < 0.6 + 2 * clock.seconds["decode"] + 0.1


def test_a_stream_is_announced_once(pixels):
    stages = []
    clock = Clock(HeadlessHost(on_stage=lambda name, total: stages.append(name)))
    assert len(list(pixels.stream(LATENTS, TILES, clock))) == 3
    assert stages == ["decoding"]


def test_an_error_that_is_kept_keeps_no_half_read_video(pixels, monkeypatch):
    opened = []

    def decode_spans(*args):
        opened.append(spans(*args))
        return opened[-1]

    def fail(parts, tiles):
        opened.append(parts)
        next(parts)
        raise DiskFull("no room")

    spans = pixels._vae.decode_spans
    monkeypatch.setattr(pixels._vae, "decode_spans", decode_spans)
    with pytest.raises(DiskFull) as kept:
        pixels.render(LATENTS, TILES, Clock(HeadlessHost()), fail)
    assert kept.tb is not None
    assert [generator.gi_frame for generator in opened] == [None, None]


def test_numbers_that_break_in_a_later_part_end_the_stream_there(pixels):
    latents = LATENTS.clone()
    spans = pixels.stream(latents, TILES, Clock(HeadlessHost()))
    assert len(next(spans)) == 13
    bias = pixels._vae.decoder.conv_out.conv.bias
    bias.data = torch.full_like(bias, float("nan"))  # mapped weights are not for writing
    with pytest.raises(NonFiniteOutput, match="The decoded pixels"):
        next(spans)


def test_a_black_stream_is_told_at_its_end(pixels, caplog):
    for parameter in pixels._vae.parameters():
        parameter.data = torch.zeros_like(parameter)
    stream = pixels.stream(LATENTS, TILES, Clock(HeadlessHost()))
    for _ in range(3):
        next(stream)
        assert not caplog.records
    assert next(stream, None) is None
    assert "All 29 frames are of one colour" in caplog.text
