"""What holds for transformers of every size: a layer's names share out its rows, and suffixes leave the module."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hyvideo_lib.checkpoint.lora_layers import MODULE_NAMES, every_name, layer_places, layer_sizes, words_of
from hyvideo_lib.checkpoint.lora_match import match_modules
from hyvideo_lib.checkpoint.lora_tensors import split_name
from hyvideo_lib.transformer import TransformerConfig

CONFIGS = st.builds(
    lambda channels, heads, double, single: TransformerConfig(
        channels, channels, 24 * heads, heads, double, single, rope_axes=(4, 10, 10), text_dim=8, pooled_dim=8
    ),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
)


@settings(max_examples=10)
@given(config=CONFIGS)
def test_in_every_layout_the_parts_of_a_layer_are_all_of_its_rows_in_order(config: TransformerConfig) -> None:
    for layout in MODULE_NAMES:
        for layer, size in layer_sizes(config).items():
            places = [place for _, place in layer_places(layer, size.out_features, layout, config.hidden_size)]
            assert [place.start for place in places] == [0, *(place.stop for place in places[:-1])]
            assert places[-1].stop == size.out_features
            assert {place.layer for place in places} == {layer}


WORD = st.text("abcxyz", min_size=1, max_size=5).map(lambda word: f"q{word}")  # no layer has one of these
PREFIX = st.lists(WORD, max_size=3).map(lambda words: "".join(f"{word}." for word in words))


@settings(max_examples=10)
@given(config=CONFIGS, prefix=PREFIX, mark=st.sampled_from("._"))
def test_every_name_behind_any_words_means_the_same_place(config: TransformerConfig, prefix: str, mark: str) -> None:
    for layout in MODULE_NAMES:
        expected = {}
        for layer, size in layer_sizes(config).items():
            for name, place in layer_places(layer, size.out_features, layout, config.hidden_size):
                expected[(prefix + name).replace(".", mark)] = place
                assert every_name(config)[words_of(name)][name].layer == layer
        hits = match_modules(expected, config)
        assert hits.keys() == expected.keys()
        for stem, place in expected.items():
            found = hits[stem].place
            assert (found.layer, found.start, found.stop) == (place.layer, place.start, place.stop)


SUFFIXES = (".lora_A.weight", ".lora_up.weight", ".alpha", ".lokr_w2_b", ".dora_scale", ".w_norm", ".lora_B.bias")


@given(stem=st.text(min_size=1).filter(lambda stem: split_name(stem) is None), suffix=st.sampled_from(SUFFIXES))
def test_a_suffix_comes_off_whole_and_leaves_what_stood_before(stem: str, suffix: str) -> None:
    found = split_name(stem + suffix)
    assert found is not None
    assert (stem + suffix).startswith(found.stem)
    assert (stem + suffix).endswith(suffix)
    assert len(found.stem) <= len(stem)
