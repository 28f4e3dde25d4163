from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import TRANSFORMER, tiny_transformer, transformer_inputs
from tiny_lora import make_layers
from torch import Tensor

from hyvideo_lib.checkpoint import load_transformer
from hyvideo_lib.checkpoint.convert import convert_file
from hyvideo_lib.checkpoint.rewrite import Request
from hyvideo_lib.errors import InvalidSetting, OutputExists, UnsupportedFile, WrongKind
from hyvideo_lib.lora import LoraUse, attach, parse_blocks, read_lora
from hyvideo_lib.lora.merge import MERGED_KEY, merge_lora
from hyvideo_lib.lora.names import layer_sizes
from hyvideo_lib.lora.write import lora_tensors
from hyvideo_lib.quant import cast_fp8, quantize_fp8

HIDDEN = TRANSFORMER.hidden_size
E4M3_STEP = 2**-4  # half a step of 3 mantissa bits, relative to the number
AXES = {"hyvideo.config": json.dumps({"rope_axes": list(TRANSFORMER.rope_axes)})}
BLOCKS = [name for name in layer_sizes(TRANSFORMER) if name.startswith(("double_blocks.", "single_blocks."))]


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
    if scheme == "scale_weight":
        state["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    return {name: tensor.bfloat16() for name, tensor in state.items()} if scheme == "bfloat16" else state


def dense(tensors: dict[str, Tensor], layer: str) -> Tensor:
    weight = tensors[f"{layer}.weight"].float()
    for scale in ("fp8_scale", "scale_weight"):
        if f"{layer}.{scale}" in tensors:
            weight = weight * tensors[f"{layer}.{scale}"].float()
    return weight


@pytest.fixture
def base(tmp_path: Path) -> Callable[[str], Path]:
    """base(scheme) -> a transformer's file."""

    def write(scheme: str = "float32") -> Path:
        path = tmp_path / f"{scheme}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in stored(scheme).items()}, path, AXES)
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


@pytest.mark.parametrize("strength", [1.0, -8.0])
@pytest.mark.parametrize(
    ("scheme", "step"),
    [
        ("float32", 2**-23),
        ("bfloat16", 2**-8),
        ("fp8_cast", E4M3_STEP),
        ("fp8_scale", E4M3_STEP),
        ("scale_weight", E4M3_STEP),
    ],
)
def test_every_storage_is_kept_and_rounded_once(base, lora, tmp_path, scheme, step, strength) -> None:
    out = tmp_path / "out.safetensors"
    report = merge_lora(base(scheme), lora, out, strength)
    before, after = load_file(base(scheme)), load_file(out)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in after.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in before.items()
    }
    updates = make_layers(size=0.3)
    for layer in layer_sizes(TRANSFORMER):
        if layer not in updates:
            assert torch.equal(after[f"{layer}.weight"], before[f"{layer}.weight"])
            continue
        expected = dense(before, layer) + strength * updates[layer].product()
        error = (dense(after, layer) - expected).abs()
        # Half of fp8's smallest number, under the scale.
        smallest = 2**-10 * (1.0 if scheme == "fp8_cast" else dense(after, layer).abs().max().item() / 448)
        assert (error <= step * expected.abs() + smallest).all(), layer
        assert torch.equal(after[f"{layer}.bias"], before[f"{layer}.bias"])
    assert report.changed == sum(not torch.equal(bits(after[name]), bits(before[name])) for name in after)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.ndim else tensor


def test_a_scale_that_would_cut_numbers_off_grows(base, lora: Path, tmp_path: Path) -> None:
    out, layer = tmp_path / "out.safetensors", "single_blocks.0.linear1"
    merge_lora(base("fp8_scale"), lora, out, 10.0)
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
    state = stored("fp8_scale")
    for name in BLOCKS:
        state[f"{name}.fp8_scale"] = state[f"{name}.fp8_scale"].expand(state[f"{name}.weight"].shape[0], 1).clone()
    save_file(state, tmp_path / "rows.safetensors", AXES)
    with pytest.raises(UnsupportedFile, match="Convert the file to bf16 first"):
        merge_lora(tmp_path / "rows.safetensors", lora, out)
    save_file(stored("fp8_cast"), tmp_path / "apart.safetensors", AXES)
    save_file({name: torch.ones(()) for name in BLOCKS}, tmp_path / "apart_map.safetensors")
    with pytest.raises(UnsupportedFile, match=r"apart_map\.safetensors\. Put both into one file first"):
        merge_lora(tmp_path / "apart.safetensors", lora, out)
    with pytest.raises(InvalidSetting, match=r"must end in \.safetensors"):
        merge_lora(base(), lora, tmp_path / "out.pt")
    assert not out.exists()


def test_nothing_is_replaced_unasked_and_nothing_half_written_stays(base, lora: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(OutputExists):
        merge_lora(base(), lora, out)
    assert out.read_bytes() == b"mine"
    merge_lora(base(), lora, out, overwrite=True)
    assert out.stat().st_size > 4
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}
