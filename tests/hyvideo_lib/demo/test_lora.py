"""The demo's LoRA: its two files, what the judge sees of it, and that its training is the same from the same seed."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from benchmarks.judge import Verdict
from benchmarks.lora import GROWN, PROMPTS, judge_scenes
from benchmarks.quality import Studio
from hyvideo_lib.checkpoint import inspect_file, load_text_encoder, load_transformer, load_vae
from hyvideo_lib.demo import assets, train_lora
from hyvideo_lib.demo.world import HELD_OUT, SEEN, Scene
from hyvideo_lib.lora import Lora, LoraUse, attach, read_lora
from hyvideo_lib.lora.update import add_updates

SEED = 300
SCENES: tuple[Scene, ...] = (*SEEN[::84], *HELD_OUT[::28])
"""Seven, some of which neither the model nor the LoRA was shown."""


@cache
def studio() -> Studio:
    return Studio()


@cache
def lora(family: str = "kohya") -> Lora:
    return read_lora(assets.LORAS[family], studio().model.config)


@cache
def verdicts(prompts: str, strength: float) -> list[Verdict]:
    return judge_scenes(studio(), SCENES, PROMPTS[prompts], [LoraUse(lora(), strength)], SEED)


def right(found: list[Verdict]) -> int:
    return sum(
        verdict.matches(scene.color, scene.shape, scene.motion, scene.background)
        for scene, verdict in zip(SCENES, found, strict=True)
    )


def areas(prompts: str, strength: float) -> Tensor:
    return torch.tensor([verdict.area for verdict in verdicts(prompts, strength)])


def test_the_files_are_small_and_recognised_as_two_families_of_one_lora() -> None:
    reports = [inspect_file(path) for path in assets.LORAS.values()]
    assert [report.layout for report in reports] == ["kohya_musubi", "diffusers_peft"]
    assert all(report.kind == "lora" and report.supported for report in reports)
    assert sum(path.stat().st_size for path in assets.LORAS.values()) <= 500_000
    one, other = lora("kohya"), lora("diffusers")
    assert one.updates.keys() == other.updates.keys()
    for layer, updates in one.updates.items():
        (whole,) = updates
        zero = torch.zeros(whole.stop, whole.low_rank.down.shape[1])
        first, second = (
            add_updates(zero, [(update, 1.0) for update in part]) for part in (updates, other.updates[layer])
        )
        assert torch.equal(first, second), layer  # the scale is a power of two, so it rounds nothing
    assert one.coverage.unmatched == other.coverage.unmatched == ()


def test_at_strength_0_nothing_is_different() -> None:
    plain = studio().latents([assets.LORA_PROMPT], [SEED], steps=3)
    with attach(studio().model, [LoraUse(lora(), 0.0)]):
        assert torch.equal(studio().latents([assets.LORA_PROMPT], [SEED], steps=3), plain)
    with attach(studio().model, [LoraUse(lora(), 1.0)]):
        assert not torch.equal(studio().latents([assets.LORA_PROMPT], [SEED], steps=3), plain)
    assert torch.equal(studio().latents([assets.LORA_PROMPT], [SEED], steps=3), plain)


def test_at_strength_1_large_shapes_are_large_and_all_else_is_as_said() -> None:
    grown = areas("large", 1.0) / areas("large", 0.0)
    assert (grown >= GROWN).sum() >= len(SCENES) - 1, grown
    assert right(verdicts("large", 1.0)) >= len(SCENES) - 1


def test_at_half_strength_shapes_are_in_between() -> None:
    none, half, whole = (areas("large", strength) for strength in (0.0, 0.5, 1.0))
    assert none.mean() < half.mean() < whole.mean()
    assert ((none < half) & (half < whole)).sum() >= len(SCENES) - 1
    assert right(verdicts("large", 0.5)) >= len(SCENES) - 1


def test_prompts_that_do_not_say_large_keep_their_sizes() -> None:
    before, after = (areas("as known", strength) for strength in (0.0, 1.0))
    assert (after / before >= GROWN).sum() <= 1, after / before
    assert right(verdicts("as known", 1.0)) >= len(SCENES) - 1


def test_a_step_of_the_training_is_the_same_from_the_same_seed_and_moves_the_lora_alone() -> None:
    vae = load_vae(assets.VAE)
    encoders = tuple(load_text_encoder(path, compute_dtype=torch.float32) for path in (assets.LLM, assets.CLIP))
    losses, layers = [], []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        taught = train_lora.make_examples(SEEN[:2], train_lora.LARGE_SENTENCES, True, vae, encoders, generator)
        known = train_lora.make_examples(SEEN[:2], train_lora.KNOWN_SENTENCES, False, vae, encoders, generator)
        model = load_transformer(assets.TRANSFORMER, torch.bfloat16, torch.bfloat16)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        torch.manual_seed(seed)
        factors = train_lora.TrainedLora(model)
        optimizer = torch.optim.AdamW(factors.parameters(), lr=1e-2)
        for step in range(2):
            velocity = train_lora.Velocity(model)
            loss = train_lora.loss_of(velocity, factors, taught, known, torch.Generator().manual_seed(seed + step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        layers.append(factors.layers())
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert losses[0:2] == losses[2:4] != losses[4:6]
    assert layers[0].keys() == lora().updates.keys()
    for name, product in layers[0].items():
        assert torch.equal(product.up, layers[1][name].up)
        assert product.up.abs().max() > 0
