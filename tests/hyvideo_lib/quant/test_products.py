"""Products in 8 bits: what they compute, for every storage, and where they compute as defined instead."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from tiny_lora import Adding
from torch import Tensor, nn

from hyvideo_lib.checkpoint.joined import JoinedLinear
from hyvideo_lib.errors import InvalidSetting, OutOfMemory
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.memory import BlockSwap, Offloader
from hyvideo_lib.memory.dry_run import AllocationCounter
from hyvideo_lib.pipeline.dry_run import transformer_work
from hyvideo_lib.pipeline.precision import DENSE, MATMULS
from hyvideo_lib.quant import PRODUCTS, cast_fp8, plain_fp8_state_dict, probe_product, products, use_product
from hyvideo_lib.quant.ggml import GGML_FORMATS
from hyvideo_lib.quant.linear import BlockLinear, ScaledLinear
from hyvideo_lib.quant.products import AT_ONCE, Rounded, round_rows
from hyvideo_lib.transformer import LeanConfig, TransformerConfig
from hyvideo_lib.transformer.ops import DENSE as AS_DEFINED
from hyvideo_lib.transformer.ops import Linear

CONFIG = TransformerConfig(
    in_channels=4,
    out_channels=4,
    hidden_size=64,
    num_heads=2,
    num_double_blocks=2,
    num_single_blocks=2,
    rope_axes=(8, 12, 12),
    text_dim=24,
    pooled_dim=16,
)
BY_ROW = ("fp8_rows", "int8")


def refused(name: str) -> str:
    """Why this machine does not multiply so; "" if it does, however slowly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "SLOWEST", 0)
        try:
            probe_product(name, "cpu", torch.float32)
        except InvalidSetting as error:
            return str(error)
    return ""


REFUSED = {name: refused(name) for name in PRODUCTS}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=PRODUCTS)
def name(request):
    return _here(request.param)


@pytest.fixture(params=BY_ROW)
def row_name(request):
    return _here(request.param)


def _here(name: str) -> str:
    if REFUSED[name]:
        pytest.skip(REFUSED[name])
    return name


def stored(layer: Linear, **tensors: Tensor) -> Linear:
    layer.requires_grad_(False).load_state_dict(tensors, strict=True, assign=True)
    return layer


def of_blocks(ggml_type: str) -> Linear:
    raw = torch.randint(0, 256, (48, GGML_FORMATS[ggml_type].row_bytes(256)), dtype=torch.uint8)
    block = raw.view(48, -1, GGML_FORMATS[ggml_type].num_bytes)
    block[:, :, :2] = torch.tensor([0, 20], dtype=torch.uint8)  # a float16 scale of some 0.002
    return stored(BlockLinear(256, 48, False, ggml_type), weight=raw)


def of_fp8(scale: float | None = None, **more: Tensor) -> Linear:
    weight = cast_fp8(torch.randn(48, 64))
    if scale is None:
        return stored(Linear(64, 48, False), weight=weight)
    layer = ScaledLinear(64, 48, False, has_input_scale=bool(more))
    return stored(layer, weight=weight, weight_scale=torch.tensor([scale]), **more)


def of_int8(num_scales: int) -> Linear:
    scale = torch.rand(num_scales, 1) / 127 + 0.001
    weight = torch.randint(-127, 128, (48, 64), dtype=torch.int8)
    layer = ScaledLinear(64, 48, False, num_scales)
    return stored(layer, weight=weight, weight_scale=scale.reshape(1) if num_scales == 1 else scale)


def rotated(num_scales: int) -> Linear:
    layer = of_int8(num_scales)
    layer.rotation = 64
    return layer


def in_parts() -> Linear:
    layer = JoinedLinear(64, (16, 32), False)
    return stored(layer, **{f"parts.{i}.weight": torch.randn(rows, 64) for i, rows in enumerate((16, 32))})


STORED = {
    "float32": lambda: stored(Linear(64, 48, False), weight=torch.randn(48, 64)),
    "bfloat16": lambda: stored(Linear(64, 48, False), weight=torch.randn(48, 64).bfloat16()),
    "fp8": of_fp8,
    "scaled fp8": lambda: of_fp8(0.125),
    "int8": lambda: of_int8(1),
    "int8 by rows": lambda: of_int8(48),
    "rotated int8": lambda: rotated(1),
    "rotated int8 by rows": lambda: rotated(48),
    "in parts": in_parts,
    "q8_0": lambda: of_blocks("q8_0"),
}


def multiply(name: str, layer: Linear, x: Tensor, rows: slice = slice(None)) -> Tensor:
    layer.product = PRODUCTS[name]
    return layer(x, rows)


def norm_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_int8_is_the_product_of_the_rounded_numbers():
    layer = STORED["float32"]()
    x = torch.randn(5, 64)

    def rounded(rows: Tensor) -> np.ndarray:
        numbers = rows.double().numpy()
        scale = np.abs(numbers).max(1, keepdims=True) / 127
        return np.round(numbers / scale) * scale

    expected = rounded(x) @ rounded(layer.weight).T
    assert norm_error(multiply("int8", layer, x), torch.from_numpy(expected)) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [slice(None), slice(16, 48)])
@pytest.mark.parametrize("storage", STORED)
def test_every_storage_is_multiplied_close_to_its_definition(row_name, storage, rows, dtype):
    layer = STORED[storage]()
    x = torch.randn(2, 20, layer.in_features).to(dtype)
    x[0, 0] *= 1000  # each token has its own scale: one that is large costs the others nothing
    expected = layer(x, rows)
    found = multiply(row_name, layer, x, rows)
    assert found.dtype == dtype
    errors = (found.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert errors.mean() <= (0.02 if row_name == "int8" else 0.05)
    assert errors.max() <= 0.1
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("storage", ["int8", "int8 by rows", "fp8", "scaled fp8"])
def test_what_rests_in_the_products_own_format_is_not_copied(storage):
    layer = STORED[storage]()
    product = PRODUCTS["int8" if "int8" in storage else "fp8_rows"]
    ready = product.ready(layer, torch.bfloat16, slice(16, 48))
    assert isinstance(ready, Rounded)
    assert ready.weight.data_ptr() == layer.weight[16:].data_ptr()
    dense = ready.weight.float() * ready.scale
    assert torch.equal(dense, layer.dense_weight(torch.float32, slice(16, 48)))


def test_many_tokens_and_many_rows_are_rounded_in_parts_with_the_same_result(row_name):
    layer = stored(Linear(64, 2 * AT_ONCE + 64, False), weight=torch.randn(2 * AT_ONCE + 64, 64))
    x = torch.randn(1, 2 * AT_ONCE + 3, 64)
    found = multiply(row_name, layer, x)
    ready = layer.ready(x).weight
    whole = round_rows(layer.weight, ready.weight.dtype)
    assert torch.equal(ready.weight.float(), whole.weight.float())
    assert torch.equal(ready.scale, whole.scale)
    some = [0, AT_ONCE - 1, AT_ONCE, 2 * AT_ONCE + 2]
    assert norm_error(layer(x[:, some]), found[:, some]) <= 1e-6


def test_fp8_is_the_product_of_the_tokens_cut_off_at_the_files_scale():
    _here("fp8")
    scale = torch.tensor([0.25])
    layer = of_fp8(0.5, input_scale=scale)
    x = 30 * torch.randn(20, 64)
    x[0, 0] = 1e6
    rounded = cast_fp8(x / scale).float() * scale
    assert rounded.max() == 448 / 4
    expected = layer(rounded)
    assert norm_error(multiply("fp8", layer, x), expected) <= 1e-6


def test_without_a_scale_in_the_file_fp8_finds_one_for_the_tokens_at_once():
    _here("fp8")
    layer = of_fp8(0.5)
    x = torch.randn(20, 64)
    scale = x.abs().max() / 448
    expected = layer(cast_fp8(x / scale).float() * scale)
    assert norm_error(multiply("fp8", layer, x), expected) <= 1e-6


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_of_any_size_and_outlying_channels_cost_nothing(name, dtype, is_compiled):
    layer = of_fp8()
    tokens = torch.randn(3, 10, 64)
    tokens[..., 5] *= 30
    product = PRODUCTS[name]
    multiply_fn = torch.compile(product.multiply, backend="eager", fullgraph=True) if is_compiled else product.multiply
    ready = product.ready(layer, dtype, slice(None))
    for size in (1e-30, 1e-3, 1, 300):
        x = (size * tokens).to(dtype)
        assert norm_error(multiply_fn(x, ready, None), layer(x)) <= 0.06


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_reaches_the_result_of_fp8(bad):
    _here("fp8")
    x = torch.randn(3, 64)
    x[1, 5] = bad
    assert not multiply("fp8", of_fp8(0.5), x)[1].isfinite().any()


def test_fp8_of_zeros_is_zero():
    _here("fp8")
    assert torch.equal(multiply("fp8", of_fp8(0.5), torch.zeros(3, 64)), torch.zeros(3, 48))


def test_rotated_numbers_are_multiplied_as_they_rest_by_rotated_tokens():
    _here("int8")
    layer = rotated(48)
    ready = PRODUCTS["int8"].ready(layer, torch.float32, slice(16, 48))
    assert ready.weight.data_ptr() == layer.weight[16:].data_ptr()
    x = torch.zeros(3, 64)
    x[:, 7] = 1.0  # alone it is rounded without loss, spread over all channels too
    assert norm_error(multiply("int8", layer, x), layer.dense_weight(torch.float32)[:, 7].expand(3, -1)) <= 1e-6


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "rotated int8", "in parts", "q8_0"])
def test_fp8_leaves_weights_alone_that_do_not_rest_in_it(storage):
    layer = STORED[storage]()
    x = torch.randn(20, layer.in_features)
    assert torch.equal(multiply("fp8", layer, x), AS_DEFINED.multiply(x, layer.dense_weight(x.dtype), None))
    assert not PRODUCTS["fp8"].takes(layer)


@pytest.mark.parametrize("count", [1, 16, 17, 33])
def test_any_number_of_tokens_can_be_multiplied(name, count):
    layer = of_fp8()
    x = torch.randn(count, 64)
    expected = layer(x)
    found = multiply(name, layer, x)
    assert found.shape == (count, 48)
    assert norm_error(found, expected) <= 0.08


@pytest.mark.parametrize("sizes", [(60, 40), (64, 36)])
def test_widths_that_kernels_do_not_take_are_multiplied_as_defined(name, sizes):
    layer = stored(Linear(*sizes), weight=cast_fp8(torch.randn(sizes[::-1])), bias=torch.randn(sizes[1]))
    x = torch.randn(20, sizes[0])
    expected = layer(x)
    assert torch.equal(multiply(name, layer, x), expected)
    assert not PRODUCTS[name].takes(layer)


def test_bias_and_adapters_are_added_in_the_compute_dtype(name):
    layer = stored(Linear(64, 48), weight=cast_fp8(torch.randn(48, 64)), bias=torch.zeros(48))
    x = torch.randn(3, 64)
    before = multiply(name, layer, x, slice(16, 32))
    layer.bias.fill_(0.5)
    layer.adapters = (Adding(lambda x, rows: torch.full((x.shape[0], 48), 2.0)[:, rows]),)
    assert torch.equal(layer(x, slice(16, 32)), before + 0.5 + 2.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(row_name, bad):
    layer = STORED["float32"]()
    x = torch.randn(3, 64)
    x[1, 5] = bad
    found = multiply(row_name, layer, x)
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


def test_zeros_stay_zeros(row_name):
    layer = stored(Linear(64, 48, False), weight=torch.zeros(48, 64))
    assert torch.equal(multiply(row_name, layer, torch.randn(3, 64)), torch.zeros(3, 48))
    layer.weight.fill_(1.0)
    assert torch.equal(layer(torch.zeros(3, 64)), torch.zeros(3, 48))


# In the transformer


def make_model(cast=None):
    model = tiny.tiny_transformer(CONFIG)
    if cast:
        model.load_state_dict(cast(model.state_dict()), assign=True)
    return model.requires_grad_(False)


def run(model, **options) -> Tensor:
    inputs = tiny.transformer_inputs(config=CONFIG, text_tokens=9)
    return model(**inputs, **options)


def test_the_blocks_token_wide_layers_take_it_and_nothing_else(name):
    model = make_model(plain_fp8_state_dict)
    model.single_blocks[0].linear2 = exact = ScaledLinear(*model.single_blocks[0].linear2.weight.shape[::-1])
    exact.weight = nn.Parameter(exact.weight.detach().to(torch.float8_e4m3fn), False)
    exact.full_precision = True
    use_product(model, name)
    taken = {path for path, layer in model.named_modules() if getattr(layer, "product", AS_DEFINED) is PRODUCTS[name]}
    sides = {f"{side}_{part}" for side in ("img", "txt") for part in ("attn_qkv", "attn_proj", "mlp.fc1", "mlp.fc2")}
    expected = {f"double_blocks.{i}.{path}" for i in range(2) for path in sides}
    expected |= {f"single_blocks.{i}.{path}" for i in range(2) for path in ("linear1", "linear2")}
    assert taken == expected - {"single_blocks.0.linear2"}


def test_a_transformer_computes_nearly_the_same(name):
    expected = run(make_model(plain_fp8_state_dict))
    model = make_model(plain_fp8_state_dict)
    use_product(model, name)
    found = run(model)
    assert 1e-6 < norm_error(found, expected) <= (0.02 if name == "int8" else 0.08)
    lean = run(model, lean=LeanConfig(2, 8))
    assert norm_error(lean, found) <= (0.01 if name == "int8" else 0.04)  # a number may be rounded the other way


def test_swapped_blocks_and_loras_act_as_with_dense_products(name):
    model = make_model(plain_fp8_state_dict)
    use_product(model, name)
    expected = run(model)
    source = Offloader(model, model.blocks, 2, BlockSwap(2, 2), lambda t, _: t.clone(), lambda _: True)
    source.load("cpu")
    try:
        assert torch.equal(run(model, source=source, host=HeadlessHost()), expected)
    finally:
        source.go_home()
    layer = model.single_blocks[0].linear2
    layer.adapters = (Adding(lambda x, rows: torch.ones(*x.shape[:-1], layer.out_features)[..., rows]),)
    assert not torch.equal(run(model), expected)
    layer.adapters = ()
    assert torch.equal(run(model), expected)


@pytest.mark.parametrize("lean", [LeanConfig(), LeanConfig(2, 256)])
def test_a_plan_counts_what_is_rounded(name, lean):
    model = make_model(plain_fp8_state_dict)
    dense = transformer_work(model, (9, 32, 32), 9, lean=lean)
    use_product(model, name)
    inputs = tiny.transformer_inputs(1, (9, 32, 32), 9, config=CONFIG)
    inputs["text_mask"] = None
    with torch.no_grad(), AllocationCounter() as counter:
        model(**inputs, lean=lean)
    found = transformer_work(model, (9, 32, 32), 9, lean=lean)
    assert found == pytest.approx(counter.peak, rel=0.1)
    assert found != dense or lean != LeanConfig()  # chunks of 256 are smaller than what is there in attention


# Refusals


def test_a_transformer_with_nothing_to_multiply_so_is_refused():
    with pytest.raises(InvalidSetting, match=r"need weights in fp8 with one scale each.*has none. Choose dense, or"):
        use_product(make_model(), "fp8")
    odd = tiny.tiny_transformer(replace(CONFIG, hidden_size=60, rope_axes=(6, 12, 12)))
    with pytest.raises(InvalidSetting, match="need layers whose widths are multiples of 8"):
        use_product(odd, "int8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_cannot_is_refused_with_its_reason():
    for name, product in PRODUCTS.items():
        with pytest.raises(InvalidSetting, match=rf"{product.title} matrix products are not possible on cuda: .*dense"):
            probe_product(name, "cuda", torch.bfloat16)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_full_card_is_not_taken_for_one_that_cannot(name, monkeypatch):
    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    for kernel in ("_scaled_mm", "_int_mm"):
        monkeypatch.setattr(torch, kernel, full)
    with pytest.raises(OutOfMemory, match="cannot be tried on cpu, as memory ran out"):
        probe_product(name, "cpu", torch.bfloat16)


@pytest.mark.parametrize(("name", "kernel"), [("fp8", "_scaled_mm"), ("fp8_rows", "_scaled_mm"), ("int8", "_int_mm")])
def test_a_wrong_product_is_not_taken_for_one(name, kernel, monkeypatch):
    dtype = torch.int32 if name == "int8" else torch.bfloat16
    monkeypatch.setattr(torch, kernel, lambda a, b, *_, **__: torch.ones(a.shape[0], b.shape[1], dtype=dtype))
    with pytest.raises(InvalidSetting, match="its product is wrong"):
        probe_product(name, "cpu", torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_product_that_is_right_for_tokens_of_one_size_alone_is_wrong(name, dtype, monkeypatch):
    monkeypatch.setattr(products, "_pace", lambda *_: math.inf)
    probe_product(name, "cpu", dtype)

    def round_as_they_are(rows, dtype):
        part = rows if dtype.is_floating_point else (rows * 32).round().clamp(-127, 127)
        scale = 1.0 if dtype.is_floating_point else 1 / 32
        made = cast_fp8(part, dtype) if dtype.is_floating_point else part.to(dtype)
        return Rounded(made, torch.full((len(rows), 1), scale))

    monkeypatch.setattr(products, "round_rows", round_as_they_are)
    with pytest.raises(InvalidSetting, match="its product is wrong"):
        probe_product(name, "cpu", dtype)


def test_a_processor_without_a_kernel_is_refused_with_its_pace(monkeypatch):
    quick = torch._int_mm

    def slow(a, b):
        time.sleep(1)
        return quick(a, b)

    probe_product("int8", "cpu", torch.bfloat16)
    monkeypatch.setattr(torch, "_int_mm", slow)
    with pytest.raises(InvalidSetting, match=r"int8 matrix products are too slow on this processor: [3-6]\d million"):
        probe_product("int8", "cpu", torch.bfloat16)


def test_the_setting_has_these_names():
    assert (DENSE, *PRODUCTS) == MATMULS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_multiplies_or_says_why_not():
    capability = torch.cuda.get_device_capability()
    for name, needed in (("fp8", (8, 9)), ("int8", (8, 0))):
        try:
            probe_product(name, "cuda", torch.bfloat16)
        except InvalidSetting:
            assert capability < needed
