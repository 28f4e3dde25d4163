from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tiny import TRANSFORMER
from tiny_lora import make_layers

from hyvideo_lib.errors import OutputExists
from hyvideo_lib.lora import FAMILIES, LowRank, write_lora
from hyvideo_lib.lora.write import join_low_rank, join_rows, lora_tensors, split_low_rank, split_rows

HIDDEN = TRANSFORMER.hidden_size


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.sampled_from([torch.bfloat16, torch.float32]))
def test_fused_to_split_and_back_is_the_same_bits(rows: list[int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(sum(rows))
    fused = LowRank(
        torch.randn(2, 5, generator=generator).to(dtype), torch.randn(sum(rows), 2, generator=generator).to(dtype), 0.3
    )
    back = join_low_rank(split_low_rank(fused, rows), rows)
    assert torch.equal(back.down, fused.down)
    assert torch.equal(back.up, fused.up)
    assert back.scale == fused.scale
    delta = fused.product()
    assert torch.equal(join_rows(split_rows(delta, rows), rows), delta)


def test_merging_cut_parts_is_cutting_the_merged_weight() -> None:
    """weight + scale * up @ down, with the fused matrix cut in blocks of rows: before or after, the same bits."""
    rows = (HIDDEN, HIDDEN, HIDDEN, 4 * HIDDEN)
    fused = make_layers(("single_blocks.0.linear1",))["single_blocks.0.linear1"]
    weight = torch.randn(7 * HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(2))
    whole = weight + fused.product()
    parts = [
        part + split.product() for part, split in zip(weight.split(rows), split_low_rank(fused, rows), strict=True)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_parts_of_different_rank_and_scale_become_one_product_with_zeros_where_one_is_missing() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [
        LowRank(torch.randn(rank, 5, generator=generator), torch.randn(4, rank, generator=generator), scale)
        for rank, scale in ((1, 0.5), (3, 2.0))
    ]
    joined = join_low_rank([parts[0], None, parts[1]], (4, 2, 4))
    expected = torch.cat([parts[0].product(), torch.zeros(2, 5), parts[1].product()])
    assert joined.rank == 4
    assert torch.allclose(joined.product(), expected, atol=1e-6)


def test_the_halves_of_the_last_modulation_change_places_for_diffusers() -> None:
    layers = make_layers(("final_layer.adaLN_modulation.1",))
    up = layers["final_layer.adaLN_modulation.1"].up
    theirs = lora_tensors(layers, "onetrainer", HIDDEN)["lora_transformer_norm_out_linear.lora_up.weight"]
    assert torch.equal(theirs, torch.cat([up[HIDDEN:], up[:HIDDEN]]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_file_is_whole_and_replaces_nothing_unasked(tmp_path: Path, family: str) -> None:
    path = tmp_path / "lora.safetensors"
    layers = make_layers(("double_blocks.0.img_attn_qkv",))
    write_lora(path, layers, family, HIDDEN)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(lora_tensors(layers, family, HIDDEN))
    with pytest.raises(OutputExists):
        write_lora(path, layers, family, HIDDEN)
    write_lora(path, layers, family, HIDDEN, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["lora.safetensors"]
