from __future__ import annotations

import pytest

from hyvideo_lib.lora.expressions import Budget, TooMuchWorkError
from hyvideo_lib.lora.peft_patterns import MAX_PATTERNS, Patterns


@pytest.mark.parametrize(
    ("pattern", "module", "fits"),
    [
        ("proj_out", "proj_out", True),
        ("proj_out", "single_transformer_blocks.0.proj_out", True),
        ("proj_out", "single_transformer_blocks.0.my_proj_out", False),
        ("proj_out", "proj_out.linear", False),
        ("^proj_out", "single_transformer_blocks.0.proj_out", False),
        ("^proj_out", "proj_out", True),
        (r"blocks\.\d+\.attn", "blocks.17.attn", True),
        (r"blocks\.\d+\.attn", "blocks.x.attn", False),
        ("attn.to_[qk]", "blocks.0.attn.to_k", True),
        ("to_q|to_k", "blocks.0.to_q", True),
        ("to_q|to_k", "blocks.0.to_v", False),
        ("blocks.0.to_q$", "blocks.0.to_q", True),
        (r".*\d", "blocks.0", True),
        (r"\w*_q", "attn.to_q", True),
    ],
)
def test_a_pattern_fits_a_whole_path_or_what_stands_behind_a_dot(pattern: str, module: str, fits: bool) -> None:
    assert Patterns({pattern: 4.0}).value(module) == (4 if fits else None)


def test_the_first_pattern_that_fits_holds() -> None:
    patterns = Patterns({"a.to_q": 1.0, "to_q": 2.0, "b.to_q": 3.0})
    assert [patterns.value(name) for name in ("a.to_q", "b.to_q", "c.to_q", "to_k")] == [1, 2, 2, None]


def test_too_many_patterns_are_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        Patterns({f"a{index}": 1.0 for index in range(MAX_PATTERNS + 1)})


def test_a_pattern_for_every_module_of_a_large_model_is_within_the_budget() -> None:
    names = [f"single_transformer_blocks.{block}.attn.to_{part}" for block in range(60) for part in "abcdefghijklmno"]
    patterns = Patterns({name: float(index) for index, name in enumerate(names)})
    assert [patterns.value(name) for name in names] == list(range(len(names)))


def test_patterns_that_take_too_long_together_are_refused() -> None:
    with pytest.raises(TooMuchWorkError):
        Patterns({"(.*a.{100})*x": 1.0}, Budget(1000))
