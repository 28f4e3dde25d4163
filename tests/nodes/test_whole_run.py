"""Whole graphs on the demo model: what a user gets from a first click."""

from __future__ import annotations

import sys

import pytest
import torch
from graph import run

from benchmarks.judge import judge


def clip(pack, text_encoders, model, vae, prompt: str, seed: int = 3, **settings):
    """Encode, empty latents, sample, decode, with the demo's settings."""
    assets = pack.hyvideo_lib.demo.assets
    width, height, frames = run(pack.nodes.latents.Size, preset="demo (64 x 64)", frames=assets.FRAMES).result
    latents = run(pack.nodes.latents.EmptyLatents, width=width, height=height, frames=frames)[0]
    embeds = run(pack.nodes.text.EncodePrompt, text_encoders=text_encoders, prompt=prompt)[0]
    demo = {"guidance": assets.GUIDANCE, "shift": assets.SHIFT, "steps": assets.STEPS, "seed": seed}
    samples = run(pack.nodes.sample.Sampler, model=model, embeds=embeds, latents=latents, **{**demo, **settings})[0]
    return samples, run(pack.nodes.decode.Decode, vae=vae, latents=samples)[0]


@pytest.fixture(scope="module")
def red_circle(pack, text_encoders, model, vae):
    return clip(pack, text_encoders, model, vae, pack.hyvideo_lib.demo.assets.PROMPT)


def test_the_video_shows_what_the_prompt_says(red_circle):
    _, frames = red_circle
    assert frames.shape == (17, 64, 64, 3)
    assert judge(frames).matches("red", "circle", "left", "black")


def test_the_nodes_make_the_video_of_the_command_line(red_circle, pack):
    """The library's own pipeline, with the same settings, bit for bit."""
    pipeline, assets = pack.hyvideo_lib.pipeline, pack.hyvideo_lib.demo.assets
    request = pipeline.GenerateRequest(
        assets.PROMPT,
        width=assets.WIDTH,
        height=assets.HEIGHT,
        frames=assets.FRAMES,
        steps=assets.STEPS,
        shift=assets.SHIFT,
        guidance=pack.hyvideo_lib.sampling.GuidanceConfig(embedded=assets.GUIDANCE),
        seed=3,
    )
    files = pipeline.Files(assets.TRANSFORMER, assets.VAE, assets.LLM, assets.CLIP)
    result = pipeline.generate(request, files)
    samples, _ = red_circle
    assert torch.equal(result.latents, samples["samples"])


def test_a_video_keeps_its_motion_under_another_prompt(red_circle, pack, text_encoders, model, vae):
    """Video to video: the circle turns blue and goes on to the left."""
    _, frames = red_circle
    latents = run(pack.nodes.latents.EncodeVideo, vae=vae, frames=frames)[0]
    prompt = "a blue circle moving left on a black background"
    embeds = run(pack.nodes.text.EncodePrompt, text_encoders=text_encoders, prompt=prompt)[0]
    settings = {"steps": 12, "strength": 0.8, "guidance": 2.0, "shift": 3.0, "seed": 1}
    samples = run(pack.nodes.sample.Sampler, model=model, embeds=embeds, latents=latents, **settings)[0]
    verdict = judge(run(pack.nodes.decode.Decode, vae=vae, latents=samples)[0])
    assert (verdict.color, verdict.motion, verdict.background) == ("blue", "left", "black")


def test_models_make_room_for_each_other_on_a_small_card(red_circle, pack, text_encoders, model, vae, mm):
    """A card that holds the transformer alone: all three stages run, and the video is the same."""
    mm.pretend(limit=model.managed.model_size() + 2**20)
    settings = {"steps": pack.hyvideo_lib.demo.assets.STEPS}
    samples, _ = clip(pack, text_encoders, model, vae, pack.hyvideo_lib.demo.assets.PROMPT, **settings)
    assert torch.equal(samples["samples"], red_circle[0]["samples"])
    assert model.managed.loaded_size() < model.managed.model_size()
    mm.unload_all_models()
    managed = (model.managed, *text_encoders.managed, vae.managed)
    assert [entry.loaded_size() for entry in managed] == [0, 0, 0, 0]


def test_no_server_and_no_page_are_no_trouble(sample):
    assert not hasattr(sys.modules["server"].PromptServer, "instance")
    sample(steps=1)
    sys.modules["server"].PromptServer(None)
    sample(steps=1)
    assert sys.modules["server"].PromptServer.instance.texts == []
