"""What holds for every header: order and prefixes change nothing, and a file that lacks something is never accepted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hyvideo_lib.checkpoint.blueprint import BLUEPRINTS
from hyvideo_lib.checkpoint.examine import examine
from hyvideo_lib.checkpoint.read import Header, TensorInfo, read_header
from hyvideo_lib.checkpoint.variants import VARIANTS, choose_variant, possible_variants
from hyvideo_lib.demo import assets

FILES = {"transformer": assets.TRANSFORMER, "vae": assets.VAE, "llama": assets.LLM, "clip": assets.CLIP}
PREFIXES = {
    "transformer": ("", "model.", "model.diffusion_model.", "diffusion_model.", "module."),
    "vae": ("", "vae.", "first_stage_model."),
    "llama": ("", "model.", "language_model.model."),
    "clip": ("", "clip_l.", "text_encoder."),
}
FEW = settings(max_examples=25)


@cache
def header_of(kind: str) -> Header:
    return read_header(FILES[kind])


@cache
def needed(kind: str) -> list[str]:
    """Names of the tensors that a model of this kind and size cannot do without, as the file has them."""
    findings = examine(header_of(kind))
    return sorted(BLUEPRINTS[kind].contents(findings.config).needed.keys() & header_of(kind).tensors.keys())


def with_tensors(header: Header, tensors: Iterable[TensorInfo]) -> Header:
    return replace(header, tensors={info.name: info for info in tensors})


@pytest.mark.parametrize("kind", FILES)
def test_the_files_are_recognised(kind: str) -> None:
    findings = examine(header_of(kind))
    assert (findings.kind, findings.reason) == (kind, "")
    assert len(needed(kind)) > 20


@FEW
@given(kind=st.sampled_from(sorted(FILES)), seed=st.randoms(use_true_random=False), data=st.data())
def test_neither_order_nor_prefix_changes_what_a_file_is(kind: str, seed: object, data: st.DataObject) -> None:
    header, prefix = header_of(kind), data.draw(st.sampled_from(PREFIXES[kind]))
    infos = [replace(info, name=prefix + name) for name, info in header.tensors.items()]
    seed.shuffle(infos)
    found, expected = examine(with_tensors(header, infos)), examine(header)
    assert (found.kind, found.layout, found.config, found.reason) == (kind, expected.layout, expected.config, "")
    assert found.match is not None
    assert found.match.prefix == prefix


@FEW
@given(kind=st.sampled_from(sorted(FILES)), data=st.data())
def test_a_file_without_some_of_its_tensors_is_never_accepted(kind: str, data: st.DataObject) -> None:
    header = header_of(kind)
    lost = data.draw(st.sets(st.sampled_from(needed(kind)), min_size=1, max_size=30))
    findings = examine(with_tensors(header, [info for name, info in header.tensors.items() if name not in lost]))
    assert findings.reason
    if findings.config == examine(header).config:
        assert set(findings.missing) == lost


@FEW
@given(kind=st.sampled_from(sorted(FILES)), data=st.data())
def test_a_tensor_of_another_shape_is_never_accepted(kind: str, data: st.DataObject) -> None:
    header = header_of(kind)
    name = data.draw(st.sampled_from(needed(kind)))
    info = header.tensors[name]
    shape = data.draw(st.lists(st.integers(1, 9), max_size=5).map(tuple).filter(lambda shape: shape != info.shape))
    findings = examine(replace(header, tensors={**header.tensors, name: replace(info, shape=shape)}))
    assert findings.reason


@FEW
@given(name=st.text(min_size=1, max_size=20), kind=st.sampled_from(sorted(FILES)))
def test_a_tensor_that_belongs_nowhere_is_named(name: str, kind: str) -> None:
    header = header_of(kind)
    stranger = TensorInfo(f"stranger.{name}", "float32", (3,), 0, 12)
    findings = examine(replace(header, tensors={**header.tensors, stranger.name: stranger}))
    assume(findings.quantization == examine(header).quantization)  # not a scale's name, which tells another storage
    assert findings.kind == kind
    assert findings.unexpected == (stranger.name,)
    assert "Unexpected tensors (1)" in findings.reason


@given(in_channels=st.integers(1, 200), out_channels=st.integers(1, 100), name=st.text(), data=st.data())
def test_a_choice_is_taken_exactly_where_the_tensors_allow_it(
    in_channels: int, out_channels: int, name: str, data: st.DataObject
) -> None:
    possible = possible_variants(in_channels, out_channels)
    choice = data.draw(st.sampled_from((None, *VARIANTS)) | st.text())
    variant, notes, complaint = choose_variant(possible, name, choice)
    assert variant in possible
    assert bool(complaint) == (choice is not None and choice not in possible)
    assert variant == (choice if choice in possible else possible[0])
    assert bool(notes) != bool(complaint)
