from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import difference, golden, manifest, relative_error
from torch import Tensor

from hyvideo_lib.transformer import RopeSettings
from hyvideo_lib.transformer.rope import (
    apply_rope,
    axis_frequencies,
    riflex_frequencies,
    rope_angles,
    rope_rotation,
    rotation_tables,
)

PRIMITIVES = golden("primitives")
TABLES = manifest()["primitives"]["detail"]["rope"]
RIFLEX = golden("riflex")
EXTRAPOLATE = RopeSettings(extrapolate=True)


def table(angles: Tensor) -> tuple[Tensor, Tensor]:
    """The reference's cosine and sine tables [L, D], in which both channels of a pair hold the same number."""
    rotation = rope_rotation(angles)
    return rotation.real.repeat_interleave(2, dim=-1), rotation.imag.repeat_interleave(2, dim=-1)


@pytest.mark.parametrize("case", TABLES, ids=[case["key"] for case in TABLES])
def test_tables_equal_the_reference(case: dict) -> None:
    cos, sin = table(rope_angles(tuple(case["thw"]), tuple(case["dims"]), case["theta"]))
    assert difference(cos, PRIMITIVES[f"rope.{case['key']}.cos"]) <= 1e-6
    assert difference(sin, PRIMITIVES[f"rope.{case['key']}.sin"]) <= 1e-6


@pytest.mark.parametrize("grid", [(33, 45, 80), (33, 34, 60)])
def test_rows_of_full_size_tables_equal_the_reference(grid: tuple[int, int, int]) -> None:
    key = "rope_rows." + "x".join(map(str, grid))
    rows = PRIMITIVES[f"{key}.index"]
    cos, sin = table(rope_angles(grid, (16, 56, 56), 256.0)[rows])
    assert difference(cos, PRIMITIVES[f"{key}.cos"]) <= 2e-5
    assert difference(sin, PRIMITIVES[f"{key}.sin"]) <= 2e-5


@pytest.mark.parametrize("part", ["q", "k"])
def test_the_rotation_equals_the_reference(part: str) -> None:
    rotation = torch.complex(PRIMITIVES["rope_apply.cos"][:, ::2], PRIMITIVES["rope_apply.sin"][:, ::2])
    found = apply_rope(PRIMITIVES[f"rope_apply.{part}"], rotation)
    assert difference(found, PRIMITIVES[f"rope_apply.{part}_out"]) <= 1e-6


@pytest.mark.parametrize("frames", [193, 201, 257])
def test_extrapolated_time_equals_the_reference(frames: int) -> None:
    latents = (frames - 1) // 4 + 1
    cos, sin = table(rope_angles((latents, 1, 1), (16, 56, 56), 256.0, EXTRAPOLATE))
    key = f"riflex.f{frames}.k4.T{latents}"
    assert difference(cos[:, :16], RIFLEX[f"{key}.cos_t"]) <= 1e-5
    assert difference(sin[:, :16], RIFLEX[f"{key}.sin_t"]) <= 1e-5


@pytest.mark.parametrize(("latents", "changes"), [(1, False), (48, False), (49, True), (65, True)])
def test_extrapolation_changes_clips_longer_than_192_frames_only(latents: int, changes: bool) -> None:
    grid = (latents, 50, 1)  # 50 rows of patches are no reason
    plain, other = (rope_angles(grid, (16, 16, 8), 256.0, settings) for settings in (RopeSettings(), EXTRAPOLATE))
    assert torch.equal(plain, other) is not changes
    assert torch.equal(plain[:, 8:], other[:, 8:])  # height and width


@pytest.mark.parametrize(("latents", "k"), [(49, 4), (65, 4), (101, 6), (126, 7), (200, 8)])
def test_extrapolation_slows_one_frequency_to_just_under_one_turn(latents: int, k: int) -> None:
    frequencies = axis_frequencies(16, 256.0)
    lowered = riflex_frequencies(frequencies, latents)
    assert (lowered != frequencies).nonzero().flatten().tolist() == [k - 1]
    assert lowered[k - 1].item() * latents == pytest.approx(0.9 * 2 * torch.pi)
    assert torch.equal(frequencies, axis_frequencies(16, 256.0))


def test_positions_are_whole_numbers_from_zero_with_width_fastest() -> None:
    angles = rope_angles((2, 3, 4), (2, 2, 2), 256.0)  # one pair per axis, frequency 1
    expected = [[t, h, w] for t in range(2) for h in range(3) for w in range(4)]
    assert angles.tolist() == expected


def test_attention_sees_only_how_far_apart_two_tokens_are() -> None:
    rotation = rope_rotation(rope_angles((4, 5, 6), (4, 10, 10), 256.0)).unflatten(0, (4, 5, 6))
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 24, generator=generator)

    def score(at: tuple[int, int, int], other: tuple[int, int, int]) -> Tensor:
        return (apply_rope(q, rotation[at][None]) * apply_rope(k, rotation[other][None])).sum()

    assert difference(score((1, 2, 3), (0, 4, 1)), score((3, 1, 5), (2, 3, 3))) <= 1e-5
    assert (score((1, 2, 3), (0, 4, 1)) - score((1, 2, 3), (0, 4, 2))).abs() > 1e-3


def test_rotating_keeps_lengths_and_leaves_the_first_token_alone() -> None:
    x = torch.randn(2, 6, 3, 16, generator=torch.Generator().manual_seed(0))
    turned = apply_rope(x, rope_rotation(rope_angles((1, 2, 3), (4, 6, 6), 256.0)))
    assert relative_error(turned.norm(dim=-1), x.norm(dim=-1)) <= 1e-6
    assert torch.equal(turned[:, 0], x[:, 0])
    assert not torch.equal(turned[:, 1], x[:, 1])


def test_a_rotation_in_16_bit_is_made_in_float32_and_rounded_once() -> None:
    x = torch.randn(1, 60, 2, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    rotation = rope_rotation(rope_angles((3, 4, 5), (16, 56, 56), 256.0))
    assert torch.equal(apply_rope(x, rotation), apply_rope(x.float(), rotation).bfloat16())


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RopeSettings().extrapolate = True  # type: ignore[misc]


@pytest.mark.parametrize("settings", [RopeSettings(), RopeSettings(True, (1.0, 0.5, 2.0))], ids=str)
@pytest.mark.parametrize(("low", "high"), [(0, 12_000), (0, 1), (37, 4001), (11_999, 12_000), (5, 5)])
def test_rows_put_together_from_tables_by_axis_are_those_of_the_full_table(
    settings: RopeSettings, low: int, high: int
) -> None:
    sizes = (60, 10, 20), (16, 56, 56), 256.0, settings
    tables = rotation_tables(*sizes)
    assert len(tables) == 12_000
    full = rope_rotation(rope_angles(*sizes))
    assert torch.allclose(tables.rows(low, high), full[low:high], rtol=0, atol=1e-6)
    assert tables.rows(low, high).shape == (high - low, 64)


def test_the_tables_by_axis_are_small() -> None:
    tables = rotation_tables((33, 45, 80), (16, 56, 56), 256.0)
    num_bytes = sum(part.nbytes for part in (*tables.axes, *tables.places))
    assert num_bytes < 0.03 * rope_rotation(rope_angles((33, 45, 80), (16, 56, 56), 256.0)).nbytes
