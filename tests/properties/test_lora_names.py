"""What holds for transformers of every size: a layer's names share out its rows, and suffixes leave the module."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hyvideo_lib.lora.families import DOTTED_PREFIXES, MODULE_NAMES, SUFFIXES, UNDERSCORED_PREFIXES, split_suffix
from hyvideo_lib.lora.names import every_name, layer_places, layer_sizes
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


@settings(max_examples=10)
@given(config=CONFIGS)
def test_every_name_with_every_prefix_means_the_same_place(config: TransformerConfig) -> None:
    names = every_name(config)
    for layout in MODULE_NAMES:
        for layer, size in layer_sizes(config).items():
            for name, place in layer_places(layer, size.out_features, layout, config.hidden_size):
                flat = name.replace(".", "_")
                spelled = [prefix + name for prefix in DOTTED_PREFIXES]
                for spelling in (*spelled, *(prefix + flat for prefix in UNDERSCORED_PREFIXES)):
                    found = names[spelling]
                    assert (found.layer, found.start, found.stop) == (place.layer, place.start, place.stop)


@given(stem=st.text(min_size=1).filter(lambda stem: split_suffix(stem) is None), suffix=st.sampled_from(list(SUFFIXES)))
def test_a_suffix_comes_off_whole_and_leaves_what_stood_before(stem: str, suffix: str) -> None:
    found = split_suffix(stem + suffix)
    assert found is not None
    rest, role = found
    assert stem + suffix == rest + next(end for end in SUFFIXES if (stem + suffix).endswith(end))
    assert role == SUFFIXES[suffix]
