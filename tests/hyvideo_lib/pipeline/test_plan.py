"""Plans of tiny files, held to what their models are and take."""

import json
from dataclasses import replace

import pytest
import tiny
import torch
from safetensors.torch import save_file

from hyvideo_lib.caches import CacheConfig
from hyvideo_lib.checkpoint import load_text_encoder, load_transformer, load_vae
from hyvideo_lib.cli import main
from hyvideo_lib.demo import assets
from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.lora import attach, lora_bytes
from hyvideo_lib.memory import module_bytes
from hyvideo_lib.memory.dry_run import AllocationCounter
from hyvideo_lib.memory.machine import Machine
from hyvideo_lib.pipeline import (
    FIT,
    GenerateRequest,
    LoraChoice,
    Precision,
    VAEWork,
    describe_tiles,
    offload_transformer,
)
from hyvideo_lib.pipeline.dry_run import decode_work, encode_work, transformer_work
from hyvideo_lib.pipeline.files import PlannedFiles
from hyvideo_lib.pipeline.loras import load_loras
from hyvideo_lib.pipeline.plan import VIDEO, plan_run
from hyvideo_lib.pipeline.plan_text import describe_plan
from hyvideo_lib.pipeline.sketch import is_mapped, sketch_text, sketch_transformer, sketch_vae, weights_of
from hyvideo_lib.sampling import GuidanceConfig
from hyvideo_lib.vae import Tiles, TinyVAE, TinyVAEConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DEMO = PlannedFiles(assets.TRANSFORMER, assets.VAE, assets.LLM, assets.CLIP)
REQUEST = GenerateRequest("-", width=64, height=64, frames=17, steps=4)
LARGE = GenerateRequest("-", width=1280, height=720, frames=129)


@pytest.mark.parametrize("storage", [None, "bfloat16", "float8_e4m3fn"])
def test_a_sketch_weighs_what_the_model_weighs(storage):
    precision = Precision(storage=storage)
    sketch = sketch_transformer(assets.TRANSFORMER, precision, CPU)
    model = load_transformer(assets.TRANSFORMER, precision.storage_dtype, torch.float32)
    assert {parameter.device.type for parameter in sketch.parameters()} == {"meta"}
    found, wanted = (weights_of(offload_transformer(each), len(each.double_blocks)) for each in (sketch, model))
    assert found == wanted
    assert found.num_bytes == module_bytes(model)
    vae = load_vae(assets.VAE)
    assert module_bytes(sketch_vae(assets.VAE, precision, CPU)) == module_bytes(vae)


def test_only_weights_in_another_storage_than_their_files_are_held_in_ram():
    assert is_mapped(None, Precision())
    assert is_mapped(None, Precision(storage="bfloat16"))
    assert not is_mapped(None, Precision(storage="float8_e4m3fn"))
    assert is_mapped(assets.TRANSFORMER, Precision())
    assert not is_mapped(assets.TRANSFORMER, Precision(storage="float8_e5m2"))


@pytest.mark.parametrize(("role", "path"), [("llm", assets.LLM), ("clip", assets.CLIP)])
def test_text_encoders_weigh_what_their_files_hold(role, path):
    encoder = load_text_encoder(path)
    assert sketch_text(role, path, Precision()).weights.num_bytes == pytest.approx(module_bytes(encoder), rel=0.1)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(2, 4, 4), (9, 16, 16)])
def test_the_transformers_work_is_what_the_same_forward_takes(batch, size):
    model = tiny.tiny_transformer().requires_grad_(False)
    inputs = tiny.transformer_inputs(batch, size, 50)
    inputs["text_mask"] = None
    with torch.no_grad(), AllocationCounter() as counter:
        model(**inputs, guidance=1.0)
    assert transformer_work(model, size, 50, batch) == pytest.approx(counter.peak, rel=0.1)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("storage", ["bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("blocks", ["", "double 1, single 3"])
@pytest.mark.parametrize("size", [(5, 8, 8), (5, 48, 48)])
def test_so_it_is_with_a_lora_in_whatever_block_it_acts(storage, blocks, size):
    """Beside the weights in the short video, in copies of them in the long one, which fp8 has anyway."""
    model = load_transformer(assets.TRANSFORMER, getattr(torch, storage), torch.bfloat16)
    config = model.config
    inputs = tiny.transformer_inputs(1, size, 50, config=config)
    inputs["text_mask"] = None
    loras = load_loras((LoraChoice(assets.LORAS["kohya"], blocks=blocks),), config)
    with torch.no_grad(), attach(model, loras):
        model(**inputs, guidance=1.0)  # puts the LoRA's matrices in place
        with AllocationCounter() as counter:
            model(**inputs, guidance=1.0)
    with attach(model, loras):
        assert transformer_work(model, size, 50) == pytest.approx(counter.peak, rel=0.1)


@pytest.mark.parametrize("tiles", [None, Tiles(32, 16)])
@pytest.mark.parametrize("work", [decode_work, encode_work])
def test_tiles_of_one_shape_are_counted_once_and_all_the_same(work, tiles):
    precision = Precision()
    sketch = sketch_vae(assets.VAE, precision, CPU)
    pixels, moments = sketch.pixels, sketch.moments
    small = work(sketch, (17, 64, 64), tiles)
    assert (sketch.pixels, sketch.moments) == (pixels, moments)
    assert small > 0
    assert work(sketch, (17, 64, 128), tiles) > small


def test_small_memory_changes_the_way_and_swaps(monkeypatch):
    monkeypatch.setattr("hyvideo_lib.memory.plan.RESERVE_BYTES", 0)  # the demo model is small
    guided = replace(REQUEST, guidance=GuidanceConfig(cfg_scale=3.0))
    roomy = plan_run(guided, DEMO, Precision(), Machine(2**40), CUDA)
    assert roomy.fits
    assert [stage.name for stage in roomy.stages] == ["text", "sample", "decode"]
    assert all(not stage.swapped and not stage.way.label for stage in roomy.stages)
    (_, sample, _) = roomy.stages
    free = int(1.0625 * sample.way.work) + sample.resident - 1
    tight = plan_run(guided, DEMO, Precision(), Machine(free), CUDA).stages[1]
    assert tight.fits
    assert tight.swapped
    assert not tight.way.label  # which takes less than half of it all
    tighter = plan_run(guided, DEMO, Precision(), Machine(free * 2 // 3), CUDA).stages[1]
    assert tighter.fits
    assert tighter.way.label
    assert len(tighter.swapped) >= len(tight.swapped)
    hopeless = plan_run(guided, DEMO, Precision(), Machine(2**20), CUDA)
    assert not hopeless.fits
    assert hopeless.stages[1].way.label.startswith("CFG in turn")
    assert hopeless.stages[0].ram.again == 0  # the language model's layers pass once
    swapped = sum(hopeless.stages[1].weights.blocks)
    assert set(hopeless.cost.moved) == {2 * swapped}  # the blocks come by for each of the two prompts
    assert not hopeless.fits_as_asked
    assert "even with CFG in turn" in describe_plan(hopeless)
    assert all(bool(stage.advice) != stage.fits for stage in hopeless.stages)


def test_a_plan_cuts_the_video_as_a_run_would(monkeypatch):
    monkeypatch.setattr("hyvideo_lib.memory.plan.RESERVE_BYTES", 0)
    vae = sketch_vae(assets.VAE, Precision(), CUDA)
    clip = replace(REQUEST, width=320, height=320, frames=33)
    work = VAEWork.of(vae, clip.frames, clip.height, clip.width, CUDA)
    free = module_bytes(vae) + work.working_bytes(None) * 3 // 4
    (*_, decode) = plan_run(replace(clip, tiles=FIT), DEMO, Precision(), Machine(free), CUDA).stages
    chosen = work.choose(FIT, free - module_bytes(vae))
    assert chosen
    assert decode.fits
    assert decode.way.work == work.num_bytes(chosen)
    assert decode.way.label == f"tiles {describe_tiles(chosen)}, which happens by itself"
    (*_, uncut) = plan_run(replace(clip, tiles=None), DEMO, Precision(), Machine(free), CUDA).stages
    assert uncut.way.work == decode.way.work
    assert uncut.way.label == f"tiles {describe_tiles(chosen)}, --tiles fit"
    smooth = replace(clip, tiles=Tiles(320, 64, shared_norms=True))
    (*_, shared) = plan_run(smooth, DEMO, Precision(), Machine(free // 2), CUDA).stages
    assert "norms shared" in shared.way.label
    assert shared.way.label.endswith(", --tiles fit")


def test_encoding_a_video_is_a_stage_that_may_not_fit(monkeypatch):
    monkeypatch.setattr("hyvideo_lib.memory.plan.RESERVE_BYTES", 0)
    clip = replace(REQUEST, width=320, height=320, frames=33)
    work = VAEWork.of(sketch_vae(assets.VAE, Precision(), CUDA), 33, 320, 320, CUDA, is_encoding=True)
    (encode, *_) = plan_run(clip, DEMO, Precision(), Machine(2**40), CUDA, start=VIDEO).stages
    assert (encode.name, encode.way.work, encode.fits) == ("encode", work.num_bytes(clip.tiles), True)
    hopeless = plan_run(clip, DEMO, Precision(), Machine(2**20), CUDA, start=VIDEO)
    assert not hopeless.stages[0].fits
    assert hopeless.stages[0].advice
    assert "encode GPU peak" in describe_plan(hopeless)


def test_a_tiny_vae_is_planned_to_decode_and_refused_to_encode(tmp_path):
    path = tmp_path / "taehv.safetensors"
    vae = TinyVAE(TinyVAEConfig())
    save_file(vae.state_dict(), path)
    files = replace(DEMO, vae=path)
    (*_, decode) = plan_run(REQUEST, files, Precision(), Machine(2**40), CUDA).stages
    assert decode.fits
    assert decode.weights.num_bytes == module_bytes(vae) // 2  # in float16
    assert decode.way.work == VAEWork.of(vae.half(), 17, 64, 64, CUDA).num_bytes(None)
    (*_, short) = plan_run(replace(REQUEST, tiles=FIT), files, Precision(), Machine(2**20), CUDA).stages
    assert short.advice
    with pytest.raises(InvalidSetting, match="only decodes previews"):
        plan_run(REQUEST, files, Precision(), Machine(2**40), CUDA, start=VIDEO)


def test_loras_and_a_step_cache_are_counted_as_a_run_counts_them():
    def work(request: GenerateRequest) -> int:
        return plan_run(request, DEMO, Precision(), Machine(2**40), CUDA).stages[1].way.work

    config = sketch_transformer(assets.TRANSFORMER, Precision(), CUDA).config
    choices = (LoraChoice(assets.LORAS["kohya"]),)
    bfloat16, tokens = 2, 5 * 4 * 4
    cache = CacheConfig("teacache")
    wanted = lora_bytes(load_loras(choices, config), bfloat16)
    assert wanted > 0
    assert wanted <= work(replace(REQUEST, loras=choices)) - work(REQUEST) < 2 * wanted
    wanted = cache.device_bytes(config.hidden_size, tokens, bfloat16, 1)
    assert wanted > 0
    assert work(replace(REQUEST, cache=cache)) - work(REQUEST) == wanted


def test_what_a_step_cache_keeps_in_ram_is_counted_there():
    config = sketch_transformer(assets.TRANSFORMER, Precision(), CUDA).config
    cache = CacheConfig("teacache", on_host=True)
    for machine, item_size in ((Machine(2**40), 2), (Machine(None, 2**40), 4)):
        device = CPU if machine.gpu_free is None else CUDA
        plain, kept = (
            plan_run(replace(REQUEST, cache=which), DEMO, Precision(), machine, device).stages[1]
            for which in (None, cache)
        )
        assert kept.ram.held - plain.ram.held == 2 * config.hidden_size * 5 * 4 * 4 * item_size > 0
        assert kept.device_bytes == plain.device_bytes


def test_the_command_line_takes_loras_and_a_step_cache(capsys):
    words = ["plan", "--transformer", str(assets.TRANSFORMER), "--width", "64", "--height", "64", "--frames", "17"]
    words += ["--gpu-memory", "24GiB", "--json"]
    works = []
    for more in ([], ["--lora", str(assets.LORAS["kohya"])], ["--cache", "teacache:0.1"]):
        assert main([*words, *more]) == 0
        works.append(json.loads(capsys.readouterr().out)["stages"]["sample"]["working_bytes"])
    assert works[0] < min(works[1:])
    assert main([*words, "--lora", "no_such.safetensors"]) == 2


def test_times_are_told_only_for_a_known_speed_and_as_computed():
    assert plan_run(REQUEST, DEMO, Precision(), Machine(2**40), CUDA).cost.quickest is None
    plan = plan_run(REQUEST, DEMO, Precision(), Machine(2**40, speed=1e12, name="mine"), CUDA)
    assert plan.cost.seconds == pytest.approx([flops / 1e12 for flops in plan.cost.flops], rel=1e-6)
    assert "computed" in describe_plan(plan)
    rounded = plan_run(REQUEST, DEMO, Precision(matmul="int8"), Machine(2**40, speed=1e12, name="mine"), CUDA)
    assert rounded.cost.quickest is None
    assert "No time is computed for products in 8 bits" in describe_plan(rounded)
    assert "No time" not in describe_plan(plan)


def test_the_command_line_plans_for_a_described_machine(capsys):
    files = ["--transformer", assets.TRANSFORMER, "--vae", assets.VAE, "--llm", assets.LLM, "--clip", assets.CLIP]
    size = ["--width", "64", "--height", "64", "--frames", "17"]
    words = ["plan", *map(str, files), *size, "--gpu-memory", "24GiB", "--ram", "32GiB", "--link", "12GB/s", "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] is report["fits_as_asked"] is True
    assert report["machine"]["gpu_total_bytes"] == 24 * 2**30
    assert report["stages"]["sample"]["ram_files_short_bytes"] == 0
    assert report["machine"]["link_bytes_per_second"] == 12e9
    assert 23 * 2**30 < report["machine"]["gpu_bytes"] < 24 * 2**30
    assert report["step"]["kind"] == "computed"
    assert report["step"]["seconds_at_least"] is None
    assert main([*words[:-1], "--quiet"]) == 0
    assert "sample GPU peak" in capsys.readouterr().out
    assert main(["plan", *map(str, files), *size, "--gpu-memory", "700MiB"]) == 4
    assert main(["plan", *map(str, files), "--gpu-memory", "lots"]) == 2
