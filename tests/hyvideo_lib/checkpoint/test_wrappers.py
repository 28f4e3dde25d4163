from __future__ import annotations

import pytest

from hyvideo_lib.checkpoint.wrappers import (
    Beginnings,
    find_twins,
    prefix_before,
    strip_wrappers,
    wrappers_in,
)

LAYER = "double_blocks.0.img_mod.linear.weight"


@pytest.mark.parametrize(
    "name",
    [
        "double_blocks.0._orig_mod.img_mod.linear.weight",
        "_orig_mod.double_blocks.0.img_mod.linear.weight",
        "module._fsdp_wrapped_module.double_blocks.0._checkpoint_wrapped_module.img_mod.linear.base_layer.weight",
        "double_blocks.0.inner.img_mod.linear.weight",
        LAYER,
    ],
)
def test_words_of_wrappers_are_dropped_wherever_they_stand(name: str) -> None:
    assert strip_wrappers([name]) == {name: LAYER}


def test_a_tensors_own_word_stays() -> None:
    assert strip_wrappers(["a.module", "module"]) == {"a.module": "a.module", "module": "module"}


def test_two_names_that_become_one_are_found() -> None:
    bare = strip_wrappers(["a.module.b", "c.d", "a.b"])
    assert find_twins(bare) == (("a.module.b", "a.b"),)


def test_the_words_that_were_dropped_are_told() -> None:
    assert wrappers_in(["a.module.b", "_orig_mod.c", "d.inner"]) == ("_orig_mod", "module")


def test_a_prefix_is_found_before_words_among_which_wrappers_stand() -> None:
    assert prefix_before("net._orig_mod.a.module.b.w", "a.b.w") == "net._orig_mod."
    assert prefix_before("a.module.b.w", "a.b.w") == ""


def test_a_beginning_counts_at_the_begin_of_a_word_only() -> None:
    beginnings = Beginnings(["x.y.blocks.0.w", "blocks.0.w", "double_blocks.0.w", "x.other.0.w"])
    assert beginnings.prefixes("blocks.0.") == ("", "x.y.")
    assert beginnings.prefixes("nothing.|other.0.") == ("x.",)
