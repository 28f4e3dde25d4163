"""What a plan advises where the demo's model does not fit: each line is true, and nothing is said that is set."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch

from hyvideo_lib.attention import AUTO
from hyvideo_lib.caches import CacheConfig
from hyvideo_lib.checkpoint import load_vae
from hyvideo_lib.demo import assets
from hyvideo_lib.memory import BlockSwap
from hyvideo_lib.memory.machine import Machine
from hyvideo_lib.memory.plan import Way, Weights, plan_stage
from hyvideo_lib.pipeline import GenerateRequest, Precision
from hyvideo_lib.pipeline.plan import _plan_sample
from hyvideo_lib.pipeline.plan_advice import SampleAdvice, advise_text, advise_vae, fewer_frames, half_size
from hyvideo_lib.pipeline.sampler import offload_transformer
from hyvideo_lib.pipeline.sketch import sketch_text, sketch_transformer
from hyvideo_lib.sampling import GuidanceConfig
from hyvideo_lib.transformer import HunyuanVideoTransformer

CUDA = torch.device("cuda")
REQUEST = GenerateRequest("-", width=64, height=64, frames=17, steps=4, cache=CacheConfig("teacache"))
MIB = 2**20


@pytest.fixture(autouse=True)
def _small_reserve(monkeypatch):
    monkeypatch.setattr("hyvideo_lib.memory.plan.RESERVE_BYTES", 0)  # the demo model is small


@cache
def sketch(storage: str | None = None) -> HunyuanVideoTransformer:
    return sketch_transformer(assets.TRANSFORMER, Precision(storage=storage), CUDA)


def advise(
    machine: Machine,
    swap: BlockSwap,
    request: GenerateRequest = REQUEST,
    is_mapped: bool = True,
    is_fixed: bool = False,
) -> list[str]:
    stage, work = _plan_sample(request, sketch(), AUTO, is_mapped, machine, swap)
    assert not stage.fits
    slim = sketch("float8_e4m3fn")
    narrow = replace(work, model=slim, source=offload_transformer(slim, swap))
    return list(SampleAdvice(stage, request, work, machine, swap, narrow, is_fixed).lines())


def needed(swap: BlockSwap) -> int:
    stage, _ = _plan_sample(REQUEST, sketch(), AUTO, True, Machine(0), swap)
    return stage.device_short


def test_what_would_make_sampling_fit_is_said_with_its_bytes():
    lines = advise(Machine(needed(BlockSwap()) - 1), BlockSwap())
    options = [line.split()[1].rstrip(":") for line in lines]
    assert options == ["--storage-dtype", "--prefetch", "--cache-on-host", "--frames"]
    assert all(re.search(r"it fits then, with \d+\.\d\d GiB$", line) for line in lines)


def test_with_cfg_what_is_advised_is_counted_in_turn_as_a_run_would_begin():
    request = replace(REQUEST, guidance=GuidanceConfig(cfg_scale=3.0))
    stage, _ = _plan_sample(request, sketch(), AUTO, True, Machine(0), BlockSwap())
    lines = advise(Machine(stage.device_short - 1), BlockSwap(), request)
    assert all("it fits then" in line for line in lines)
    assert [line.split()[1].rstrip(":") for line in lines] == [
        *("--storage-dtype", "--prefetch", "--cache-on-host", "--frames")
    ]


@pytest.mark.parametrize(
    ("share", "wanted"),
    [
        (11 / 12, ["--prefetch", "--cache-on-host", "--frames"]),
        (10 / 12, ["--prefetch --cache-on-host", "--frames"]),
        (9 / 12, ["--storage-dtype --prefetch --cache-on-host --frames"]),
    ],
)
def test_options_are_advised_together_where_none_is_enough_and_what_is_advised_fits(share, wanted):
    request = replace(REQUEST, width=256, height=256, guidance=GuidanceConfig(cfg_scale=3.0))
    stage, _ = _plan_sample(request, sketch(), AUTO, True, Machine(0), BlockSwap())
    machine = Machine(int(stage.device_short * share))
    found = []
    for line in advise(machine, BlockSwap(), request):
        pairs = re.findall(r"--([a-z-]+)(?: (?!--)([^\s:]+))?", line)
        found.append(" ".join(f"--{name}" for name, _ in pairs))
        options = dict(pairs)
        changed = replace(
            request,
            frames=int(options.get("frames", request.frames)),
            cache=CacheConfig("teacache", on_host="cache-on-host" in options),
        )
        swap, storage = BlockSwap(prefetch=int(options.get("prefetch", 1))), options.get("storage-dtype")
        planned, _ = _plan_sample(changed, sketch(storage), AUTO, storage is None, machine, swap)
        assert planned.fits_as_asked, line
    assert found == wanted


def test_a_video_of_given_latents_is_advised_no_other_size():
    machine = Machine(needed(BlockSwap()) - 1)
    assert not any("--frames" in line for line in advise(machine, BlockSwap(), is_fixed=True))
    (line,) = advise(Machine(MIB), BlockSwap(), is_fixed=True)
    assert "its size is that of the latents" in line
    assert not any(option in line for option in ("--frames", "--width"))


def test_what_is_set_already_is_not_advised():
    swap = BlockSwap(prefetch=0)
    request = replace(REQUEST, cache=CacheConfig("teacache", on_host=True))
    lines = advise(Machine(MIB), swap, request)
    assert not any(option in line for line in lines for option in ("--prefetch", "--cache-on-host", "--swap"))
    assert "no smaller or shorter video fits" in lines[-1]


def test_converted_weights_that_ram_cannot_hold_are_told_to_be_converted_before():
    lines = advise(Machine(2**40, ram_free=MIB), BlockSwap(), is_mapped=False)
    assert "hyvideo convert" in lines[0]
    assert not any("--storage-dtype" in line or "--prefetch" in line for line in lines)


def test_text_encoders_are_made_smaller_or_go_to_the_cpu():
    llm = sketch_text("llm", None, Precision())
    assert [line.split()[1] for line in advise_text(llm, True)] == ["a", "encoding"]
    assert list(advise_text(replace(llm, is_wide=False), False)) == []


def test_below_the_smallest_tiles_there_is_no_advice_but_a_smaller_vae_or_picture():
    stage = plan_stage("decode", Weights(2**30), [Way("", 2**30)], MIB, None, BlockSwap())
    vaes = load_vae(assets.VAE, device="meta"), load_vae(assets.VAE, compute_dtype=torch.float16, device="meta")
    lines = list(advise_vae(stage, vaes, (17, 64, 64), Machine(MIB), CUDA))
    assert [line.split()[1] for line in lines] == ["--vae-dtype", "--width"]
    assert not any("--tiles" in line for line in lines)
    lines = list(advise_vae(stage, (vaes[1], vaes[1]), (17, 64, 64), Machine(MIB), CUDA))
    assert [line.split()[1] for line in lines] == ["--width"]


def test_smaller_videos_are_videos():
    assert fewer_frames(129) == [97, 65, 33, 1]
    assert fewer_frames(5) == [1]
    assert fewer_frames(1) == []
    assert (half_size(1280, 720), half_size(16, 16)) == ((640, 352), (16, 16))
