"""The lean blocks against the plain ones, whatever the size of a chunk."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tiny import TRANSFORMER, randomise, relative_error, tiny_transformer, transformer_inputs
from tiny_lora import make_layers
from torch import Tensor, nn

from hyvideo_lib.attention import api, attend
from hyvideo_lib.checkpoint.joined import join_linear
from hyvideo_lib.lora.adapters import make_adapters
from hyvideo_lib.lora.update import Update
from hyvideo_lib.memory.dry_run import count_peak
from hyvideo_lib.quant import install, quantize_fp8
from hyvideo_lib.quant.linear import BlockLinear, ScaledLinear
from hyvideo_lib.transformer import LeanConfig, TransformerConfig, lean, ops
from hyvideo_lib.transformer.blocks import DoubleBlock, SingleBlock
from hyvideo_lib.transformer.model import FinalLayer, HunyuanVideoTransformer
from hyvideo_lib.transformer.modulation import Condition
from hyvideo_lib.transformer.rope import rotation_tables

CONFIG = replace(TRANSFORMER, num_heads=4, rope_axes=(4, 4, 4))
TURN = rotation_tables((3, 2, 3), CONFIG.rope_axes, CONFIG.rope_theta)
ROTATION = TURN.rows(0, len(TURN))
NUM_IMG, NUM_TXT = 18, 5
LEANS = [LeanConfig(groups, chunk) for groups in (1, 2, 3, 4, 9) for chunk in (1, 4, 7, 18, None)]
"""Against 4 heads; and 18 image tokens, 6 of them the first frame's, and 5 of text: borders inside, on and past every
span."""
CASES = [(None, 0), (None, 6), ([23, 20], 0), ([19, 23], 6)]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2}
"""Float32: DESIGN's bar for equal maths in another order. bfloat16: the gate and the residual round once, not twice."""


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(kind: type[nn.Module]) -> nn.Module:
    block = kind(CONFIG, ops)
    randomise(block, 0)
    return block


def make_condition(num_first: int, dtype: torch.dtype) -> Condition:
    vecs = noise(2, 2, TRANSFORMER.hidden_size, seed=1).to(dtype)
    return Condition(vecs[0], vecs[1], num_first) if num_first else Condition(vecs[0])


def valid(x: Tensor, lengths: list[int] | None) -> Tensor:
    """The rows that mean something."""
    return x.flatten(0, 1) if lengths is None else torch.cat([item[:n] for item, n in zip(x, lengths, strict=True)])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("config", LEANS, ids=str)
@pytest.mark.parametrize(("lengths", "num_first"), CASES)
def test_a_lean_double_block_equals_the_plain_one(
    config: LeanConfig, lengths: list[int] | None, num_first: int, dtype: torch.dtype
) -> None:
    block, condition = make(DoubleBlock), make_condition(num_first, dtype)
    img = noise(2, NUM_IMG, TRANSFORMER.hidden_size, seed=2).to(dtype)
    txt = noise(2, NUM_TXT, TRANSFORMER.hidden_size, seed=3).to(dtype)
    with torch.no_grad():
        plain = block(img, txt, condition, ROTATION, lengths)
        found = lean.double_block(block, img, txt, condition, TURN, lengths, lean.Form(config))
    assert relative_error(found[0], plain[0]) <= TOLERANCE[dtype]
    text = None if lengths is None else [n - NUM_IMG for n in lengths]
    assert relative_error(valid(found[1], text), valid(plain[1], text)) <= TOLERANCE[dtype]
    assert (found[0].data_ptr(), found[1].data_ptr()) == (img.data_ptr(), txt.data_ptr())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("config", LEANS, ids=str)
@pytest.mark.parametrize(("lengths", "num_first"), CASES)
def test_a_lean_single_block_equals_the_plain_one(
    config: LeanConfig, lengths: list[int] | None, num_first: int, dtype: torch.dtype
) -> None:
    block, condition = make(SingleBlock), make_condition(num_first, dtype)
    x = noise(2, NUM_IMG + NUM_TXT, TRANSFORMER.hidden_size, seed=2).to(dtype)
    with torch.no_grad():
        plain = block(x, condition, ROTATION, lengths)
        found = lean.single_block(block, x, condition, TURN, lengths, lean.Form(config))
    assert relative_error(valid(found, lengths), valid(plain, lengths)) <= TOLERANCE[dtype]
    assert found.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("groups", [1, 2])
def test_items_of_unequal_length_take_no_more_than_equal_ones(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they run one by one; and they come to the same."""
    monkeypatch.setattr(api, "PER_ITEM_TOKENS", 0)
    block, condition, form = make(SingleBlock), make_condition(0, torch.float32), lean.Form(LeanConfig(groups))
    x, lengths = noise(2, NUM_IMG + NUM_TXT, TRANSFORMER.hidden_size, seed=2), [23, 20]
    with torch.no_grad():
        plain = block(x, condition, ROTATION, lengths)
        found = lean.single_block(block, x, condition, TURN, lengths, form)
    assert relative_error(valid(found, lengths), valid(plain, lengths)) <= TOLERANCE[torch.float32]

    def peak(lengths: list[int] | None) -> int:
        like = torch.empty(2, 4096, 64, device="meta")
        return count_peak(lambda: lean.Joint(like, 4096, 4, 0, 4).attend(lengths, attend))

    assert peak([4096, 4000]) <= peak(None)


@pytest.mark.parametrize("chunk", [1, 4, 7, 18, None])
def test_a_lean_final_layer_equals_the_plain_one(chunk: int | None) -> None:
    layer = make(FinalLayer)
    x, vec = noise(2, NUM_IMG, TRANSFORMER.hidden_size, seed=2), noise(2, TRANSFORMER.hidden_size, seed=3)
    before = x.clone()
    with torch.no_grad():
        found = layer(x, vec, LeanConfig(chunk_tokens=chunk))
    assert relative_error(found, layer(x, vec).detach()) <= 1e-6
    assert torch.equal(x, before)


@pytest.mark.parametrize("config", [LeanConfig(), LeanConfig(1, 5), LeanConfig(2, 5), LeanConfig(4)], ids=str)
@pytest.mark.parametrize("clean_first_frame", [False, True])
def test_a_whole_model_without_gradients_equals_one_with_them(config: LeanConfig, clean_first_frame: bool) -> None:
    model, inputs = tiny_transformer(CONFIG), transformer_inputs(2, valid=(11, 4))
    plain = model(**inputs, clean_first_frame=clean_first_frame).detach()
    with torch.no_grad():
        found = model(**inputs, clean_first_frame=clean_first_frame, lean=config)
    assert relative_error(found, plain) <= 1e-6
    with torch.inference_mode():
        found = model(**inputs, clean_first_frame=clean_first_frame, lean=config)
    assert relative_error(found, plain) <= 1e-6


def with_fp8(config: TransformerConfig) -> HunyuanVideoTransformer:
    """A model whose blocks keep their weights in fp8, with one scale each."""
    state = {}
    for name, tensor in tiny_transformer(config).state_dict().items():
        if tensor.ndim == 2 and "blocks." in name:
            state[name], scale = quantize_fp8(tensor)
            state[name.replace(".weight", ".fp8_scale")] = scale.reshape(1)
        else:
            state[name] = tensor
    with torch.device("meta"):
        model = HunyuanVideoTransformer(config)
    model.load_state_dict(install(model, state, "fp8_scale"), strict=True, assign=True)
    assert isinstance(model.get_submodule("single_blocks.0.linear1"), ScaledLinear)
    return model.requires_grad_(False)


def with_gguf(config: TransformerConfig) -> HunyuanVideoTransformer:
    """A model whose query, key and value weights are rows of ggml blocks."""
    model = tiny_transformer(config)
    for block in model.blocks:
        for name in ("img_attn_qkv", "txt_attn_qkv", "linear1"):
            old = getattr(block, name, None)
            if old is not None:
                new = BlockLinear(old.in_features, old.out_features, ggml_type="q8_0")
                blocks = torch.randint(0, 256, new.weight.shape, dtype=torch.uint8, generator=generator())
                blocks.view(new.out_features, -1, 34)[..., 1] = 32  # float16 scales of about 0.01
                new.weight.data, new.bias.data = blocks, old.bias.data
                setattr(block, name, new)
    return model.requires_grad_(False)


def with_parts(config: TransformerConfig) -> HunyuanVideoTransformer:
    """A model whose query, key and value weights are tensors of their own, as diffusers' files have them."""
    size, model = config.hidden_size, tiny_transformer(config)
    for i in range(config.num_double_blocks):
        path = f"double_blocks.{i}.img_attn_qkv"
        weight, bias = model.get_submodule(path).weight.data, model.get_submodule(path).bias.data
        join_linear(model, path, (size, size, size))
        joined = model.get_submodule(path).to_empty(device="cpu")
        joined.bias.data = bias
        for part, rows in zip(joined.parts, weight.split(size), strict=True):
            part.weight.data = rows.clone()
    return model


def with_lora(config: TransformerConfig) -> HunyuanVideoTransformer:
    model = tiny_transformer(config)
    updates = {name: [(Update(0, len(part.up), low_rank=part), 1.0)] for name, part in make_layers().items()}
    for name, adapter in make_adapters(model, updates).items():
        model.get_submodule(name).adapters = (adapter,)
    return model


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("build", [with_fp8, with_gguf, with_parts, with_lora])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_head_groups_take_their_rows_of_weights_of_every_kind(build, groups: int) -> None:
    config = replace(CONFIG, hidden_size=64, rope_axes=(4, 6, 6)) if build is with_gguf else CONFIG
    model, inputs = build(config), transformer_inputs(2, valid=(11, 4), config=config)
    with torch.enable_grad():
        plain = model(**inputs).detach()
    assert plain.isfinite().all()
    with torch.no_grad():
        assert relative_error(model(**inputs, lean=LeanConfig(groups, 5)), plain) <= 1e-6


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


@pytest.mark.parametrize("length", [0, 1, 7, 8, 12])
@pytest.mark.parametrize("border", [0, 3, 4, 7])
def test_pieces_cover_every_token_once_in_order_and_cross_no_border(length: int, border: int) -> None:
    mods = noise(1, 1, 1, seed=0), noise(1, 1, 1, seed=1)
    spans = [(0, border, mods[:1]), (border, None, mods[1:])] if border else [(0, None, mods[1:])]
    found = list(lean.pieces(torch.zeros(1, length, 2), spans, LeanConfig(chunk_tokens=4)))
    assert [token for low, high, _ in found for token in range(low, high)] == list(range(length))
    assert all(high - low <= 4 for low, high, _ in found)
    assert all((high <= border) if which is spans[0][2] and border else (low >= border) for low, high, which in found)


@pytest.mark.parametrize(("heads", "count"), [(24, 1), (24, 5), (24, 24), (4, 9), (1, 2)])
def test_every_head_is_in_one_group(heads: int, count: int) -> None:
    groups = list(lean.head_groups(heads, count))
    assert [head for first, last in groups for head in range(first, last)] == list(range(heads))
    assert len(groups) == min(heads, count)
    assert max(last - first for first, last in groups) == -(-heads // len(groups))
