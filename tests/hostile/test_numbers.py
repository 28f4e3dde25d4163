"""NaN and infinity are found in the stage where they arise. Full size: `python -m benchmarks.hostile numbers`."""

from __future__ import annotations

import pytest
import torch

from benchmarks.hostile.numbers import FILES, GIVEN, INJECTIONS, decode_broken, inject, notice, pixel_stage, poison
from hyvideo_lib.checkpoint.read import map_tensors, read_header

FEW = [case for case in INJECTIONS if case.tensor.endswith(("embed_tokens.weight", "layer_norm.weight", "proj.weight"))]


@pytest.mark.parametrize("case", [*FEW, INJECTIONS[-1]], ids=lambda case: f"{case.role} {case.tensor}")
def test_an_injected_number_is_found_at_its_stage(case, tmp_path):
    assert inject(case, tmp_path) is None


def test_broken_latents_are_refused_before_decoding():
    assert notice(lambda: pixel_stage(decode_broken), GIVEN) is None


def test_a_run_in_which_nothing_is_noticed_counts_as_a_failure():
    assert notice(lambda: None, "") == "not noticed"


def test_the_poison_is_one_number_in_one_tensor(tmp_path):
    path = poison(FILES.vae, "decoder.conv_out.conv.bias", float("nan"), tmp_path / "vae.safetensors")
    before, after = (map_tensors(read_header(file)) for file in (FILES.vae, path))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["decoder.conv_out.conv.bias"]
    assert int(after[changed[0]].isnan().sum()) == 1
