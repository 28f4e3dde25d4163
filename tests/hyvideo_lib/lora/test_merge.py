from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import lora_methods
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import TRANSFORMER, tiny_transformer, transformer_inputs
from tiny_lora import make_layers
from torch import Tensor

from hyvideo_lib.checkpoint import load_transformer
from hyvideo_lib.checkpoint.convert import convert_file
from hyvideo_lib.checkpoint.lora_layers import layer_sizes
from hyvideo_lib.checkpoint.rewrite import Request
from hyvideo_lib.errors import InvalidSetting, OutputExists, UnsupportedFile, WrongKind
from hyvideo_lib.lora import LoraUse, attach, parse_blocks, read_lora
from hyvideo_lib.lora.merge import MERGED_KEY, merge_lora
from hyvideo_lib.lora.write import lora_tensors
from hyvideo_lib.quant import cast_fp8, quantize_fp8

HIDDEN = TRANSFORMER.hidden_size
INT8 = b'{"format": "int8_tensorwise"}'
E4M3_STEP = 2**-4  # half a step of 3 mantissa bits, relative to the number
AXES = {"hyvideo.config": json.dumps({"rope_axes": list(TRANSFORMER.rope_axes)})}
BLOCKS = [name for name, size in layer_sizes(TRANSFORMER).items() if "_blocks." in name and not size.is_vector]


def stored(scheme: str) -> dict[str, Tensor]:
    """The tiny transformer's weights as a file of a scheme has them."""
    state = dict(tiny_transformer().state_dict())
    for name in BLOCKS:
        weight = state[f"{name}.weight"]
        if scheme in ("fp8_scale", "scale_weight"):
            state[f"{name}.weight"], scale = quantize_fp8(weight)
            state[f"{name}.{scheme}"] = scale if scheme == "fp8_scale" else scale.reshape(())
        elif scheme == "fp8_cast":
            state[f"{name}.weight"] = cast_fp8(weight)
        elif scheme in ("int8", "rows"):
            scale = weight.abs().amax(dim=1, keepdim=True) / 127
            state[f"{name}.weight"] = (weight / scale).round().to(torch.int8)
            state[f"{name}.weight_scale"] = scale if scheme == "rows" else scale.flatten()
            if scheme == "int8":
                state[f"{name}.comfy_quant"] = torch.tensor(list(INT8), dtype=torch.uint8)
    if scheme == "scale_weight":
        state["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    return {name: tensor.bfloat16() for name, tensor in state.items()} if scheme == "bfloat16" else state


def dense(tensors: dict[str, Tensor], layer: str) -> Tensor:
    weight = tensors[f"{layer}.weight"].float()
    for scale in ("fp8_scale", "scale_weight", "weight_scale"):
        if f"{layer}.{scale}" in tensors:
            found = tensors[f"{layer}.{scale}"].float()
            weight = weight * (found if found.numel() == 1 else found.reshape(-1, 1))
    return weight


@pytest.fixture
def base(tmp_path: Path) -> Callable[[str], Path]:
    """base(scheme) -> a transformer's file."""

    def write(scheme: str = "float32") -> Path:
        path = tmp_path / f"{scheme}.safetensors"
        layers = {name: {"format": "int8_tensorwise"} for name in BLOCKS}
        more = {"_quantization_metadata": json.dumps({"layers": layers})} if scheme == "rows" else {}
        save_file({name: tensor.contiguous() for name, tensor in stored(scheme).items()}, path, AXES | more)
        return path

    return write


@pytest.fixture
def lora(save: Callable[..., Path]) -> Path:
    return save(lora_tensors(make_layers(size=0.3), "diffusers", HIDDEN))


def test_a_merged_file_gives_what_the_lora_adds(base, lora: Path, tmp_path: Path) -> None:
    merge_lora(base(), lora, tmp_path / "out.safetensors", 0.7)
    model, merged = (load_transformer(path, None, torch.float32) for path in (base(), tmp_path / "out.safetensors"))
    with torch.no_grad(), attach(model, [LoraUse(read_lora(lora, TRANSFORMER), 0.7)]):
        expected = model(**transformer_inputs())
    with torch.no_grad():
        found = merged(**transformer_inputs())
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.bfloat16, "rows": torch.bfloat16}
STEPS = {torch.float32: 2**-23, torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float8_e4m3fn: E4M3_STEP}


@pytest.mark.parametrize("strength", [1.0, -8.0])
@pytest.mark.parametrize("scheme", ["float32", "bfloat16", "fp8_cast", "fp8_scale", "scale_weight", "int8", "rows"])
@pytest.mark.parametrize("storage", [None, "float16", "float32"])
def test_changed_weights_are_rounded_once_to_16_bits_or_more(base, lora, tmp_path, scheme, strength, storage) -> None:
    out = tmp_path / "out.safetensors"
    report = merge_lora(base(scheme), lora, out, strength, storage=storage)
    before, after = load_file(base(scheme)), load_file(out)
    updates = make_layers(size=0.3)
    wanted = getattr(torch, storage) if storage else STORED.get(scheme, torch.bfloat16)
    added = rounded = 0.0
    for layer, size in layer_sizes(TRANSFORMER).items():
        if layer not in updates:
            assert torch.equal(bits(after[f"{layer}.weight"]), bits(before[f"{layer}.weight"]))
            continue
        kept = storage is None and before[f"{layer}.weight"].dtype.itemsize > 1
        dtype = before[f"{layer}.weight"].dtype if kept else wanted
        expected = dense(before, layer) + strength * updates[layer].product()
        assert after[f"{layer}.weight"].dtype == dtype
        assert after[f"{layer}.weight"].shape == (size.out_features, size.in_features)
        assert not [name for name in after if name.startswith(f"{layer}.") and not name.endswith((".weight", ".bias"))]
        error = after[f"{layer}.weight"].float() - expected
        assert (error.abs() <= STEPS[dtype] * expected.abs() + 1e-6).all(), layer
        assert torch.equal(after[f"{layer}.bias"], before[f"{layer}.bias"])
        added += (strength * updates[layer].product()).square().sum().item()
        rounded += error.square().sum().item()
    assert report.changed == sum(f"{name}.weight" in after for name in updates)
    assert report.rounding == pytest.approx((rounded / added) ** 0.5, rel=0.05, abs=1e-6)
    assert report.rounding <= 0.05
    load_transformer(out)


@pytest.mark.parametrize("scheme", ["fp8_cast", "fp8_scale", "int8"])
def test_a_merged_8_bit_file_gives_what_the_lora_adds(base, save, tmp_path: Path, scheme: str) -> None:
    lora = save(lora_tensors(make_layers(("single_blocks.0.linear1",), size=0.3), "diffusers", HIDDEN))
    merge_lora(base(scheme), lora, tmp_path / "out.safetensors", 0.7)
    model, merged = (
        load_transformer(path, None, torch.float32) for path in (base(scheme), tmp_path / "out.safetensors")
    )
    with torch.no_grad():
        without, found = model(**transformer_inputs()), merged(**transformer_inputs())
        with attach(model, [LoraUse(read_lora(lora, TRANSFORMER), 0.7)]):
            expected = model(**transformer_inputs())
    assert (found - expected).norm() <= 0.02 * (expected - without).norm()


@pytest.mark.parametrize("scheme", ["fp8_cast", "fp8_scale", "scale_weight"])
def test_in_fp8_on_request_the_loss_is_told(base, lora: Path, tmp_path: Path, scheme: str) -> None:
    out = tmp_path / "out.safetensors"
    report = merge_lora(base(scheme), lora, out, storage="float8_e4m3fn")
    before, after = load_file(base(scheme)), load_file(out)
    updates = make_layers(size=0.3)
    added = rounded = 0.0
    for layer, product in updates.items():
        expected = dense(before, layer) + product.product()
        was_fp8 = before[f"{layer}.weight"].dtype == torch.float8_e4m3fn
        assert after[f"{layer}.weight"].dtype == before[f"{layer}.weight"].dtype
        if not was_fp8:
            assert torch.allclose(after[f"{layer}.weight"], expected, atol=1e-6)
            added += product.product().square().sum().item()
            continue
        error = (dense(after, layer) - expected).abs()
        # Half of fp8's smallest number, under the scale.
        smallest = 2**-10 * (1.0 if scheme == "fp8_cast" else dense(after, layer).abs().max().item() / 448)
        assert (error <= E4M3_STEP * expected.abs() + smallest).all(), layer
        added, rounded = added + product.product().square().sum().item(), rounded + error.square().sum().item()
    assert report.rounding == pytest.approx((rounded / added) ** 0.5, rel=1e-3)
    assert report.rounding > 0.05
    assert {name.rpartition(".")[2] for name in before} == {name.rpartition(".")[2] for name in after}


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.ndim else tensor


def test_a_scale_that_would_cut_numbers_off_grows(base, lora: Path, tmp_path: Path) -> None:
    out, layer = tmp_path / "out.safetensors", "single_blocks.0.linear1"
    merge_lora(base("fp8_scale"), lora, out, 10.0, storage="float8_e4m3fn")
    before, after = load_file(base("fp8_scale")), load_file(out)
    assert after[f"{layer}.fp8_scale"] > 1.5 * before[f"{layer}.fp8_scale"]
    assert after[f"{layer}.weight"].float().abs().max() == 448


@pytest.mark.parametrize("layout", ["comfyui", "diffusers"])
def test_merged_and_converted_are_the_same_bits_in_either_order(base, lora: Path, tmp_path: Path, layout: str) -> None:
    """Fused weights, and the same cut into q, k and v: the LoRA is added to either, and both ways back agree."""
    whole, cut, merged, merged_cut, cut_merged, back = (tmp_path / f"{name}.safetensors" for name in "abcdef")
    whole = base()
    merge_lora(whole, lora, merged)
    convert_file(whole, cut, Request(layout))
    merge_lora(cut, lora, cut_merged)
    convert_file(merged, merged_cut, Request(layout))
    convert_file(cut_merged, back, Request("tencent"))
    for one, other in ((merged_cut, cut_merged), (merged, back)):
        first, second = load_file(one), load_file(other)
        assert first.keys() == second.keys()
        assert all(torch.equal(bits(first[name]), bits(second[name])) for name in first)


def test_biases_and_whole_differences_are_merged_and_other_blocks_left(base, save, tmp_path: Path) -> None:
    layer, out = "single_blocks.1.linear2", tmp_path / "out.safetensors"
    diff, bias = torch.randn(HIDDEN, 5 * HIDDEN), torch.randn(HIDDEN)
    tensors = {
        f"{name}.{role}": value
        for name in (layer, "single_blocks.0.linear2")
        for role, value in (("diff", diff), ("diff_b", bias))
    }
    merge_lora(base(), save(tensors), out, 0.5, parse_blocks("single 1"))
    before, after = load_file(base()), load_file(out)
    assert torch.equal(after[f"{layer}.weight"], before[f"{layer}.weight"] + 0.5 * diff)
    assert torch.equal(after[f"{layer}.bias"], before[f"{layer}.bias"] + 0.5 * bias)
    assert torch.equal(after["single_blocks.0.linear2.weight"], before["single_blocks.0.linear2.weight"])


def test_the_new_file_says_what_is_in_it(base, lora: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    merge_lora(base(), lora, first, 0.5)
    merge_lora(first, lora, second, -0.5)
    with safe_open(second, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata[MERGED_KEY]) == [{"file": lora.name, "strength": s} for s in (0.5, -0.5)]
    assert metadata["hyvideo.config"] == AXES["hyvideo.config"]
    before, after = load_file(base()), load_file(second)
    assert all((after[name] - before[name]).abs().max() <= 1e-5 for name in before)


def test_what_a_lora_cannot_be_merged_into_is_refused(base, lora: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(WrongKind, match="cannot be merged into"):
        merge_lora(lora, lora, out)
    with pytest.raises(InvalidSetting, match="The storage is 'int8', but must be one of float32"):
        merge_lora(base(), lora, out, storage="int8")
    save_file(stored("fp8_cast"), tmp_path / "apart.safetensors", AXES)
    save_file({name: torch.ones(()) for name in BLOCKS}, tmp_path / "apart_map.safetensors")
    with pytest.raises(UnsupportedFile, match=r"apart_map\.safetensors\. Put both into one file first"):
        merge_lora(tmp_path / "apart.safetensors", lora, out)
    with pytest.raises(InvalidSetting, match=r"must end in \.safetensors"):
        merge_lora(base(), lora, tmp_path / "out.pt")
    assert not out.exists()


IDLE = {
    "strength 0": (0.0, "", "its strength is 0"),
    "other blocks": (1.0, "double 1", "it changes nothing in the blocks that were chosen. It changes single 0"),
}


@pytest.mark.parametrize(("strength", "blocks", "words"), IDLE.values(), ids=IDLE)
def test_no_copy_is_written_that_changes_nothing(base, save, tmp_path: Path, strength, blocks, words) -> None:
    lora = save(lora_tensors(make_layers(("single_blocks.0.linear1",)), "kohya", HIDDEN))
    with pytest.raises(InvalidSetting, match=words):
        merge_lora(base(), lora, tmp_path / "out.safetensors", strength, parse_blocks(blocks))
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("size", [0.0, 1e-12])
def test_nor_one_of_zeros_or_of_what_rounding_loses(base, save, tmp_path: Path, size: float) -> None:
    lora = save(lora_tensors(make_layers(("single_blocks.0.linear1",), size=size), "kohya", HIDDEN))
    with pytest.raises(InvalidSetting, match=r"is zero|is lost in rounding"):
        merge_lora(base("bfloat16"), lora, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("method", lora_methods.METHODS)
@pytest.mark.parametrize("layout", ["tencent", "diffusers"])
def test_every_method_is_merged(base, save, tmp_path: Path, method: str, layout: str) -> None:
    """Also into a file whose layer lies in several tensors, some of which a change of all of it needs."""
    source, out, back = (tmp_path / f"{name}.safetensors" for name in ("source", "out", "back"))
    convert_file(base(), source, Request(layout))
    before = stored("float32")
    tensors, expected = {}, {}
    for layer in ("single_blocks.0.linear1", "double_blocks.1.txt_attn_qkv", "final_layer.adaLN_modulation.1"):
        weight = before[f"{layer}.weight"].detach()
        case = lora_methods.make(method, weight)
        tensors |= {f"diffusion_model.{layer}{end}": tensor for end, tensor in case.tensors.items()}
        expected[f"{layer}.weight"] = (weight.double() + 0.7 * case.change(weight.double())).float()
    merge_lora(source, save(tensors), out, 0.7)
    convert_file(out, back, Request("tencent"))
    found = load_file(back)
    for name, tensor in before.items():
        wanted = expected.get(name, tensor)
        assert (found[name] - wanted).abs().max() <= 2e-6 * wanted.abs().max(), name


def test_additions_to_vectors_are_merged(base, save, tmp_path: Path) -> None:
    refiner = "txt_in.individual_token_refiner.blocks.0.norm1"
    names = {
        f"{refiner}.weight": f"{refiner}.w_norm",
        f"{refiner}.bias": f"{refiner}.b_norm",
        "double_blocks.0.img_attn_q_norm.weight": "double_blocks.0.img_attn.norm.query_norm.scale.diff",
        "single_blocks.1.linear2.bias": "single_blocks.1.linear2.diff_b",
    }
    before = stored("float32")
    tensors = {theirs: torch.randn(before[ours].shape) for ours, theirs in names.items()}
    merge_lora(base(), save(tensors), tmp_path / "out.safetensors", -0.5)
    after = load_file(tmp_path / "out.safetensors")
    for name, tensor in before.items():
        added = -0.5 * tensors[names[name]] if name in names else torch.zeros(())
        assert torch.allclose(after[name], tensor + added, atol=1e-7), name


def test_nothing_is_replaced_unasked_and_nothing_half_written_stays(base, lora: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(OutputExists):
        merge_lora(base(), lora, out)
    assert out.read_bytes() == b"mine"
    merge_lora(base(), lora, out, overwrite=True)
    assert out.stat().st_size > 4
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}
