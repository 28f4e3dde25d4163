"""The lean blocks against the plain ones, whatever the size of a chunk."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import TRANSFORMER, randomise, relative_error, tiny_transformer, transformer_inputs
from torch import Tensor, nn

from hyvideo_lib.transformer import lean, ops
from hyvideo_lib.transformer.blocks import DoubleBlock, SingleBlock
from hyvideo_lib.transformer.model import FinalLayer
from hyvideo_lib.transformer.modulation import Condition
from hyvideo_lib.transformer.rope import rope_angles, rope_rotation

ROTATION = rope_rotation(rope_angles((3, 2, 3), TRANSFORMER.rope_axes, TRANSFORMER.rope_theta))
NUM_IMG, NUM_TXT = 18, 5
CHUNKS = [1, 4, 7, 18, 2048]
"""Against 18 image tokens, 6 of them the first frame's, and 5 of text: borders inside, on and past every span."""
CASES = [(None, 0), (None, 6), ([23, 20], 0), ([19, 23], 6)]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2}
"""Float32: DESIGN's bar for equal maths in another order. bfloat16: the gate and the residual round once, not twice."""


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(kind: type[nn.Module]) -> nn.Module:
    block = kind(TRANSFORMER, ops)
    randomise(block, 0)
    return block


def make_condition(num_first: int, dtype: torch.dtype) -> Condition:
    vecs = noise(2, 2, TRANSFORMER.hidden_size, seed=1).to(dtype)
    return Condition(vecs[0], vecs[1], num_first) if num_first else Condition(vecs[0])


def valid(x: Tensor, lengths: list[int] | None) -> Tensor:
    """The rows that mean something."""
    return x.flatten(0, 1) if lengths is None else torch.cat([item[:n] for item, n in zip(x, lengths, strict=True)])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("lengths", "num_first"), CASES)
def test_a_lean_double_block_equals_the_plain_one(
    chunk: int, lengths: list[int] | None, num_first: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean, "CHUNK_TOKENS", chunk)
    block, condition = make(DoubleBlock), make_condition(num_first, dtype)
    img = noise(2, NUM_IMG, TRANSFORMER.hidden_size, seed=2).to(dtype)
    txt = noise(2, NUM_TXT, TRANSFORMER.hidden_size, seed=3).to(dtype)
    with torch.no_grad():
        plain = block(img, txt, condition, ROTATION, lengths)
        found = lean.double_block(block, img, txt, condition, ROTATION, lengths)
    assert relative_error(found[0], plain[0]) <= TOLERANCE[dtype]
    text = None if lengths is None else [n - NUM_IMG for n in lengths]
    assert relative_error(valid(found[1], text), valid(plain[1], text)) <= TOLERANCE[dtype]
    assert (found[0].data_ptr(), found[1].data_ptr()) == (img.data_ptr(), txt.data_ptr())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("lengths", "num_first"), CASES)
def test_a_lean_single_block_equals_the_plain_one(
    chunk: int, lengths: list[int] | None, num_first: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean, "CHUNK_TOKENS", chunk)
    block, condition = make(SingleBlock), make_condition(num_first, dtype)
    x = noise(2, NUM_IMG + NUM_TXT, TRANSFORMER.hidden_size, seed=2).to(dtype)
    with torch.no_grad():
        plain = block(x, condition, ROTATION, lengths)
        found = lean.single_block(block, x, condition, ROTATION, lengths)
    assert relative_error(valid(found, lengths), valid(plain, lengths)) <= TOLERANCE[dtype]
    assert found.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_lean_final_layer_equals_the_plain_one(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "CHUNK_TOKENS", chunk)
    layer = make(FinalLayer)
    x, vec = noise(2, NUM_IMG, TRANSFORMER.hidden_size, seed=2), noise(2, TRANSFORMER.hidden_size, seed=3)
    before = x.clone()
    with torch.no_grad():
        found = layer(x, vec)
    assert relative_error(found, layer(x, vec).detach()) <= 1e-6
    assert torch.equal(x, before)


@pytest.mark.parametrize("chunk", [5, 2048])
@pytest.mark.parametrize("clean_first_frame", [False, True])
def test_a_whole_model_without_gradients_equals_one_with_them(
    chunk: int, clean_first_frame: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean, "CHUNK_TOKENS", chunk)
    model, inputs = tiny_transformer(), transformer_inputs(2, valid=(11, 4))
    plain = model(**inputs, clean_first_frame=clean_first_frame).detach()
    with torch.no_grad():
        assert relative_error(model(**inputs, clean_first_frame=clean_first_frame), plain) <= 1e-6
    with torch.inference_mode():
        assert relative_error(model(**inputs, clean_first_frame=clean_first_frame), plain) <= 1e-6


def test_the_lean_blocks_run_exactly_when_no_gradient_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny_transformer(), transformer_inputs()
    ran: list[str] = []
    for name in ("double_block", "single_block"):
        original = getattr(lean, name)
        monkeypatch.setattr(lean, name, lambda *args, _run=original, _name=name: ran.append(_name) or _run(*args))
    model(**inputs)
    assert ran == []
    with torch.no_grad():
        model(**inputs)
    assert ran == ["double_block"] * 2 + ["single_block"] * 2


def test_the_callers_tensors_are_left_as_they_were() -> None:
    model, inputs = tiny_transformer(), transformer_inputs(2, valid=(11, 4))
    before = copy.deepcopy(inputs)
    with torch.no_grad():
        first = model(**inputs, guidance=torch.tensor([6.0, 3.0]), clean_first_frame=True)
        assert torch.equal(model(**inputs, guidance=torch.tensor([6.0, 3.0]), clean_first_frame=True), first)
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


@pytest.mark.parametrize(("start", "end"), [(0, 0), (0, 7), (3, 7), (3, 4), (0, 8), (5, 12)])
def test_chunks_cover_every_token_once_in_order(start: int, end: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "CHUNK_TOKENS", 4)
    pieces = list(lean.chunks(start, end))
    assert [token for low, high in pieces for token in range(low, high)] == list(range(start, end))
    assert all(high - low <= 4 for low, high in pieces)
