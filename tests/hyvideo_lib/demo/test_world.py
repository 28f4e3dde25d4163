"""The demo's world: what is drawn, what is said about it, and what training never shows."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from hyvideo_lib.demo.world import (
    BACKGROUNDS,
    COLORS,
    FRAMES,
    HELD_OUT,
    LARGE_RADIUS,
    LARGE_SPEED,
    MOTIONS,
    SCENES,
    SEEN,
    SENTENCES,
    SHAPES,
    SIZE,
    Scene,
    all_prompts,
    draw_clips,
    large_sentence,
    prompt_variants,
    random_caption,
)


def draw(*scenes: Scene, seed: int = 0, **sizes: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    return draw_clips(scenes, torch.Generator().manual_seed(seed), **sizes)


def test_a_fifth_of_the_combinations_is_held_out() -> None:
    assert len(SCENES) == 7 * 3 * 5 * 4
    assert len(HELD_OUT) * 5 == len(SCENES)
    assert not set(HELD_OUT) & set(SEEN)


@pytest.mark.parametrize("name", ["color", "shape", "motion", "background"])
def test_training_shows_every_value_about_equally_often(name: str) -> None:
    counts = Counter(getattr(scene, name) for scene in SEEN)
    assert set(counts) == set({"color": COLORS, "shape": SHAPES, "motion": MOTIONS, "background": BACKGROUNDS}[name])
    assert max(counts.values()) <= 1.2 * min(counts.values())


def test_training_shows_every_pair_of_values() -> None:
    names = ("color", "shape", "motion", "background")
    for a in names:
        for b in names:
            assert {(getattr(s, a), getattr(s, b)) for s in SEEN} == {(getattr(s, a), getattr(s, b)) for s in SCENES}


def test_no_prompt_of_the_training_names_a_held_out_combination() -> None:
    spoken = set(all_prompts())
    assert not spoken & {prompt for scene in HELD_OUT for prompt in prompt_variants(scene)}


def test_the_plainest_prompt_is_among_the_prompts() -> None:
    prompt = "a red circle moving left on a black background"
    assert prompt in prompt_variants(Scene("red", "circle", "left", "black"))


def test_clips_are_in_range_and_have_the_announced_shape() -> None:
    video, coverage = draw(*SCENES[:3])
    assert video.shape == (3, 3, FRAMES, SIZE, SIZE)
    assert coverage.shape == (3, 1, FRAMES, SIZE, SIZE)
    assert video.abs().max() <= 1
    assert coverage.min() == 0
    assert coverage.max() == 1


def test_edges_are_anti_aliased() -> None:
    _, coverage = draw(Scene("red", "circle", "still", "black"))
    assert ((coverage > 0.05) & (coverage < 0.95)).any()


def test_all_shapes_of_one_size_have_the_same_area() -> None:
    areas = [draw(Scene("red", shape, "still", "black"))[1].sum().item() for shape in SHAPES]
    assert max(areas) <= 1.02 * min(areas)


@pytest.mark.parametrize("motion", list(MOTIONS))
def test_a_shape_moves_as_told_and_never_leaves_the_picture(motion: str) -> None:
    for seed in range(20):
        _, coverage = draw(Scene("red", "triangle", motion, "black"), seed=seed)
        mass = coverage[0, 0]
        grid = torch.arange(SIZE, dtype=torch.float32)
        x, y = ((mass.sum(dim) * grid).sum(1) / mass.sum((1, 2)) for dim in (1, 2))
        travel = torch.stack([x[-1] - x[0], y[-1] - y[0]])
        expected = torch.tensor(MOTIONS[motion], dtype=torch.float32)
        if motion == "still":
            assert travel.abs().max() < 0.1
        else:
            assert (travel * expected).sum() > 14
            assert (travel * (1 - expected.abs())).abs().max() < 0.5
        area = mass.sum((1, 2))
        assert area.min() > 0.99 * area.max()


@pytest.mark.parametrize("motion", list(MOTIONS))
def test_a_large_shape_has_its_size_and_stays_in_the_picture(motion: str) -> None:
    for seed in range(20):
        _, coverage = draw(Scene("red", "triangle", motion, "black"), seed=seed, radii=LARGE_RADIUS, speeds=LARGE_SPEED)
        area = coverage[0, 0].sum((1, 2))
        assert area.min() > 0.99 * area.max()
        assert torch.pi * LARGE_RADIUS[0] ** 2 * 0.98 < area.mean() < torch.pi * LARGE_RADIUS[1] ** 2 * 1.02


def test_every_sentence_can_call_its_shape_large_once() -> None:
    scene = SCENES[0]
    for sentence in SENTENCES:
        said = scene.prompt(large_sentence(sentence))
        assert said.count("large ") == 1
        assert said.replace("large ", "") == scene.prompt(sentence)
        assert said.split("large ")[1].split()[0].rstrip(",") in (scene.color, scene.shape)
    assert "a large red circle moving left" in Scene("red", "circle", "left", "black").prompt(
        large_sentence(SENTENCES[0])
    )


def test_no_prompt_of_the_training_calls_a_shape_large() -> None:
    assert not any("large" in prompt for prompt in all_prompts())


def test_the_same_seed_draws_the_same_clip_and_another_one_another() -> None:
    first, again, other = (draw(SCENES[5], seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_caption_says_what_it_claims_to_say() -> None:
    generator = torch.Generator().manual_seed(0)
    captions = [random_caption(generator, partial=0.5) for _ in range(100)]
    assert {len(said) for _, _, said in captions} == {1, 2, 3, 4}
    for text, scene, said in captions:
        assert ("color" in said) == (scene.color in text)
        assert ("background" in said) == (scene.background in text)
        assert not scene.is_held_out
