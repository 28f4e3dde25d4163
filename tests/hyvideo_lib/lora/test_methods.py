"""Every method against its formula, worked out densely in float64 (`lora_methods`), in every way a layer computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import lora_methods
import pytest
import torch
from lora_methods import METHODS, Case, numbers
from tiny import TRANSFORMER, relative_error, tiny_transformer, transformer_inputs
from torch import Tensor

from hyvideo_lib.checkpoint import lora_roles
from hyvideo_lib.checkpoint.joined import JoinedLinear
from hyvideo_lib.checkpoint.lora_layers import LayerSize, layer_places, layer_sizes
from hyvideo_lib.checkpoint.lora_roles import Extent, methods_of
from hyvideo_lib.checkpoint.lora_tensors import ALPHA, MAGNITUDE, OFT_BLOCKS, split_name
from hyvideo_lib.errors import FileUnreadable, UnsupportedFile
from hyvideo_lib.lora import Lora, LoraUse, attach, read_lora
from hyvideo_lib.lora.adapters import LinearAdapter
from hyvideo_lib.lora.making import MAKERS, decomposed
from hyvideo_lib.lora.update import Update
from hyvideo_lib.memory import BlockSwap, Offloader
from hyvideo_lib.quant import PRODUCTS, install, plain_fp8_state_dict, quantize_fp8
from hyvideo_lib.transformer import HunyuanVideoTransformer
from hyvideo_lib.transformer.loan import on_loan
from hyvideo_lib.transformer.ops import Linear
from tests.hyvideo_lib.checkpoint import text_files

Save = Callable[..., Path]
HIDDEN = TRANSFORMER.hidden_size
CLOSE = 2e-6
"""Between float32 and float64, relative to a weight's largest number: the sums have up to 240 terms."""
LAYERS = (
    "double_blocks.0.img_attn_qkv",
    "double_blocks.1.txt_mlp.fc2",
    "single_blocks.0.linear1",
    "single_blocks.1.linear2",
)


def cases_for(model: HunyuanVideoTransformer, method: str, layers: tuple[str, ...] = LAYERS) -> dict[str, Case]:
    return {layer: lora_methods.make(method, model.get_submodule(layer).weight.detach()) for layer in layers}


def tensors_of(cases: dict[str, Case]) -> dict[str, Tensor]:
    return {
        f"diffusion_model.{layer}{end}": tensor for layer, case in cases.items() for end, tensor in case.tensors.items()
    }


def merged(model: HunyuanVideoTransformer, cases: dict[str, Case], strength: float) -> HunyuanVideoTransformer:
    """A copy with the changes in its weights."""
    copy = tiny_transformer()
    copy.load_state_dict(model.state_dict())
    for layer, case in cases.items():
        weight = copy.get_submodule(layer).weight
        changed = weight.detach().double() + strength * case.change(weight.detach().double())
        weight.data = changed.float()
    return copy


def read(save: Save, cases: dict[str, Case]) -> Lora:
    lora = read_lora(save(tensors_of(cases)), TRANSFORMER)
    assert lora.coverage.unmatched == ()
    return lora


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strength", [1.0, -0.6])
def test_a_run_computes_with_the_changed_weight(save: Save, method: str, strength: float) -> None:
    """Few tokens: beside the weights; many: in them. Both forms of the blocks."""
    model = tiny_transformer()
    cases = cases_for(model, method)
    lora = read(save, cases)
    for inputs in (transformer_inputs(), transformer_inputs(latent_shape=(11, 8, 8))):
        for has_grad in (True, False):
            with torch.set_grad_enabled(has_grad):
                expected = merged(model, cases, strength)(**inputs).detach()
                with attach(model, [LoraUse(lora, strength)]):
                    found = model(**inputs).detach()
                assert relative_error(found, expected) <= 5e-6
                assert relative_error(model(**inputs).detach(), expected) > 1e-3  # off again, and it had an effect


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [slice(None), slice(0, 16), slice(10, 40), slice(100, 144)])
@pytest.mark.parametrize("tokens", [1, 2000], ids=["beside", "merged"])
def test_any_rows_of_a_layer_can_be_asked_for(save: Save, method: str, rows: slice, tokens: int) -> None:
    model = tiny_transformer()
    layer = "double_blocks.0.img_attn_qkv"
    linear = model.get_submodule(layer)
    assert isinstance(linear, Linear)
    case = cases_for(model, method, (layer,))[layer]
    x = numbers(1, tokens, HIDDEN, seed=3)
    weight = linear.weight.detach().double()
    expected = (x.double() @ (weight + case.change(weight)).T + linear.bias.double())[..., rows]
    with torch.no_grad(), attach(model, [LoraUse(read(save, {layer: case}))]):
        ready = linear.ready(x, rows)
        assert len(ready.terms) == (tokens == 1)
        found = ready(x)
    assert (found - expected).abs().max() <= 5e-6 * expected.abs().max()


@pytest.mark.parametrize("method", METHODS)
def test_several_act_on_the_stored_weight_whatever_their_order(save: Save, method: str) -> None:
    model = tiny_transformer()
    layer = "single_blocks.0.linear1"
    weight = model.get_submodule(layer).weight.detach().double()
    first, second = cases_for(model, method, (layer,))[layer], cases_for(model, "DoRA by rows", (layer,))[layer]
    uses = [LoraUse(read(save, {layer: first}), 0.7), LoraUse(read(save, {layer: second}), -0.4)]
    expected = tiny_transformer()
    expected.get_submodule(layer).weight.data = (
        weight + 0.7 * first.change(weight) - 0.4 * second.change(weight)
    ).float()
    inputs = transformer_inputs(latent_shape=(11, 8, 8))
    with torch.no_grad():
        wanted = expected(**inputs)
        for order in (uses, uses[::-1]):
            with attach(model, order):
                assert relative_error(model(**inputs), wanted) <= 5e-6


@pytest.mark.parametrize("method", METHODS)
def test_on_swapped_blocks_it_is_the_same_bits(save: Save, method: str) -> None:
    """A slot's weight is not to be written to by a method that looks at it."""
    model = tiny_transformer().requires_grad_(False)
    use = LoraUse(read(save, cases_for(model, method)), 0.8)
    inputs = transformer_inputs(latent_shape=(11, 8, 8))
    source = Offloader(
        model, model.blocks, 2, BlockSwap(2, 2), lambda x, device: x.clone(), lambda _: True, on_loan_fn=on_loan
    )
    with torch.no_grad(), attach(model, [use]):
        resident = model(**inputs)
        source.load("cpu")
        for _ in range(2):
            assert torch.equal(model(**inputs, source=source), resident)
        source.go_home()


@pytest.mark.parametrize("method", METHODS)
def test_beside_products_in_8_bits_the_change_is_whole(save: Save, method: str) -> None:
    """The product's own error is that of the layer without the change."""
    torch.manual_seed(0)
    layer = Linear(64, 96).requires_grad_(False)
    case = lora_methods.make(method, layer.weight)
    x = numbers(1, 2000, 64, seed=5)
    plain = layer(x)
    layer.product = PRODUCTS["int8"]
    own_error = (layer(x) - plain).abs().max()
    added = x.double() @ case.change(layer.weight.double()).T
    layer.adapters = (adapter_for(layer, case),)
    error = (layer(x).double() - (plain + added)).abs().max()
    assert error <= own_error + 1e-5 * added.abs().max()


def adapter_for(layer: Linear, case: Case) -> LinearAdapter:
    """An adapter of a case alone."""
    size = LayerSize(layer.out_features, layer.in_features)
    tensors = {split.role: tensor for end, tensor in case.tensors.items() if (split := split_name(f"x{end}"))}
    (name,) = methods_of(tuple(tensors))
    extent = Extent(size.out_features, size)
    rank = lora_roles.METHODS[name].rank({role: tuple(tensor.shape) for role, tensor in tensors.items()})
    alpha = float(tensors.get(ALPHA, torch.tensor(0.0)))
    change = MAKERS[name](tensors, extent, alpha if OFT_BLOCKS in tensors else alpha / rank if rank else 1.0)
    if MAGNITUDE in tensors:
        change = decomposed(change, tensors[MAGNITUDE])
    update = Update(0, size.out_features, change=change)
    return LinearAdapter(size, [(update, 1.0)], lambda low, high: layer.dense_weight(torch.float32, slice(low, high)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["comfyui", "diffusers"])
def test_a_part_of_a_fused_layer_changes_its_rows_alone(save: Save, method: str, layout: str) -> None:
    """Also where a layout has the two halves of a layer the other way round."""
    model = tiny_transformer()
    expected = tiny_transformer()
    tensors: dict[str, Tensor] = {}
    for layer in ("single_blocks.0.linear1", "final_layer.adaLN_modulation.1"):
        weight = model.get_submodule(layer).weight.detach().double()
        places = layer_places(layer, len(weight), layout, HIDDEN)
        name, place = places[min(1, len(places) - 1)]
        part = weight[place.start : place.stop]
        theirs = torch.cat(part.chunk(2)[::-1]) if place.swaps_halves else part
        case = lora_methods.make(method, theirs.float())
        change = case.change(theirs)
        change = torch.cat(change.chunk(2)[::-1]) if place.swaps_halves else change
        expected.get_submodule(layer).weight.data[place.start : place.stop] += change.float()
        tensors |= {f"transformer.{name}{end}": tensor for end, tensor in case.tensors.items()}
    lora = read_lora(save(tensors), TRANSFORMER)
    with torch.no_grad(), attach(model, [LoraUse(lora)]):
        assert relative_error(model(**transformer_inputs()), expected(**transformer_inputs())) <= 5e-6


def tucker(form: str, rows: int, channels: int, kernel: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors of a Tucker form for a convolution, and the change [rows, channels, *kernel]."""
    rank = 3
    core = numbers(rank, rank, *kernel, seed=1, size=0.3)
    if form == "LoRA":
        down, up = numbers(rank, channels, 1, 1, 1, seed=2), numbers(rows, rank, 1, 1, 1, seed=3, size=0.2)
        tensors = {
            ".lora_down.weight": down,
            ".lora_mid.weight": core,
            ".lora_up.weight": up,
            ".alpha": torch.tensor(1.5),
        }
        made = torch.zeros(rows, channels, *kernel, dtype=torch.float64)
        for i in range(rank):
            for j in range(rank):
                outer = up.double()[:, i, 0, 0, 0, None] * down.double()[None, j, :, 0, 0, 0]
                made += outer[:, :, None, None, None] * core.double()[i, j]
        return {**tensors, ".alpha": torch.tensor(1.5)}, 0.5 * made

    def rebuilt(core: Tensor, up: Tensor, down: Tensor) -> Tensor:
        made = torch.zeros(up.shape[1], down.shape[1], *kernel, dtype=torch.float64)
        for i in range(rank):
            for j in range(rank):
                made += (up.double()[i, :, None] * down.double()[j, None, :])[:, :, None, None, None] * core.double()[
                    i, j
                ]
        return made

    if form == "LoHa":
        other = numbers(rank, rank, *kernel, seed=4, size=0.3)
        parts = [numbers(rank, size, seed=seed) for seed, size in ((5, rows), (6, channels), (7, rows), (8, channels))]
        names = (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")
        tensors = dict(zip(names, parts, strict=True)) | {
            ".hada_t1": core,
            ".hada_t2": other,
            ".alpha": torch.tensor(1.5),
        }
        return tensors, 0.5 * rebuilt(core, parts[0], parts[1]) * rebuilt(other, parts[2], parts[3])
    left = numbers(2, 2, seed=5)
    up, down = numbers(rank, rows // 2, seed=6), numbers(rank, channels // 2, seed=7)
    tensors = {".lokr_w1": left, ".lokr_w2_a": up, ".lokr_w2_b": down, ".lokr_t2": core, ".alpha": torch.tensor(1.5)}
    right = 0.5 * rebuilt(core, up, down)
    blocks = [torch.cat([left.double()[i, j] * right for j in range(2)], dim=1) for i in range(2)]
    return tensors, torch.cat(blocks)


@pytest.mark.parametrize("form", ["LoRA", "LoHa", "LoKr"])
def test_tucker_forms_of_a_convolution_are_put_together(save: Save, form: str) -> None:
    model, expected = tiny_transformer(), tiny_transformer()
    weight = expected.img_in.proj.weight
    tensors, change = tucker(form, weight.shape[0], weight.shape[1], tuple(weight.shape[2:]))
    weight.data += change.float()
    lora = read_lora(
        save({f"diffusion_model.img_in.proj{end}": tensor for end, tensor in tensors.items()}), TRANSFORMER
    )
    with torch.no_grad(), attach(model, [LoraUse(lora)]):
        found = model(**transformer_inputs())
    wanted = expected(**transformer_inputs()).detach()
    assert relative_error(found, wanted) <= 5e-6
    assert relative_error(model(**transformer_inputs()).detach(), wanted) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_in_fp8_the_change_is_of_the_stored_weight(save: Save, method: str) -> None:
    stored = tiny_transformer()
    state = plain_fp8_state_dict(stored.state_dict())
    stored.load_state_dict({name: tensor.float() for name, tensor in state.items()})  # numbers that fp8 has
    cases = cases_for(stored, method)
    use = LoraUse(read(save, cases))
    expected = merged(stored, cases, 1.0)
    for layer in LAYERS:
        linear = stored.get_submodule(layer)
        linear.weight.data = linear.weight.data.to(torch.float8_e4m3fn)
    with torch.no_grad(), attach(stored, [use]):
        inputs = transformer_inputs(latent_shape=(11, 8, 8))
        assert relative_error(stored(**inputs), expected(**inputs)) <= 5e-6


def stored_linears(weight: Tensor) -> dict[str, Linear]:
    """A Linear of about that weight [out, in] in each storage that is not a dtype alone."""
    state = {"x.weight": weight, "x.bias": torch.zeros(len(weight))}
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    int8 = {**state, "x.weight": (weight / scale).round().to(torch.int8), "x.weight_scale": scale}
    fp8, fp8_scale = quantize_fp8(weight)
    quant = [json.dumps({"format": "int8_tensorwise", **more}).encode() for more in ({}, TURNED)]
    described = [{**int8, "x.comfy_quant": torch.tensor(list(text), dtype=torch.uint8)} for text in quant]
    schemes = {
        "fp8 with a scale": ("fp8_scale", {**state, "x.weight": fp8, "x.fp8_scale": fp8_scale}),
        "int8 with a scale for each row": ("comfyui_quant", described[0]),
        "int8, rotated": ("comfyui_quant", described[1]),
        "GGUF": ("gguf", {**state, "x.weight": text_files.q8_0(weight)[0]}),
    }
    made = {}
    for name, (scheme, tensors) in schemes.items():
        model = torch.nn.Module()
        with torch.device("meta"):
            model.x = Linear(weight.shape[1], weight.shape[0])
        model.load_state_dict(install(model, tensors, scheme, dtypes={"x.weight": "q8_0"}), assign=True)
        made[name] = model.x.requires_grad_(False)
    parts = JoinedLinear(weight.shape[1], (32, len(weight) - 32)).requires_grad_(False)
    parts.load_state_dict({"parts.0.weight": weight[:32], "parts.1.weight": weight[32:], "bias": state["x.bias"]})
    return {**made, "parts": parts}


TURNED = {"convrot": True, "convrot_groupsize": 16}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "storage", ["fp8 with a scale", "int8 with a scale for each row", "int8, rotated", "GGUF", "parts"]
)
def test_a_weight_of_every_storage_is_changed_as_what_it_stands_for(method: str, storage: str) -> None:
    layer = stored_linears(numbers(96, 64, seed=0, size=0.1))[storage]
    weight = layer.dense_weight(torch.float32)
    case = lora_methods.make(method, weight)
    layer.adapters = (adapter_for(layer, case),)
    for tokens in (1, 2000):
        x = numbers(1, tokens, 64, seed=5)
        expected = x.double() @ (weight.double() + case.change(weight.double())).T
        assert (layer(x) - expected).abs().max() <= 5e-6 * expected.abs().max()


def test_a_products_own_bias_is_scaled_as_the_product(save: Save) -> None:
    layer = "single_blocks.0.linear2"
    model, expected = tiny_transformer(), tiny_transformer()
    down, up, bias = (
        numbers(4, 5 * HIDDEN, seed=1),
        numbers(HIDDEN, 4, seed=2, size=0.1),
        numbers(HIDDEN, seed=3),
    )
    names = ("lora_A.weight", "lora_B.weight", "lora_B.bias", "alpha")
    tensors = (down, up, bias, torch.tensor(8.0))
    lora = read_lora(
        save({f"{layer}.{name}": tensor for name, tensor in zip(names, tensors, strict=True)}), TRANSFORMER
    )
    target = expected.get_submodule(layer)
    target.weight.data += 0.5 * 2.0 * up @ down
    target.bias.data += 0.5 * 2.0 * bias
    with torch.no_grad(), attach(model, [LoraUse(lora, 0.5)]):
        assert relative_error(model(**transformer_inputs()), expected(**transformer_inputs())) <= 5e-6


REFINER = "txt_in.individual_token_refiner.blocks"
NORMS = {
    "diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff": "double_blocks.0.img_attn_q_norm.weight",
    "diffusion_model.double_blocks.1.txt_attn.norm.key_norm.scale.diff": "double_blocks.1.txt_attn_k_norm.weight",
    "diffusion_model.single_blocks.1.norm.key_norm.w_norm": "single_blocks.1.k_norm.weight",
    f"diffusion_model.{REFINER}.0.norm1.diff": f"{REFINER}.0.norm1.weight",
    f"diffusion_model.{REFINER}.0.norm1.diff_b": f"{REFINER}.0.norm1.bias",
    f"diffusion_model.{REFINER}.1.norm2.w_norm": f"{REFINER}.1.norm2.weight",
    f"diffusion_model.{REFINER}.1.norm2.b_norm": f"{REFINER}.1.norm2.bias",
    "diffusion_model.double_blocks.0.img_mlp.0.diff_b": "double_blocks.0.img_mlp.fc1.bias",
    "diffusion_model.final_layer.linear.bias.diff": "final_layer.linear.bias",
    "diffusion_model.img_in.proj.diff_b": "img_in.proj.bias",
}


@pytest.mark.parametrize("strength", [1.0, -0.5, 3.0])
@pytest.mark.parametrize("has_grad", [True, False], ids=["plain", "lean"])
def test_additions_to_vectors_act_at_every_strength(save: Save, strength: float, has_grad: bool) -> None:
    model, expected = tiny_transformer(), tiny_transformer()
    tensors = {}
    for seed, (name, ours) in enumerate(NORMS.items()):
        vector = expected.get_parameter(ours)
        tensors[name] = numbers(len(vector), seed=seed, size=0.2)
        vector.data += strength * tensors[name]
    lora = read_lora(save(tensors), TRANSFORMER)
    assert (lora.coverage.matched, lora.coverage.unmatched) == (len(NORMS), ())
    with torch.set_grad_enabled(has_grad):
        wanted = expected(**transformer_inputs()).detach()
        with attach(model, [LoraUse(lora, strength)]):
            found = model(**transformer_inputs()).detach()
        assert relative_error(found, wanted) <= CLOSE
        assert relative_error(model(**transformer_inputs()).detach(), wanted) > 1e-3


def test_each_vector_alone_has_its_effect(save: Save) -> None:
    model = tiny_transformer()
    with torch.no_grad():
        before = model(**transformer_inputs())
        for name, ours in NORMS.items():
            expected = tiny_transformer()
            expected.get_parameter(ours).data += 0.3
            lora = read_lora(save({name: torch.full_like(model.get_parameter(ours).data, 0.3)}), TRANSFORMER)
            with attach(model, [LoraUse(lora)]):
                found = model(**transformer_inputs())
            assert relative_error(found, expected(**transformer_inputs())) <= CLOSE, name
            assert not torch.equal(found, before), name


NAME = "diffusion_model.single_blocks.0.linear2"
MISFITS = {
    "loha of other rows": (
        {".hada_w1_a": (47, 2), ".hada_w1_b": (2, 240), ".hada_w2_a": (48, 2), ".hada_w2_b": (2, 240)},
        "LoHa",
    ),
    "lokr of another size": ({".lokr_w1": (4, 4), ".lokr_w2": (12, 61)}, "LoKr"),
    "oft of other rows": ({".oft_blocks": (7, 7, 7)}, "OFT"),
    "oft of no blocks": ({".oft_R.weight": (24, 44)}, "OFT"),
    "tucker core of another rank": (
        {".lora_down.weight": (3, 240), ".lora_mid.weight": (4, 4), ".lora_up.weight": (48, 3)},
        "Tucker",
    ),
    "lora of a norm": ({}, "a vector, which only differences"),
}


@pytest.mark.parametrize(("shapes", "words"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_the_layer_is_refused_by_name(
    save: Save, shapes: dict[str, tuple[int, ...]], words: str
) -> None:
    tensors = {NAME + end: torch.ones(shape) for end, shape in shapes.items()}
    if not tensors:
        norm = "diffusion_model.single_blocks.0.norm.query_norm"
        tensors = {f"{norm}.lora_A.weight": torch.ones(1, 1), f"{norm}.lora_B.weight": torch.ones(24, 1)}
    with pytest.raises(UnsupportedFile, match=words):
        read_lora(save(tensors), TRANSFORMER)


HALVES = {
    "lokr": {".lokr_w1": (4, 4)},
    "lokr twice": {".lokr_w1": (4, 4), ".lokr_w1_a": (4, 2), ".lokr_w1_b": (2, 4), ".lokr_w2": (12, 60)},
    "loha": {".hada_w1_a": (48, 2), ".hada_w1_b": (2, 240)},
    "magnitude alone": {".dora_scale": (48, 1)},
    "rescale alone": {".rescale": (48, 1)},
}


@pytest.mark.parametrize("shapes", HALVES.values(), ids=HALVES)
def test_parts_that_make_no_whole_are_refused(save: Save, shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(FileUnreadable, match="do not make a whole"):
        read_lora(save({NAME + end: torch.ones(shape) for end, shape in shapes.items()}), TRANSFORMER)


@pytest.mark.parametrize("method", METHODS)
def test_nan_in_any_tensor_is_refused(save: Save, method: str) -> None:
    model = tiny_transformer()
    for end, tensor in cases_for(model, method, LAYERS[:1])[LAYERS[0]].tensors.items():
        if tensor.dtype == torch.bool or (end == ".alpha" and method == "LoKr, whole"):
            continue
        tensors = tensors_of(cases_for(model, method, LAYERS[:1]))
        tensors[f"diffusion_model.{LAYERS[0]}{end}"].view(-1)[0] = float("nan")
        with pytest.raises(UnsupportedFile, match=r"NaN|alpha is nan"):
            read_lora(save(tensors), TRANSFORMER)


def test_every_layer_of_the_model_can_be_changed(save: Save) -> None:
    model, expected = tiny_transformer(), tiny_transformer()
    tensors = {}
    for seed, (layer, size) in enumerate(layer_sizes(TRANSFORMER).items()):
        shape = (size.out_features,) if size.is_vector else (size.out_features, size.in_features)
        tensors[f"{layer}.diff"] = numbers(*shape, seed=seed, size=0.02)
        weight = expected.get_submodule(layer).weight
        weight.data += tensors[f"{layer}.diff"].reshape(weight.shape)
    with torch.no_grad(), attach(model, [LoraUse(read_lora(save(tensors), TRANSFORMER))]):
        assert relative_error(model(**transformer_inputs()), expected(**transformer_inputs())) <= 5e-6
