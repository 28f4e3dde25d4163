"""LoRAs in the weight, for many tokens, and beside it, for few: one result, and the weight at home stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import TRANSFORMER, relative_error, tiny_transformer, transformer_inputs
from tiny_lora import make_layers
from torch import Tensor

from hyvideo_lib.checkpoint.joined import JoinedLinear
from hyvideo_lib.checkpoint.lora_layers import LayerSize
from hyvideo_lib.lora import LoraUse, LowRank, attach, read_lora
from hyvideo_lib.lora.adapters import LinearAdapter
from hyvideo_lib.lora.blocks import BlockChoice
from hyvideo_lib.lora.cost import Cost, cost_of
from hyvideo_lib.lora.update import Update, Weighted
from hyvideo_lib.lora.write import lora_tensors
from hyvideo_lib.memory import BlockSwap, Offloader
from hyvideo_lib.memory.copy_engine import can_stream
from hyvideo_lib.memory.dry_run import AllocationCounter
from hyvideo_lib.pipeline import sampler
from hyvideo_lib.quant import PRODUCTS, plain_fp8_state_dict, quantize_fp8
from hyvideo_lib.quant.linear import BlockLinear, ScaledLinear
from hyvideo_lib.transformer import LeanConfig
from hyvideo_lib.transformer.loan import Loan, on_loan
from hyvideo_lib.transformer.ops import Linear

SIZE = LayerSize(out_features=48, in_features=32)
ENOUGH = 77
"""Four times the tokens at which both ways take SIZE's 48 x 32 multiplications, 19.2."""
LONG = {"latent_shape": (11, 8, 8)}
"""176 image tokens, more than any of the tiny transformer's weights asks for."""
Save = Callable[..., Path]


def numbers(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def product(seed: int, start: int = 0, stop: int = SIZE.out_features, rank: int = 4) -> Weighted:
    down, up = numbers(rank, SIZE.in_features, seed=seed), numbers(stop - start, rank, seed=seed + 1, size=0.1)
    return Update(start, stop, LowRank(down, up, 0.5)), 0.7


def whole(seed: int) -> Weighted:
    weight = numbers(SIZE.out_features, SIZE.in_features, seed=seed, size=0.05)
    return Update(0, SIZE.out_features, diff=weight, bias_diff=numbers(SIZE.out_features, seed=seed + 1)), -0.5


UPDATES = {
    "a product": [product(1)],
    "products of parts": [product(1, 0, 16), product(3, 32, 48), product(5)],
    "a whole difference": [whole(7)],
    "all of it": [product(1, 16, 32), whole(7), product(9)],
    "a bias": [(Update(0, SIZE.out_features, bias_diff=numbers(SIZE.out_features, seed=11)), 2.0)],
}


def layer_with(updates: Sequence[Weighted], bias: bool = True, dtype: torch.dtype = torch.float32) -> Linear:
    torch.manual_seed(0)
    layer = Linear(SIZE.in_features, SIZE.out_features, bias=bias).to(dtype).requires_grad_(False)
    layer.adapters = (LinearAdapter(SIZE, updates),)
    return layer


def beside(layer: Linear, x: Tensor, rows: slice) -> Tensor:
    """By definition: what the layer puts out, and the term."""
    (adapter,), layer.adapters = layer.adapters, ()
    adapter.place(x.device, x.dtype)
    y = layer(x, rows) + adapter.beside(rows)(x)
    layer.adapters = (adapter,)
    return y


# When


def test_merging_begins_at_four_times_the_tokens_where_both_take_the_same_multiplications() -> None:
    def first(out_features: int, in_features: int, rank: int, has_diff: bool = False) -> int:
        cost = Cost(LayerSize(out_features, in_features), rank, has_diff, False)
        return next(tokens for tokens in range(100_000) if cost.merging_pays(tokens))

    assert first(3 * 3072, 3072, 16) == first(3 * 3072, 3072, 128) == 4 * 2304
    assert first(3072, 3072, 32) == 4 * 1536
    assert first(7 * 3072, 3072, 32) == 4 * 2688
    assert first(3072, 5 * 3072, 32) == 4 * 2560
    assert first(3072, 3072, 0, has_diff=True) == 4  # a whole difference doubles the product for every token
    assert not Cost(LayerSize(8, 8), 0, False, True).merging_pays(10**6)  # a bias alone is added as it is


def test_the_cost_of_updates_is_what_they_hold() -> None:
    cost = cost_of(SIZE, UPDATES["all of it"])
    assert cost == Cost(SIZE, 8, True, True)
    assert cost.numbers == 8 * (32 + 48) + 32 * 48 + 48
    assert cost_of(SIZE, UPDATES["a bias"]).numbers == 48


@pytest.mark.parametrize("shape", [(ENOUGH, 32), (2, ENOUGH, 32), (ENOUGH - 1, 32), (2, ENOUGH - 1, 32), (32,)])
def test_the_tokens_of_each_item_count(shape: tuple[int, ...]) -> None:
    """So that an item computes the same in whatever batch it is."""
    ready = layer_with(UPDATES["a product"]).ready(torch.zeros(shape))
    assert len(ready.terms) == (0 if len(shape) > 1 and shape[-2] == ENOUGH else 1)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_in_8_bits_have_it_beside_them(name: str) -> None:
    layer = layer_with(UPDATES["a product"])
    if name == "fp8":  # multiplies what rests in fp8
        layer.weight.data = layer.weight.to(torch.float8_e4m3fn)
    layer.product = PRODUCTS[name]
    assert len(layer.ready(torch.zeros(ENOUGH, 32)).terms) == 1


def test_what_such_a_product_leaves_dense_takes_it_in() -> None:
    layer = layer_with(UPDATES["a product"])
    layer.product = PRODUCTS["int8"]
    assert layer.ready(torch.zeros(ENOUGH, 32), slice(0, 48)).terms
    assert not layer.ready(torch.zeros(ENOUGH, 32), slice(0, 13)).terms  # no multiple of 8


# What


@pytest.mark.parametrize("updates", UPDATES)
@pytest.mark.parametrize("rows", [slice(None), slice(0, 16), slice(10, 40), slice(32, None)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_merged_equals_beside(updates: str, rows: slice, bias: bool) -> None:
    layer, x = layer_with(UPDATES[updates], bias), numbers(2, 3 * ENOUGH, 32, seed=20)
    assert relative_error(layer(x, rows), beside(layer, x, rows)) <= 1e-6


def dense_layer() -> Linear:
    return layer_with([])


def fp8_layer() -> Linear:
    layer = layer_with([])
    layer.weight.data = layer.weight.to(torch.float8_e4m3fn)
    return layer


def scaled_layer() -> Linear:
    layer = ScaledLinear(SIZE.in_features, SIZE.out_features).requires_grad_(False)
    layer.weight.data, layer.weight_scale = quantize_fp8(numbers(SIZE.out_features, SIZE.in_features))
    return layer


def gguf_layer() -> Linear:
    layer = BlockLinear(SIZE.in_features, SIZE.out_features, ggml_type="q8_0").requires_grad_(False)
    blocks = torch.randint(0, 50, layer.weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    layer.weight.data = blocks
    return layer


def joined_layer() -> Linear:
    """Where the wanted rows are of one part, its weight is multiplied with as it lies."""
    layer = JoinedLinear(SIZE.in_features, (16, 16, 16)).requires_grad_(False)
    layer.bias.zero_()
    for i, part in enumerate(layer.parts):
        part.weight.data = numbers(16, SIZE.in_features, seed=i)
    return layer


@pytest.mark.parametrize("updates", UPDATES)
@pytest.mark.parametrize("make", [dense_layer, fp8_layer, scaled_layer, gguf_layer, joined_layer])
def test_the_layer_itself_is_left_alone(updates: str, make: Callable[[], Linear]) -> None:
    layer, x = make(), numbers(3 * ENOUGH, 32, seed=20)
    layer.adapters = (LinearAdapter(SIZE, UPDATES[updates]), LinearAdapter(SIZE, UPDATES[updates]))
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    for rows in (slice(None), slice(0, 16), slice(20, 28), slice(None)):
        with torch.inference_mode(rows == slice(0, 16)):
            assert relative_error(layer(x, rows), layer(x)[:, rows]) <= 1e-6
    assert all(torch.equal(tensor.float(), state[name].float()) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize("make", [dense_layer, fp8_layer, joined_layer])
def test_what_is_a_copy_already_is_not_copied_again(make: Callable[[], Linear]) -> None:
    layer, x = make(), torch.zeros(ENOUGH, SIZE.in_features)
    layer.adapters = (LinearAdapter(SIZE, UPDATES["all of it"]), LinearAdapter(SIZE, UPDATES["a product"]))
    layer.ready(x)
    with AllocationCounter() as counter:
        made = layer.ready(x)
    assert made.weight.nbytes <= counter.peak < 1.5 * made.weight.nbytes


def test_in_16_bits_neither_way_is_less_exact() -> None:
    """Against float64; weak ones too, which rounding can swallow in either way."""
    for strength in (1.0, 0.1, 0.03):
        (update, _), x = product(1), numbers(512, 32, seed=20).bfloat16()
        layer = layer_with([(update, strength)], bias=False, dtype=torch.bfloat16)
        down, up = update.low_rank.down.bfloat16().double(), update.low_rank.up.double()
        exact = x.double() @ (layer.weight.double() + 0.5 * strength * up @ down).T
        errors = [relative_error(y.double(), exact) for y in (layer(x), beside(layer, x, slice(None)))]
        assert errors[0] <= 1.1 * errors[1]


# On loan


@pytest.mark.parametrize("updates", UPDATES)
def test_on_loan_each_row_gets_each_term_once(updates: str) -> None:
    """In whatever parts the rows are asked for, and however often."""
    layer, x = layer_with(UPDATES[updates]), numbers(3 * ENOUGH, 32, seed=20)
    layer.adapters = (*layer.adapters, LinearAdapter(SIZE, [product(30)]))
    parts = [
        slice(40, 44),
        slice(10, 20),
        slice(0, 14),
        slice(8, 30),
        slice(30, None),
        slice(5, 40),
        slice(None),
        slice(10, 20),
    ]
    wanted = layer.ready(x).weight
    home = layer.weight.data.clone()
    with on_loan([layer]):
        for rows in parts:
            made = layer.ready(x, rows)
            assert relative_error(made.weight, wanted[rows]) <= 1e-6
        assert relative_error(layer.weight, wanted) <= 1e-6
    assert layer.loan is None
    layer.weight.data = home
    assert torch.equal(layer.ready(x).weight, wanted)


@given(
    parts=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted), max_size=12),
    others=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted), max_size=3),
)
def test_the_account_of_a_turn_gives_every_row_once(parts: list[list[int]], others: list[list[int]]) -> None:
    loan, adapter, other = Loan(), LinearAdapter(SIZE, []), LinearAdapter(SIZE, [])
    counts = [0] * 20
    for start, stop in others:
        loan.note(other, other, start, stop)
    for start, stop in parts:
        for low, high in loan.lacking(adapter, start, stop):
            assert start <= low < high <= stop
            loan.note(adapter, adapter, low, high)
            for row in range(low, high):
                counts[row] += 1
        assert counts[start:stop] == [1] * (stop - start)
    assert max(counts) <= 1


def test_on_loan_nothing_is_copied() -> None:
    layer, x = dense_layer(), torch.zeros(ENOUGH, SIZE.in_features)
    layer.adapters = (LinearAdapter(SIZE, UPDATES["all of it"]), LinearAdapter(SIZE, UPDATES["a product"]))
    layer.ready(x)
    with on_loan([layer]), AllocationCounter() as counter:
        made = layer.ready(x)
    assert made.weight.data_ptr() == layer.weight.data_ptr()
    assert counter.peak < 0.3 * layer.weight.nbytes  # biases


def test_on_loan_a_weight_of_parts_gets_each_term_once() -> None:
    layer, x = joined_layer(), numbers(3 * ENOUGH, 32, seed=20)
    layer.adapters = (LinearAdapter(SIZE, UPDATES["all of it"]),)
    wanted = layer.ready(x).weight
    with on_loan(layer.modules()):
        for rows in (slice(0, 16), slice(10, 40), slice(32, 48), slice(None)):
            assert relative_error(layer.ready(x, rows).weight, wanted[rows]) <= 1e-6


def test_on_loan_a_term_goes_beside_but_to_rows_that_have_it() -> None:
    """So what is swapped computes as what stays; both ways at once would count twice."""
    layer = layer_with(UPDATES["a product"])
    few, many = numbers(ENOUGH - 1, 32, seed=20), numbers(ENOUGH, 32, seed=21)
    wanted = [layer(x) for x in (few, many)]
    with on_loan([layer]):
        for x, rows, is_beside in (
            (few, slice(0, 30), True),
            (many, slice(0, 10), False),
            (few, slice(10, 30), True),
            (few, slice(5, 20), False),
            (few, slice(30, 48), True),
            (many, slice(None), False),
            (few, slice(None), False),
        ):
            ready = layer.ready(x, rows)
            assert bool(ready.terms) == is_beside
            assert relative_error(ready(x), wanted[x is many][:, rows]) <= 1e-6


def test_on_loan_products_in_8_bits_find_the_weight_as_it_came() -> None:
    layer, x = layer_with(UPDATES["a product"]), numbers(ENOUGH, 32, seed=20)
    layer.product = PRODUCTS["int8"]
    home = layer.weight.data.clone()
    with on_loan([layer]):
        assert not layer.ready(x, slice(0, 13)).terms  # dense: no multiple of 8
        assert torch.equal(layer.weight, home)
        assert layer.ready(x, slice(0, 48)).terms


# In a model


def clone(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.clone()


def fail_with_no_memory(*args: object) -> None:
    raise torch.OutOfMemoryError("out of memory")


def read(save: Save) -> LoraUse:
    return LoraUse(read_lora(save(lora_tensors(make_layers(size=0.3), "kohya", TRANSFORMER.hidden_size)), TRANSFORMER))


@pytest.mark.parametrize("prefetch", [0, 1, 2])
@pytest.mark.parametrize("storage", ["dense", "fp8"])
@pytest.mark.parametrize("lent", [False, True], ids=["in a copy", "in the slot"])
@pytest.mark.parametrize("lean", [LeanConfig(), LeanConfig(2, 64)], ids=["all heads", "head by head"])
def test_streamed_blocks_give_the_bits_of_resident_ones(
    save: Save, prefetch: int, storage: str, lent: bool, lean: LeanConfig
) -> None:
    """Through real slots, which are overwritten by other blocks: what is merged must not outlive its block."""
    model, use, inputs = tiny_transformer().requires_grad_(False), read(save), transformer_inputs(**LONG)
    if storage == "fp8":
        model.load_state_dict(plain_fp8_state_dict(model.state_dict()), assign=True)
        model.requires_grad_(False)
    with torch.no_grad(), attach(model, [use]):
        resident = model(**inputs, lean=lean)
        swap = BlockSwap(2, 2, prefetch)
        stream = (lambda device: True) if prefetch else can_stream
        source = Offloader(model, model.blocks, 2, swap, clone, stream, on_loan_fn=on_loan if lent else nullcontext)
        source.load("cpu")
        assert source.num_swapped == 4
        for _ in range(2):
            assert torch.equal(model(**inputs, lean=lean, source=source), resident)
        source.go_home()
        assert torch.equal(model(**inputs, lean=lean), resident)


def test_slots_are_written_to_in_the_mode_that_comfyui_runs_nodes_in(save: Save) -> None:
    """The thread that fills them again is in no such mode."""
    model, use, inputs = tiny_transformer().requires_grad_(False), read(save), transformer_inputs(**LONG)
    source = Offloader(model, model.blocks, 2, BlockSwap(2, 2), clone, lambda _: True, on_loan_fn=on_loan)
    with torch.no_grad(), attach(model, [use]):
        resident = model(**inputs)
    with torch.inference_mode(), attach(model, [use]):
        source.load("cpu")
        for _ in range(2):
            assert torch.equal(model(**inputs, source=source), resident)
        source.go_home()


def test_a_run_writes_into_the_slots_of_swapped_blocks(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny_transformer().requires_grad_(False), transformer_inputs(**LONG)
    use = replace(read(save), blocks=BlockChoice(other=False))
    calls: list[str] = []

    def count(name: str) -> None:
        original = getattr(LinearAdapter, name)
        monkeypatch.setattr(LinearAdapter, name, lambda *args: (calls.append(name), original(*args))[1])

    count("added")
    count("add_")
    monkeypatch.setattr(sampler, "Offloader", partial(Offloader, copy_fn=clone, can_stream_fn=lambda device: True))
    source = sampler.offload_transformer(model, BlockSwap(2, 2))
    source.load("cpu")
    with torch.no_grad(), attach(model, [use]):
        model(**inputs, source=source)
    assert set(calls) == {"add_"}


@pytest.mark.parametrize("prefetch", [0, 1])
def test_a_turn_that_fails_gives_the_loan_back(save: Save, prefetch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, use, inputs = tiny_transformer().requires_grad_(False), read(save), transformer_inputs(**LONG)
    source = Offloader(
        model, model.blocks, 2, BlockSwap(2, 2, prefetch), clone, lambda _: prefetch > 0, on_loan_fn=on_loan
    )
    with torch.no_grad(), attach(model, [use]):
        resident = model(**inputs)
        source.load("cpu")
        with monkeypatch.context() as patch:
            patch.setattr(LinearAdapter, "with_bias", fail_with_no_memory)
            with pytest.raises(torch.OutOfMemoryError):
                model(**inputs, source=source)
        assert all(getattr(module, "loan", None) is None for module in model.modules())
        assert torch.equal(model(**inputs, source=source), resident)
        source.go_home()
        assert torch.equal(model(**inputs), resident)


def test_a_batch_gives_each_item_what_it_gets_alone(save: Save) -> None:
    model, use = tiny_transformer(), read(save)
    inputs = transformer_inputs(2, **LONG)
    with torch.no_grad(), attach(model, [use]):
        both = model(**inputs, guidance=6.0)
        for i in range(2):
            one = {name: value[i : i + 1] if isinstance(value, Tensor) else value for name, value in inputs.items()}
            assert relative_error(model(**one, guidance=6.0), both[i : i + 1]) <= 1e-6


def test_a_model_multiplies_merged_weights_for_long_videos_and_none_for_short_ones(
    save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready: list[bool] = []
    original = Linear.ready
    monkeypatch.setattr(Linear, "ready", lambda *args: (made := original(*args), ready.append(not made.terms))[0])
    model, use = tiny_transformer(), read(save)
    with torch.no_grad(), attach(model, [use]):
        model(**transformer_inputs(**LONG))
        assert any(ready)
        ready.clear()
        model(**transformer_inputs(latent_shape=(1, 2, 2)))
        assert not any(ready)
