"""What holds for every name and every part: translations invert each other, and nothing of a file gets lost."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from hyvideo_lib.checkpoint.keymap_tables import SQUEEZE, SWAP_HALVES, TABLES
from hyvideo_lib.checkpoint.keymaps import (
    COMPANIONS,
    apply_operation,
    our_name,
    part_rows,
    their_names,
    to_tencent,
    undo_operation,
)
from hyvideo_lib.checkpoint.read import Header, TensorInfo

LAYOUTS = st.sampled_from(sorted(TABLES))
LEAVES = st.sampled_from(("weight", "bias", "", *sorted(COMPANIONS)))
INDICES = st.integers(0, 9999)


@st.composite
def tencent_names(draw: st.DrawFn) -> tuple[str, str, str]:
    """(kind, layout, a name that the layout has a rule for)."""
    kind, layout = draw(LAYOUTS)
    rule = draw(st.sampled_from(TABLES[kind, layout]))
    path = rule.ours.format(*draw(st.tuples(INDICES, INDICES)))
    leaf = draw(LEAVES)
    return kind, layout, f"{path}.{leaf}" if leaf else path


@given(case=tencent_names())
def test_every_part_of_a_translated_name_leads_back_to_it(case: tuple[str, str, str]) -> None:
    kind, layout, name = case
    sources = their_names(kind, layout, name)
    assert [source.part for source in sources] == list(range(sources[0].parts))
    for source in sources:
        assert our_name(kind, layout, source.name) == (name, source)


@given(where=LAYOUTS, name=st.text() | st.from_regex(r"[a-z_]+(\.[a-z0-9_]+){1,5}", fullmatch=True))
def test_a_name_of_any_kind_is_translated_both_ways_or_not_at_all(where: tuple[str, str], name: str) -> None:
    hit = our_name(*where, name)
    assert hit is None or name in [source.name for source in their_names(*where, hit[0])]
    for source in their_names(*where, name):
        assert our_name(*where, source.name) == (name, source)


@st.composite
def headers(draw: st.DrawFn) -> tuple[str, str, Header]:
    """Tensors of a layout, some parts of each, of shapes that may not belong together."""
    kind, layout = draw(LAYOUTS)
    rules = draw(st.lists(st.sampled_from(TABLES[kind, layout]), max_size=4))
    tensors: dict[str, TensorInfo] = {}
    for rule in rules:
        for theirs in draw(st.lists(st.sampled_from(rule.theirs), max_size=4)):
            name = f"{theirs.format(*draw(st.tuples(st.integers(0, 1), st.integers(0, 1))))}.{draw(LEAVES)}"
            shape = draw(st.sampled_from(((), (4,), (4, 4), (8, 4), (4, 4, 1, 1, 1))))
            tensors[name] = TensorInfo(name, "uint8", shape, 0, torch.Size(shape).numel())
    return kind, layout, Header(Path("a.safetensors"), tensors, {}, 0)


@given(case=headers())
def test_every_tensor_of_a_file_is_used_once_or_left_over(case: tuple[str, str, Header]) -> None:
    kind, layout, header = case
    translated = to_tencent(header, kind, layout)
    used = [source.name for sources in translated.sources.values() for source in sources]
    assert sorted([*used, *translated.leftover]) == sorted(header.tensors)
    assert translated.sources.keys() == translated.header.tensors.keys()
    for name, sources in translated.sources.items():
        if name.endswith((".weight", ".bias")):
            assert translated.header.tensors[name].num_bytes == sum(
                header.tensors[source.name].num_bytes for source in sources
            )
            assert len(sources) == sources[0].parts


@given(rows=st.integers(1, 50), parts=st.integers(1, 4), hidden=st.integers(1, 9))
def test_the_rows_of_the_parts_are_the_rows_of_the_whole(rows: int, parts: int, hidden: int) -> None:
    total = rows + hidden * (parts - 1)
    assert sum(part_rows(total, parts, hidden)) == total
    assert part_rows(total, parts, hidden)[-1] == rows


@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4), operation=st.sampled_from((SWAP_HALVES, SQUEEZE, "")))
def test_operations_invert_each_other(shape: list[int], operation: str) -> None:
    size = [2 * shape[0], *shape[1:]] if operation != SQUEEZE else (shape * 2)[:2]
    ours = torch.arange(torch.Size(size).numel()).view(size)
    assert torch.equal(apply_operation(operation, undo_operation(operation, ours)), ours)
