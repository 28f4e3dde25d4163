"""The pack inside a running ComfyUI, through its HTTP and WebSocket interface, as a script or a page would use it."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import shutil
import threading
from pathlib import Path

import pytest
from comfy_server import PACK, Client, Refused, Server, demo_prompt, node
from PIL import Image

from benchmarks.judge import judge
from hyvideo_lib.video import read_frames

RED_CIRCLE = ("red", "circle", "left", "black")
DEMO_WORKFLOWS = ("demo_text_to_video", "demo_video_to_video")
BIG_WORKFLOWS = ("720p_text_to_video", "720p_text_to_video_12gb")
AT_DEMO_SIZE = {
    "HyvEmptyLatents": {"width": 64, "height": 64, "frames": 17},
    "HyvEncodePrompt": {"prompt": "a red circle moving left on a black background"},
    "HyvSampler": {"steps": 20, "guidance": 2.0, "shift": 3.0},
}
"""What the demo model needs of a workflow that was made for the released one."""


def judged(server, outcome, tmp_path: Path):
    """What the first video of a run shows."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(server.view(outcome.files[0]))
    return judge(read_frames(path, 64, 64, 17, 8).float() / 255)


def with_stills(prompt: dict) -> dict:
    """The prompt, which now keeps its frames as they are: an mp4 of the same frames differs from run to run."""
    return prompt | {"stills": node("SaveImage", images=["decode", 0], filename_prefix="stills/frame")}


def digest(server, outcome) -> str:
    """Of the frames that a run with stills kept."""
    found = hashlib.sha256()
    stills = outcome.history["outputs"]["stills"]["images"]
    assert len(stills) == 17
    for still in stills:
        found.update(Image.open(io.BytesIO(server.view(still))).tobytes())
    return found.hexdigest()


# Loading


def test_every_node_is_there(server):
    names = {name for name in server.get("/object_info") if name.startswith("Hyv")}
    assert len(names) == 21
    assert "Traceback" not in server.log.partition("Starting server")[0].partition("hyvideo")[2]
    assert "DeprecationWarning" not in server.log


def test_the_demo_files_are_in_the_lists(server):
    for name, inputs in (("HyvLoadTransformer", ["file"]), ("HyvLoadTextEncoders", ["llm", "clip"])):
        info = server.get(f"/object_info/{name}")[name]["input"]["required"]
        for key in inputs:
            assert "hyvideo-demo" in info[key][1]["options"]


def test_comfyui_tells_how_long_it_took_to_import(server):
    """The time itself is no test's; tests/nodes/test_extension.py holds what must not be imported for it."""
    line = re.search(r"([\d.]+) seconds.*" + re.escape(server.pack.name), server.log)
    assert line is not None
    print("import:", line[1], "s")


def test_it_installs_as_a_link_too(tmp_path):
    with Server(tmp_path / "base", "symlink", "hyvideo-link") as linked:
        assert len([name for name in linked.get("/object_info") if name.startswith("Hyv")]) == 21
        assert "hyvideo-link" in linked.get("/workflow_templates")


def test_templates_help_and_translations_are_served(server):
    templates = server.get("/workflow_templates")[server.pack.name]
    assert set(templates) == {path.stem for path in (PACK / "workflows").glob("*.json")}
    for name in templates:
        assert server.get(f"/api/workflow_templates/{server.pack.name}/{name}.json")["nodes"]
    assert "HyvSampler" in server.get("/i18n")["zh"]["nodeDefs"]
    assert b"HunyuanVideo Sampler" in server.get(f"/extensions/{server.pack.name}/docs/HyvSampler.md")


# Running


@pytest.mark.parametrize("name", DEMO_WORKFLOWS)
def test_a_workflow_runs_to_its_end(server, client, tmp_path, name):
    outcome = client.run(json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text()))
    assert outcome.status == "success", outcome.error
    verdict = judged(server, outcome, tmp_path)
    assert None not in (verdict.color, verdict.shape, verdict.motion, verdict.background)


@pytest.mark.parametrize("name", BIG_WORKFLOWS)
def test_a_workflow_for_the_released_model_runs_on_the_demos_files(server, client, tmp_path, name):
    """The demo's files stand under the names of the released ones; only what depends on their size is changed."""
    prompt = json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text())
    for entry in prompt.values():
        entry["inputs"] |= AT_DEMO_SIZE.get(entry["class_type"], {})
    outcome = client.run(prompt)
    assert outcome.status == "success", outcome.error
    assert judged(server, outcome, tmp_path).matches(*RED_CIRCLE)


def test_the_clip_shows_what_the_prompt_says(server, client, tmp_path):
    outcome = client.run(demo_prompt())
    assert outcome.status == "success"
    assert judged(server, outcome, tmp_path).matches(*RED_CIRCLE)
    assert outcome.history["status"]["completed"]


@pytest.mark.parametrize("changes", [{"model__matmul": "int8"}, {"model__fp8_matmul": True}], ids=["int8", "fp8"])
def test_products_in_8_bits_draw_what_the_prompt_says(server, client, tmp_path, changes):
    """An older workflow's `fp8_matmul`, which knows no `matmul`, too."""
    outcome = client.run(demo_prompt(**changes))
    if outcome.status != "success" and "too slow on this processor" in str(outcome.error):
        pytest.skip("this processor multiplies fp8 too slowly, and is refused")
    assert outcome.status == "success", outcome.error
    assert judged(server, outcome, tmp_path).matches(*RED_CIRCLE)


@pytest.mark.parametrize("changes", [{}, {"scope": "pieces"}], ids=["blocks", "pieces"])
def test_compiled_blocks_draw_what_the_prompt_says(server, client, tmp_path, changes):
    """Where no `scope` is sent, as by an older client, blocks are compiled; here with products in 8 bits and a LoRA."""
    prompt = demo_prompt(sampler__model=["lora", 0], model__matmul="int8", model__compile=["compile", 0])
    prompt["compile"] = node("HyvCompile", backend="inductor", mode="default", dynamic=True, **changes)
    prompt["lora"] = node("HyvLoRA", model=["model", 0], file="hyvideo-demo", strength=1.0, blocks="all")
    outcome = client.run(prompt)
    assert outcome.status == "success", outcome.error
    assert judged(server, outcome, tmp_path).matches(*RED_CIRCLE)
    if shutil.which("g++") or shutil.which("clang++"):
        assert "run uncompiled" not in server.log


def test_progress_texts_and_previews_arrive(server, client):
    outcome = client.run(demo_prompt(sampler__seed=77))
    steps = [(data["value"], data["max"]) for data in outcome.of("progress") if data["node"] == "sampler"]
    assert (20, 20) in steps
    assert steps == sorted(steps)
    assert any(re.match(r"sampling 1?\d/20, .* s/it, \d+:\d\d left", text) for name, text in outcome.texts)
    assert len(outcome.previews) >= 20


def test_a_new_seed_neither_loads_nor_encodes(client):
    client.run(demo_prompt(sampler__seed=5, sampler__steps=2))
    outcome = client.run(demo_prompt(sampler__seed=6, sampler__steps=2))
    assert outcome.executed_nodes == {"sampler", "decode", "video", "save"}


def test_a_new_prompt_reloads_nothing(client):
    client.run(demo_prompt(sampler__steps=2))
    outcome = client.run(demo_prompt("a blue square rising on a beige background", sampler__steps=2))
    assert not outcome.executed_nodes & {"model", "vae", "texts"}


def test_two_clients_each_hear_of_their_own(server, tmp_path):
    pages = [Client(server), Client(server)]
    prompts = [demo_prompt(sampler__seed=1), demo_prompt("a blue square moving up on a beige background")]
    ids = [page.queue(prompt) for page, prompt in zip(pages, prompts, strict=True)]
    outcomes = {}

    def follow(index: int) -> None:
        outcomes[index] = pages[index].follow(ids[index])

    threads = [threading.Thread(target=follow, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {outcome.status for outcome in outcomes.values()} == {"success"}
    assert judged(server, outcomes[0], tmp_path).matches(*RED_CIRCLE)
    assert judged(server, outcomes[1], tmp_path).matches("blue", "square", "up", "beige")
    for page in pages:
        page.close()


def test_embeds_saved_and_loaded_give_the_same_video(server, client):
    direct = client.run(with_stills(demo_prompt(sampler__seed=9, sampler__steps=4)))
    saving = demo_prompt(sampler__seed=9, sampler__steps=4)
    saving["keep"] = node("HyvSaveEmbeds", embeds=["embeds", 0], filename_prefix="kept/words")
    client.run(saving)
    name = next((server.base / "output" / "kept").glob("*.embeds.safetensors")).name
    loading = demo_prompt(sampler__seed=9, sampler__steps=4, sampler__embeds=["loaded", 0])
    loading["loaded"] = node("HyvLoadEmbeds", file=f"kept/{name} [output]")
    assert digest(server, client.run(with_stills(loading))) == digest(server, direct)


def test_the_report_is_shown_on_the_node(client):
    prompt = {"m": demo_prompt()["vae"], "info": node("HyvModelInfo", file="hyvideo-demo", handle=["m", 0])}
    outcome = client.run(prompt)
    report = outcome.history["outputs"]["info"]["text"][0]
    assert "transformer" in report
    assert "HYV_VAE" in report
    assert any(name == "info" for name, _ in outcome.texts)


# Native nodes beside ours


def test_native_latents_and_our_sigmas_travel(server, client, tmp_path):
    prompt = demo_prompt(sampler__latents=["native", 0])
    prompt["native"] = node("EmptyHunyuanLatentVideo", width=64, height=64, length=17, batch_size=1)
    direct, through = client.run(with_stills(demo_prompt())), client.run(with_stills(prompt))
    assert digest(server, through) == digest(server, direct)
    prompt["split"] = node("SplitSigmas", sigmas=["sampler", 1], step=10)
    prompt["second"] = node("HyvSampler", **prompt["sampler"]["inputs"])
    prompt["second"]["inputs"] |= {"latents": ["sampler", 0], "sigmas": ["split", 1]}
    prompt["decode"]["inputs"]["latents"] = ["second", 0]
    assert client.run(prompt).status == "success"


# Bad prompts

BAD = [
    ({"empty__width": 65}, "width is 65, but must be a multiple of 16"),
    ({"empty__width": 0}, "at least 16"),
    ({"empty__height": 100_000}, "at most"),
    ({"empty__height": 72}, "height is 72"),
    ({"empty__frames": 16}, "frames is 16, but must be 4k + 1"),
    ({"empty__frames": 0}, "at least 1"),
    ({"empty__batch": 0}, "smaller than min"),
    ({"empty__width": "wide"}, "convert"),
    ({"sampler__steps": 0}, "steps is 0"),
    ({"sampler__steps": -3}, "steps is -3"),
    ({"sampler__solver": "magic"}, "solver is 'magic'"),
    ({"sampler__strength": 0.0}, "strength"),
    ({"sampler__strength": 1.5}, "strength"),
    ({"sampler__guidance": -1.0}, "guidance"),
    ({"sampler__shift": 0.0}, "shift"),
    ({"sampler__seed": -1}, "smaller than min"),
    ({"sampler__seed": "abc"}, "convert"),
    ({"sampler__model": None}, "Required input is missing"),
    ({"sampler__model": ["vae", 0]}, "mismatch"),
    ({"model__file": "nothing.safetensors"}, "file is 'nothing.safetensors'"),
    ({"model__file": "a_vae.safetensors"}, "it is a VAE"),
    ({"model__file": "cut.safetensors"}, "cut.safetensors"),
    ({"model__file": "words.safetensors"}, "words.safetensors"),
    ({"model__file": "../../secret.safetensors"}, "must be one of"),
    ({"model__storage": "int4"}, "storage is 'int4'"),
    ({"model__variant": "image to sound"}, "variant"),
    ({"model__matmul": "int4"}, "matmul is 'int4'"),
    ({"model__matmul": "int8", "model__fp8_matmul": True}, "fp8_matmul is on, but matmul is int8"),
    ({"vae__file": "nothing.safetensors"}, "file is 'nothing.safetensors'"),
    ({"vae__dtype": "float8"}, "dtype is 'float8'"),
    ({"texts__llm": "nothing.safetensors"}, "llm is 'nothing.safetensors'"),
    ({"texts__clip": "nothing.safetensors"}, "clip is 'nothing.safetensors'"),
    ({"texts__clip_tokenizer": "../../etc"}, "no tokenizer"),
    ({"texts__device": "tpu"}, "device is 'tpu'"),
    ({"embeds__template": "poem"}, "template is 'poem'"),
    ({"embeds__template": "custom", "embeds__custom_template": None}, "no Prompt Template is connected"),
    ({"embeds__template": "custom", "template__text": "no place"}, "exactly one"),
    ({"embeds__template": "custom", "template__text": "{} and {}"}, "exactly one"),
    ({"cfg__cfg_scale": 0.5}, "cfg_scale"),
    ({"cfg__start": 0.8, "cfg__end": 0.2}, "start must lie before the end"),
    ({"rope__time_scale": 0.0}, "smaller than min"),
    ({"swap__double_blocks": -2}, "smaller than min"),
    ({"decode__tiles": "some"}, "tiles is 'some'"),
    ({"decode__tiles": "custom", "decode__tile_size": 40}, "tile size is 40"),
]


@pytest.mark.parametrize(("changes", "words"), BAD, ids=[json.dumps(changes)[:60] for changes, _ in BAD])
def test_a_bad_prompt_is_refused_before_it_runs(client, changes, words):
    with pytest.raises(Refused) as refusal:
        client.queue(demo_prompt(**changes))
    assert words in refusal.value.details


def test_an_error_in_the_run_says_what_to_do_and_hides_paths(server, client):
    prompt = demo_prompt(sampler__latents=["wrong", 0])
    prompt["wrong"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    outcome = client.run(prompt)
    assert outcome.status == "error"
    assert "must be [videos, 16, frames, height, width]" in outcome.error["exception_message"]
    assert "[invalid_setting]" in outcome.error["exception_message"]
    shown = json.dumps(outcome.error["current_inputs"])
    assert "HYV_MODEL(" in shown
    assert str(server.base) not in shown
    assert client.run(demo_prompt(sampler__steps=2)).status == "success"


# Cancelling, and what stays behind


def test_cancelled_anywhere_the_next_run_is_as_if_nothing_had_been(server, client):
    fresh = digest(server, client.run(with_stills(demo_prompt(sampler__seed=31, sampler__steps=8))))
    rng = random.Random(0)
    cancelled = 0
    for round_number in range(20):
        wanted = rng.randint(0, 12)
        heard = 0

        def cancel(kind: str, data: object, wanted: int = wanted) -> None:
            nonlocal heard
            if kind == "progress":
                heard += 1
                if heard == wanted:
                    server.post("/interrupt", {})

        prompt = demo_prompt(sampler__seed=100 + round_number, sampler__steps=8, decode__tiles="custom")
        prompt["decode"]["inputs"] |= {"tile_size": 32, "tile_frames": 16}
        cancelled += client.run(prompt, cancel).status == "interrupted"
    assert cancelled >= 10
    server.free()
    again = client.run(with_stills(demo_prompt(sampler__seed=31, sampler__steps=8)))
    assert "sampler" in again.executed_nodes
    assert digest(server, again) == fresh


def test_nothing_grows_over_many_runs(server, client):
    def once(seed: int) -> None:
        assert client.run(demo_prompt(sampler__seed=seed, sampler__steps=2)).status == "success"

    for seed in range(1000, 1005):
        once(seed)
    before = server.status("RssAnon"), server.open_files, server.status("Threads")
    for seed in range(2000, 2025):
        once(seed)
    after = server.status("RssAnon"), server.open_files, server.status("Threads")
    print("kB, files, threads:", before, after)
    assert after[0] <= before[0] * 1.05
    assert after[1] <= before[1] + 3
    assert after[2] <= before[2] + 2


def test_freeing_brings_memory_back(server, client):
    client.run(demo_prompt(sampler__seed=1, sampler__steps=2))
    server.free()
    before = server.status("RssAnon")
    for seed in (2, 3):
        client.run(demo_prompt(sampler__seed=seed, sampler__steps=2))
        server.free()
    after = server.status("RssAnon")
    print("kB after /free:", before, after)
    assert after <= before * 1.01
