from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny import (
    GOLDENS,
    TRANSFORMER,
    difference,
    golden,
    golden_transformer,
    manifest,
    relative_error,
    tiny_transformer,
    transformer_inputs,
)
from tiny_lora import make_layers
from torch import Tensor

from hyvideo_lib.checkpoint.blueprint import build_meta_transformer
from hyvideo_lib.checkpoint.lora_layers import adaptable_layers
from hyvideo_lib.errors import InvalidSetting, InvalidSize
from hyvideo_lib.lora import FAMILIES, Lora, LoraUse, attach, lora_bytes, parse_blocks, read_lora
from hyvideo_lib.lora.update import add_bias_updates, add_updates
from hyvideo_lib.lora.write import lora_tensors
from hyvideo_lib.memory import BlockSwap, Offloader
from hyvideo_lib.quant import install, quantize_fp8
from hyvideo_lib.quant.linear import ScaledLinear
from hyvideo_lib.transformer import HunyuanVideoTransformer

Save = Callable[..., Path]
GOLDEN_BAR, SAME_MATHS = 2e-5, 1e-6
HIDDEN = TRANSFORMER.hidden_size


@pytest.fixture(params=["plain", "lean"])
def _path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both forms of the blocks: with gradients the plain ones run, without them the lean ones."""
    with torch.set_grad_enabled(request.param == "plain"):
        yield


both_paths = pytest.mark.usefixtures("_path")


def read(save: Save, family: str = "kohya", seed: int = 0, **options: object) -> Lora:
    layers = make_layers(seed=seed, size=0.3, **options)
    return read_lora(save(lora_tensors(layers, family, HIDDEN)), TRANSFORMER)


def run(model: HunyuanVideoTransformer, *loras: LoraUse, **options: object) -> Tensor:
    with attach(model, loras):
        return model(**transformer_inputs(), **options).detach()


def merged(model: HunyuanVideoTransformer, lora: Lora, strength: float) -> HunyuanVideoTransformer:
    """A copy whose weights have the LoRA in them."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, updates in lora.updates.items():
        weighted = [(update, strength) for update in updates]
        state[f"{name}.weight"] = add_updates(state[f"{name}.weight"], weighted)
        state[f"{name}.bias"] = add_bias_updates(state[f"{name}.bias"], weighted)
    copy = HunyuanVideoTransformer(model.config)
    copy.load_state_dict(state, strict=True)
    return copy


def adapters(model: HunyuanVideoTransformer) -> list[str]:
    """The layers that have any, or an entry of their own for them."""
    return [name for name in adaptable_layers(model) if "adapters" in vars(model.get_submodule(name))]


# Against the recorded reference


@both_paths
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("kohya", "kohya"),
        ("tencent_i2v", "scale1"),
        ("transformer_peft", "scale1"),
        ("diffusers_split", "diffusers_split"),
    ],
)
def test_recorded_loras_give_the_recorded_velocity(file: str, expected: str) -> None:
    model, io = golden_transformer(manifest()["dit_tiny_t2v"]), golden("dit_tiny_t2v.io")
    recorded = golden("lora_tiny.expected")
    use = LoraUse(read_lora(GOLDENS / f"lora_tiny.{file}.safetensors", model.config), 0.8)
    texts = io["in.text_states"], io["in.text_mask"], io["in.text_states_2"]
    with attach(model, [use]):
        velocity = model(io["in.x"], io["in.t.0"], *texts, guidance=io["in.guidance"].double() / 1000).detach()
    assert relative_error(velocity, recorded[f"out.{expected}"]) <= GOLDEN_BAR
    assert relative_error(velocity, recorded["out.base"]) > 0.1


# What a LoRA is


@both_paths
@pytest.mark.parametrize("strength", [1.0, 0.35, -2.0])
def test_added_at_use_is_merged(save: Save, strength: float) -> None:
    model, lora = tiny_transformer(), read(save, "diffusers")
    found, expected = run(model, LoraUse(lora, strength)), run(merged(model, lora, strength))
    assert relative_error(found, expected) <= 10 * SAME_MATHS  # two orders of the same sums, through all layers
    assert relative_error(found, run(model)) > 0.01


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "kohya"])
def test_one_lora_is_the_same_in_every_family(save: Save, family: str) -> None:
    model = tiny_transformer()
    with torch.no_grad():
        first, second = (run(model, LoraUse(read(save, name))) for name in ("kohya", family))
    assert relative_error(second, first) <= 10 * SAME_MATHS


@both_paths
def test_whole_differences_biases_and_convolutions_are_added(save: Save) -> None:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return 0.2 * torch.randn(*shape, generator=generator)

    model = tiny_transformer()
    lora = read_lora(
        save(
            {
                "diffusion_model.single_blocks.0.linear1.diff": noise(7 * HIDDEN, HIDDEN),
                "diffusion_model.single_blocks.0.linear1.diff_b": noise(7 * HIDDEN),
                "diffusion_model.double_blocks.0.img_attn.proj.diff_b": noise(HIDDEN),
                "diffusion_model.img_in.proj.lora_A.weight": noise(2, 4, 1, 2, 2),
                "diffusion_model.img_in.proj.lora_B.weight": noise(HIDDEN, 2, 1, 1, 1),
                "diffusion_model.img_in.proj.diff": noise(HIDDEN, 4, 1, 2, 2),
                "diffusion_model.img_in.proj.diff_b": noise(HIDDEN),
                "diffusion_model.final_layer.linear.diff": noise(16, HIDDEN),
            }
        ),
        TRANSFORMER,
    )
    assert relative_error(run(model, LoraUse(lora, 0.5)), run(merged(model, lora, 0.5))) <= 10 * SAME_MATHS
    assert relative_error(run(model, LoraUse(lora, 0.5)), run(model)) > 0.01


@both_paths
def test_several_loras_add_up_in_any_order(save: Save) -> None:
    model = tiny_transformer()
    first, second = LoraUse(read(save)), LoraUse(read(save, "diffusers", seed=1), -0.5)
    both = merged(merged(model, first.lora, 1.0), second.lora, -0.5)
    for order in ((first, second), (second, first)):
        assert relative_error(run(model, *order), run(both)) <= 10 * SAME_MATHS
    halves = LoraUse(first.lora, 0.5)
    assert relative_error(run(model, halves, halves), run(model, first)) <= 10 * SAME_MATHS


# Off, and gone


@both_paths
def test_strength_0_and_no_block_are_bit_equal_to_none(save: Save) -> None:
    model, lora = tiny_transformer(), read(save)
    nothing = run(model)
    assert torch.equal(run(model, LoraUse(lora, 0.0)), nothing)
    outside = read_lora(save(lora_tensors(make_layers(("final_layer.linear",)), "peft", HIDDEN)), TRANSFORMER)
    assert torch.equal(run(model, LoraUse(outside, 1.0, parse_blocks("single"))), nothing)
    assert not torch.equal(run(model, LoraUse(outside, 1.0, parse_blocks("other"))), nothing)


@both_paths
def test_a_model_is_as_it_was_after_a_run_and_after_an_error(save: Save) -> None:
    model, use = tiny_transformer(), LoraUse(read(save))
    before, weights = run(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(model, use)
    assert adapters(model) == []
    with pytest.raises(InvalidSize), attach(model, [use]):
        model(**{**transformer_inputs(), "latents": torch.zeros(1, 4, 1, 3, 3)})
    assert adapters(model) == []
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(run(model), before)


def test_what_was_attached_outside_stays(save: Save) -> None:
    model, outer, inner = tiny_transformer(), LoraUse(read(save)), LoraUse(read(save, seed=1))
    with torch.no_grad():
        both, alone = run(model, outer, inner), run(model, outer)
        with attach(model, [outer]):
            assert relative_error(run(model, inner), both) <= 10 * SAME_MATHS
            assert torch.equal(run(model), alone)


def test_chosen_blocks_alone_are_changed(save: Save) -> None:
    model, use = tiny_transformer(), LoraUse(read(save), 1.0, parse_blocks("double 1, single 0"))
    with attach(model, [use]):
        assert {name.rsplit(".", 1)[0].split(".")[0] for name in adapters(model)} == {"double_blocks", "single_blocks"}
        assert {name.split(".")[1] for name in adapters(model) if name.startswith("double")} == {"1"}
        assert {name.split(".")[1] for name in adapters(model) if name.startswith("single")} == {"0"}


# Every storage, every place


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, "scaled"], ids=str)
def test_a_lora_adds_the_same_to_weights_of_every_storage(save: Save, storage: torch.dtype | str) -> None:
    """The same weights, stored so, or brought back to float32 beforehand: one result, LoRA and all."""
    plain, stored, use = tiny_transformer(), tiny_transformer(), LoraUse(read(save))
    blocks = [name for name, size in adaptable_layers(plain).items() if "_blocks." in name and not size.is_vector]
    if storage == "scaled":
        state = plain.state_dict()
        for name in blocks:
            state[f"{name}.weight"], state[f"{name}.fp8_scale"] = quantize_fp8(state[f"{name}.weight"])
        stored = build_meta_transformer(TRANSFORMER)
        stored.load_state_dict(install(stored, state, "fp8_scale"), assign=True)
        stored.requires_grad_(False)
        assert isinstance(stored.get_submodule(blocks[0]), ScaledLinear)
    else:
        for name in blocks:
            layer = stored.get_submodule(name)
            layer.weight.data = layer.weight.data.to(storage)
    for name in blocks:
        plain.get_submodule(name).weight.data = stored.get_submodule(name).dense_weight(torch.float32)
    with torch.no_grad():
        assert torch.equal(run(stored, use), run(plain, use))
        assert not torch.equal(run(stored, use), run(stored))


def test_a_lora_is_cast_to_what_the_model_computes_in(save: Save) -> None:
    """In bfloat16 a LoRA costs no more accuracy than the model itself does. A guidance of 1 is the same in both."""
    exact, rounded = tiny_transformer(), tiny_transformer(compute_dtype=torch.bfloat16)
    with torch.no_grad():
        floor = relative_error(run(rounded, guidance=1.0).float(), run(exact, guidance=1.0))
        for dtype in (torch.float32, torch.bfloat16):
            use = LoraUse(read(save, dtype=dtype), 0.3)
            found = run(rounded, use, guidance=1.0)
            assert found.dtype == torch.bfloat16
            assert relative_error(found.float(), run(exact, use, guidance=1.0)) <= 2 * floor


def test_swapped_blocks_give_the_same_bits(save: Save) -> None:
    model, use = tiny_transformer().requires_grad_(False), LoraUse(read(save))
    with torch.no_grad():
        resident = run(model, use)
        blocks = [*model.double_blocks, *model.single_blocks]
        offloader = Offloader(model, blocks, 2, BlockSwap(2, 2), copy_fn=lambda tensor, _: tensor.clone())
        offloader.load("cpu")
        assert offloader.num_swapped == 4
        assert torch.equal(run(model, use, source=offloader), resident)
        offloader.go_home()


def test_tensors_come_to_the_device_once_a_run_and_go_with_it(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyvideo_lib.lora.adapters import LinearAdapter

    placed = []
    place = LinearAdapter._place
    monkeypatch.setattr(LinearAdapter, "_place", lambda self, *where: (placed.append(where), place(self, *where))[1])
    model, use = tiny_transformer(), LoraUse(read(save))
    with torch.no_grad(), attach(model, [use]):
        for _ in range(3):
            model(**transformer_inputs())
    assert len(placed) == use.lora.coverage.layers


def test_no_matrices_are_left_after_a_run_and_the_next_finds_what_was_remembered(save: Save) -> None:
    """The modulating vectors are kept for a run with the same LoRAs; the matrices in the adapters are not."""
    model, lora, blocks = tiny_transformer().requires_grad_(False), read(save), parse_blocks("double, single")
    use, other = LoraUse(lora, 1.0, blocks), LoraUse(lora, 0.5, blocks)
    with torch.no_grad():
        expected = {each: run(model, each) for each in (use, other)}
    offloader = Offloader(model, model.blocks, 2, copy_fn=lambda tensor, _: tensor.clone(), aside=model.modulations)
    offloader.load("cpu")
    placed: list[weakref.ref[object]] = []

    def brought(each: LoraUse) -> int:
        """Bytes of the modulations' weights that a run asks for."""
        before = offloader.traffic.moved_bytes
        with torch.no_grad(), attach(model, [each]):
            found = model(**transformer_inputs(), source=offloader)
            held = [adapter for layer in model.modules() for adapter in getattr(layer, "adapters", ())]
            placed.extend(weakref.ref(part) for adapter in held for part in (adapter, *(adapter._factors or ())))
        assert torch.equal(found, expected[each])
        assert all(adapter._factors is None for adapter in held)
        return offloader.traffic.moved_bytes - before

    assert [brought(each) for each in (use, use, other, other)] == [offloader.aside_bytes, 0] * 2
    assert placed
    assert not any(reference() for reference in placed)


def test_what_they_take_on_the_device_is_known_beforehand(save: Save) -> None:
    """Held to what the adapters hold after a run: factors, whole differences and biases, of those that act."""
    layer = "single_blocks.1.linear2"
    diffs = read_lora(
        save({f"{layer}.diff": torch.ones(HIDDEN, 5 * HIDDEN), f"{layer}.diff_b": torch.ones(HIDDEN)}), TRANSFORMER
    )
    split = read_lora(save(lora_tensors(make_layers(seed=1), "diffusers", HIDDEN)), TRANSFORMER)
    uses = [LoraUse(read(save)), LoraUse(diffs, 0.5), LoraUse(split, 1.0, parse_blocks("double")), LoraUse(split, 0.0)]
    model = tiny_transformer()
    with torch.no_grad(), attach(model, uses):
        model(**transformer_inputs())
        held = sum(
            tensor.nbytes
            for module in model.modules()
            for adapter in getattr(module, "adapters", ())
            for tensor in (*(adapter._factors or ()), *adapter._diffs)
            if tensor is not None
        )
    assert lora_bytes(uses, torch.float32.itemsize) == held
    assert lora_bytes(uses[3:], 4) == 0


def test_a_part_of_the_rows_is_a_part_of_the_term(save: Save) -> None:
    model, use = tiny_transformer(), LoraUse(read(save, "diffusers"))
    layer = model.single_blocks[0].linear1
    x = torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1))
    with attach(model, [use]):
        for rows in (slice(0, 3 * HIDDEN), slice(3 * HIDDEN, None), slice(10, 20)):
            assert difference(layer(x, rows), layer(x)[..., rows]) <= 1e-5


# Refused


@pytest.mark.parametrize("strength", [10.5, -11, float("nan"), float("inf")])
def test_a_strength_out_of_range_is_refused(save: Save, strength: float) -> None:
    with pytest.raises(InvalidSetting, match="strength is"):
        LoraUse(read(save), strength)


def test_a_block_that_is_not_there_is_refused(save: Save) -> None:
    with pytest.raises(InvalidSetting, match="names double block 2"):
        LoraUse(read(save), 1.0, parse_blocks("double 2"))


def test_a_lora_for_other_sizes_is_refused(save: Save) -> None:
    model = golden_transformer(manifest()["dit_tiny_t2v_noguidance"])
    with pytest.raises(InvalidSetting, match="other sizes"), attach(model, [LoraUse(read(save))]):
        pass
    assert adapters(model) == []
