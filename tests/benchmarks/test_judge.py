"""The judge reads true clips without fault, and says so when there is nothing to read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.judge import judge
from hyvideo_lib.demo.world import LARGE_RADIUS, LARGE_SPEED, SCENES, Scene, draw_clips


def drawn(scenes: list[Scene], seed: int, **sizes: tuple[float, float]) -> list[torch.Tensor]:
    video, _ = draw_clips(scenes, torch.Generator().manual_seed(seed), **sizes)
    return list((video.permute(0, 2, 3, 4, 1) + 1) / 2)


def test_judge_is_right_on_true_clips() -> None:
    wrong = 0
    for low in range(0, len(SCENES), 30):
        scenes = list(SCENES[low : low + 30])
        for scene, video in zip(scenes, drawn(scenes, seed=low), strict=True):
            wrong += not judge(video).matches(scene.color, scene.shape, scene.motion, scene.background)
    assert wrong <= 0.005 * len(SCENES)


def test_judge_tells_large_shapes_by_their_area() -> None:
    scenes = list(SCENES[::7])
    large = list(map(judge, drawn(scenes, 0, radii=LARGE_RADIUS, speeds=LARGE_SPEED)))
    usual = list(map(judge, drawn(scenes, 0)))
    assert all(
        verdict.matches(scene.color, scene.shape, scene.motion, scene.background)
        for scene, verdict in zip(scenes, large, strict=True)
    )
    assert max(verdict.area for verdict in usual) < 480
    assert min(verdict.area for verdict in large) > 590


def test_judge_forgives_a_little_noise() -> None:
    scenes = list(SCENES[::10])
    noise = torch.Generator().manual_seed(0)
    right = 0
    for scene, video in zip(scenes, drawn(scenes, seed=3), strict=True):
        seen = judge((video + 0.03 * torch.randn(video.shape, generator=noise)).clamp(0, 1))
        right += seen.matches(scene.color, scene.shape, scene.motion, scene.background)
    assert right >= 0.98 * len(scenes)


def test_judge_sees_no_shape_in_an_empty_clip() -> None:
    verdict = judge(torch.zeros(17, 64, 64, 3))
    assert verdict.background == "black"
    assert verdict.shape is None
    assert verdict.motion is None


@pytest.mark.parametrize("speed", [0.0, 1.0])
def test_judge_tells_motion_by_the_pixels(speed: float) -> None:
    video = torch.zeros(17, 64, 64, 3)
    for frame in range(17):
        left = 10 + round(speed * frame)
        video[frame, 20:36, left : left + 16] = torch.tensor([230, 30, 30]) / 255
    assert judge(video).matches("red", "square", "right" if speed else "still", "black")


def test_judge_does_not_match_another_scene() -> None:
    scene = SCENES[0]
    verdict = judge(drawn([scene], seed=0)[0])
    other = replace(scene, shape="square")
    assert verdict.matches(scene.color, scene.shape, scene.motion, scene.background)
    assert not verdict.matches(other.color, other.shape, other.motion, other.background)
