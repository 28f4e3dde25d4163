from __future__ import annotations

import json

import pytest

from hyvideo_lib.lora.scales import PEFT_METADATA, peft_scales, scale_from_alpha


@pytest.mark.parametrize(("alpha", "rank", "scale"), [(None, 8, 1), (0, 8, 1), (4, 8, 0.5), (16, 8, 2), (8, 8, 1)])
def test_the_scale_is_alpha_over_rank(alpha: float | None, rank: int, scale: float) -> None:
    assert scale_from_alpha(alpha, rank) == scale


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_an_alpha_that_is_no_number_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha is"):
        scale_from_alpha(alpha, 8)


def peft(**entries: object):
    return peft_scales({PEFT_METADATA: json.dumps({f"transformer.{key}": value for key, value in entries.items()})})


def test_a_peft_configuration_tells_alpha_for_all_and_for_some() -> None:
    scales = peft(lora_alpha=4, r=8, alpha_pattern={"proj_out": 2, "^attn.to_q$": 16})
    assert scales.scale("transformer.x.norm.linear", 8) == 0.5
    assert scales.scale("transformer.x.proj_out", 8) == 0.25
    assert scales.scale("transformer.x.attn.to_q", 8) == 2
    assert scales.scale("transformer.my_proj_out", 8) == 0.5


def test_rank_stabilised_lora_divides_by_the_root() -> None:
    assert peft(lora_alpha=4, use_rslora=True).scale("x", 16) == 1
    assert peft(lora_alpha=4, use_rslora=False).scale("x", 16) == 0.25


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"transformer.lora_alpha": "4"}', '{"transformer.lora_alpha": true}']
)
def test_metadata_that_says_nothing_leaves_the_scale_at_1(text: str) -> None:
    assert peft_scales({PEFT_METADATA: text}).scale("x", 8) == 1
    assert peft_scales({}).scale("x", 8) == 1
