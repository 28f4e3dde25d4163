"""The Plan node: what the library's planner says, for the files and the card that are chosen."""

from __future__ import annotations

import importlib
import re

import pytest
from graph import run, validate

SMALL = {"width": 256, "height": 256, "frames": 5}


@pytest.fixture
def plan(pack):
    return pack.nodes.plan


def test_the_released_model_is_planned_without_any_file(plan, texts):
    output = run(plan.Plan, **SMALL, gpu_memory=8.0)
    assert output.ui == {"text": (output[0],)}
    assert texts()[-1] == output[0]
    lines = output[0].splitlines()
    assert [line.split()[0] for line in lines if " peak " in line] == ["text", "sample", "decode"]
    assert "55 of 60 blocks" in output[0] or "blocks in RAM" in output[0]


def test_a_larger_card_keeps_more_blocks(plan):
    def resident(gib: float) -> float:
        line = next(line for line in run(plan.Plan, **SMALL, gpu_memory=gib)[0].splitlines() if "sample" in line)
        return float(line.partition("(")[2].split()[0])

    assert resident(8.0) < resident(16.0) < resident(48.0)


def test_the_demos_files_fit_anywhere(plan, pack):
    demo = pack.nodes.files.DEMO
    report = run(plan.Plan, transformer=demo, vae=demo, llm=demo, **SMALL, gpu_memory=2.0)[0]
    assert "does not fit" not in report
    assert "blocks in RAM" not in report


def test_this_machine_is_planned_for_by_default(plan):
    assert "RAM peak" in run(plan.Plan, **SMALL)[0]


def test_the_ram_of_this_machine_is_checked_unless_a_card_is_described(plan, pack, monkeypatch):
    ram = importlib.import_module(f"{pack.__name__}.hyvideo_lib.memory.ram")
    monkeypatch.setattr(ram, "free_ram_bytes", lambda: 2**30)
    cpu = plan.comfy_host.compute_device()
    assert plan.machine(cpu, 0.0, plan.NO_CARD, 0.0, 25.0).ram_free == 2**30
    assert plan.machine(cpu, 0.0, plan.NO_CARD, 4.0, 25.0).ram_free == 4 * 2**30
    assert plan.machine(cpu, 8.0, plan.NO_CARD, 0.0, 25.0).ram_free is None
    assert "does not fit" in run(plan.Plan, **SMALL)[0]
    monkeypatch.setattr(ram, "free_ram_bytes", lambda: None)
    verdicts = [line.rpartition(": ")[2] for line in run(plan.Plan, **SMALL)[0].splitlines() if " peak " in line]
    assert set(verdicts) == {"not checked"}


def test_8_bit_storage_halves_the_weights(plan):
    def weights(**inputs: object) -> float:
        line = next(line for line in run(plan.Plan, **SMALL, **inputs)[0].splitlines() if "sample" in line)
        return float(line.partition("(")[2].split()[0])

    assert weights(storage="float8_e4m3fn") == pytest.approx(weights() / 2, rel=0.05)


def test_a_named_card_gives_its_memory_and_the_least_time_of_a_step(plan):
    report = run(plan.Plan, **SMALL, card="rtx4090")[0]
    assert "s a step, computed" in report
    assert "name the card" in run(plan.Plan, **SMALL, gpu_memory=24.0)[0]
    small = run(plan.Plan, **SMALL, card="rtx4090", gpu_memory=8.0)[0]
    assert "blocks in RAM" in small
    assert "blocks in RAM" not in run(plan.Plan, **SMALL, card="h100")[0]


def test_a_report_names_widgets_and_no_options_of_the_command_line(plan):
    report = run(plan.Plan, width=1280, height=720, frames=129, gpu_memory=4.0)[0]
    assert "does not fit" in report
    assert "try storage float8_e4m3fn on Load Transformer" in report
    assert "tiles fit on Decode" in report
    assert "--" not in report


def test_attention_in_8_bits_is_counted(plan):
    def report(attention: str) -> str:
        return run(plan.Plan, width=848, height=480, frames=129, gpu_memory=8.0, attention=attention)[0]

    assert report("sage") != report("auto") == report("sdpa")


def test_products_ram_and_link_are_the_plans_too(plan):
    tight = {**SMALL, "gpu_memory": 8.0}
    assert run(plan.Plan, **tight, matmul="int8")[0] != run(plan.Plan, **tight)[0]
    assert "fits, slowly" in run(plan.Plan, **tight, ram=4.0)[0]
    assert "fits, slowly" not in run(plan.Plan, **tight, ram=256.0)[0]
    slow, fast = (run(plan.Plan, **SMALL, card="rtx4090", gpu_memory=8.0, link=link)[0] for link in (2.0, 50.0))
    assert slow != fast


def test_options_tiles_and_a_lora_are_planned_as_they_are_set(plan, pack, monkeypatch):
    options, demo, planner = pack.nodes.options, pack.nodes.files.DEMO, pack.hyvideo_lib.pipeline.plan
    asked, plan_run = [], planner.plan_run
    monkeypatch.setattr(planner, "plan_run", lambda *args, **more: asked.append(args) or plan_run(*args, **more))
    guidance = run(options.Guidance, cfg_scale=3.0)[0]
    swap = pack.hyvideo_lib.memory.BlockSwap(1, 0)
    cache = pack.hyvideo_lib.caches.CacheConfig("teacache")
    chosen = {"guidance_options": guidance, "block_swap": swap, "cache": cache, "lora": demo, "tiles": "none"}
    report = run(plan.Plan, **SMALL, transformer=demo, vae=demo, llm=demo, gpu_memory=8.0, **chosen)[0]
    assert "blocks in RAM" in report
    [(request, *_, planned_swap, _, _)] = asked
    assert (request.guidance, request.cache, request.tiles, planned_swap) == (guidance, cache, None, swap)
    assert [choice.path for choice in request.loras] == [pack.nodes.lora.resolve(demo)]


def test_encoding_is_planned_when_it_is_asked_for(plan):
    report = run(plan.Plan, **SMALL, gpu_memory=8.0, encode_video=True)[0]
    assert [line.split()[0] for line in report.splitlines() if " peak " in line] == [
        "encode",
        "text",
        "sample",
        "decode",
    ]


@pytest.mark.parametrize(
    ("mode", "choice"), [("reference", (256, 64)), ("custom", (64, 16)), ("none", None), ("fit", "fit")]
)
def test_tiles_mean_what_they_mean_on_decode(plan, mode, choice):
    found = plan.tiles_of(mode, 64, 16)
    assert choice == ((found.size, found.frames) if hasattr(found, "size") else found)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"width": 250}, "multiple of 16"),
        ({"frames": 6}, "4k \\+ 1"),
        ({"transformer": "nonsense"}, "must be one of"),
        ({"gpu_memory": -1.0}, "at least 0"),
        ({"cfg_scale": 0.5}, "at least 1"),
        ({"card": "voodoo2"}, "must be one of"),
        ({"matmul": "fp4"}, "must be one of"),
        ({"link": 0.0}, "at least 1"),
        ({"tiles": "custom", "tile_size": 33}, "tile size"),
        ({"lora": "nonsense"}, "must be one of"),
    ],
)
def test_bad_inputs_are_refused_before_the_run(plan, inputs, words):
    verdict = validate(plan.Plan, **inputs)
    assert verdict is not True
    assert re.search(words, str(verdict))
