from __future__ import annotations

import pytest

from hyvideo_lib.lora.families import REFUSED_SUFFIXES, SUFFIXES, other_model, refused_method, split_suffix


def test_no_suffix_is_the_end_of_another() -> None:
    for suffix in SUFFIXES:
        assert [other for other in SUFFIXES if other != suffix and other.endswith(suffix)] == []
        assert split_suffix(f"a.b{suffix}") == ("a.b", SUFFIXES[suffix])
        assert split_suffix(suffix) is None
        assert refused_method(f"a.b{suffix}") is None


@pytest.mark.parametrize("suffix", REFUSED_SUFFIXES)
def test_other_methods_are_told_by_name_and_taken_for_no_role(suffix: str) -> None:
    assert refused_method(f"a.b{suffix}") == REFUSED_SUFFIXES[suffix]
    assert split_suffix(f"a.b{suffix}") is None


def test_names_that_end_otherwise_have_no_role() -> None:
    assert split_suffix("double_blocks.0.img_attn_qkv.weight") is None
    assert refused_method("double_blocks.0.img_attn_qkv.weight") is None


def test_another_model_is_told_by_the_metadata() -> None:
    assert other_model({}) is None
    assert other_model({"modelspec.architecture": "Wan2.1"}) == "Wan"
    assert other_model({"ss_base_model_version": "hunyuan_video"}) is None
