from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf_file import entry, write_gguf
from tiny import GOLDENS, TRANSFORMER
from tiny_lora import RANK, SCALE, make_layers
from torch import Tensor

from hyvideo_lib.checkpoint.lora_layers import layer_sizes
from hyvideo_lib.errors import FileMissing, FileUnreadable, UnsupportedFile
from hyvideo_lib.lora import FAMILIES, check_names, read_lora
from hyvideo_lib.lora.alpha_sources import PEFT_METADATA
from hyvideo_lib.lora.update import add_updates
from hyvideo_lib.lora.write import lora_tensors

Save = Callable[..., Path]
HIDDEN = TRANSFORMER.hidden_size
PAIRS = [
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_A", ".lora_B"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
]
NAME = "transformer.single_blocks.0.linear2"
LAYER = "single_blocks.0.linear2"


def pair(name: str = NAME, rank: int = RANK, suffixes: tuple[str, str] = PAIRS[1]) -> dict[str, Tensor]:
    """Both matrices of `LAYER`, [48, 240]."""
    generator = torch.Generator().manual_seed(0)
    return {
        name + suffixes[0]: torch.randn(rank, 5 * HIDDEN, generator=generator),
        name + suffixes[1]: torch.randn(HIDDEN, rank, generator=generator),
    }


def weight_change(path: Path, layer: str = LAYER, shape: tuple[int, int] = (HIDDEN, 5 * HIDDEN)) -> Tensor:
    """What a file adds to a layer's weight at strength 1."""
    return add_updates(torch.zeros(shape), [(update, 1.0) for update in read_lora(path, TRANSFORMER).updates[layer]])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_is_the_same_in_every_family(save: Save, family: str) -> None:
    layers = make_layers()
    lora = read_lora(save(lora_tensors(layers, family, HIDDEN)), TRANSFORMER)
    assert set(lora.updates) == set(layers)
    assert lora.coverage.unmatched == ()
    for name, product in layers.items():
        expected = product.product()
        found = add_updates(torch.zeros_like(expected), [(update, 1.0) for update in lora.updates[name]])
        assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("suffixes", PAIRS, ids=lambda pair: pair[0])
def test_every_pair_of_suffixes_is_read(save: Save, suffixes: tuple[str, str]) -> None:
    assert torch.equal(weight_change(save(pair(suffixes=suffixes))), weight_change(save(pair())))


@pytest.mark.parametrize(("alpha", "scale"), [(0.0, 1), (1.5, 0.5), (3.0, 1), (-3.0, -1)])
def test_alpha_beside_a_pair_scales_it(save: Save, alpha: float, scale: float) -> None:
    scaled = weight_change(save({**pair(), f"{NAME}.alpha": torch.tensor(alpha)}))
    assert torch.allclose(scaled, scale * weight_change(save(pair())), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_matrices_of_every_floating_point_dtype_are_read(save: Save, dtype: str) -> None:
    stored = {name: tensor.to(getattr(torch, dtype)) for name, tensor in pair().items()}
    expected = weight_change(save({name: tensor.float() for name, tensor in stored.items()}))
    assert torch.allclose(weight_change(save(stored)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "int64", "int32", "int16", "int8", "uint8"])
def test_alpha_may_be_a_whole_number(save: Save, dtype: str) -> None:
    alpha = torch.tensor(6, dtype=getattr(torch, dtype))
    doubled = weight_change(save({**pair(), f"{NAME}.alpha": alpha}))
    assert torch.allclose(doubled, 2 * weight_change(save(pair())), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int64", "int8", "bool"])
def test_matrices_of_whole_numbers_are_refused(save: Save, dtype: str) -> None:
    path = save({name: torch.ones_like(tensor, dtype=getattr(torch, dtype)) for name, tensor in pair().items()})
    with pytest.raises(UnsupportedFile, match=rf"as {dtype}, but a LoRA holds floating-point numbers"):
        read_lora(path, TRANSFORMER)


def test_a_stranger_among_the_tensors_hides_none_of_them(save: Save) -> None:
    for stranger in ("aaa.weight", "zzz.weight"):
        coverage = read_lora(save({stranger: torch.zeros(2), **pair()}), TRANSFORMER).coverage
        assert (coverage.matched, coverage.unmatched) == (2, (stranger,))


def test_alpha_in_the_metadata_scales_where_no_tensor_does(save: Save) -> None:
    metadata = {PEFT_METADATA: json.dumps({"transformer.lora_alpha": 6, "transformer.r": RANK})}
    plain = weight_change(save(pair()))
    assert torch.allclose(weight_change(save(pair(), metadata)), 2 * plain, rtol=1e-6)
    beside = {**pair(), f"{NAME}.alpha": torch.tensor(6.0)}
    assert torch.allclose(weight_change(save(beside, metadata)), 2 * plain, rtol=1e-6)


def test_parts_that_are_missing_add_nothing(save: Save) -> None:
    layers = make_layers(("single_blocks.1.linear1",))
    tensors = lora_tensors(layers, "diffusers", HIDDEN)
    path = save({name: tensor for name, tensor in tensors.items() if ".to_k." not in name})
    found = weight_change(path, "single_blocks.1.linear1", (7 * HIDDEN, HIDDEN))
    expected = layers["single_blocks.1.linear1"].product()
    expected[HIDDEN : 2 * HIDDEN] = 0
    assert (found - expected).abs().max() <= 1e-6


def test_whole_differences_and_biases_are_read(save: Save) -> None:
    diff, bias = torch.randn(HIDDEN, 5 * HIDDEN), torch.randn(HIDDEN)
    path = save({"diffusion_model.single_blocks.0.linear2.diff": diff, f"diffusion_model.{LAYER}.diff_b": bias})
    (update,) = read_lora(path, TRANSFORMER).updates[LAYER]
    assert torch.equal(weight_change(path), diff)
    assert update.bias_diff is not None
    assert torch.equal(update.bias_diff, bias)


@pytest.mark.parametrize("is_flat", [False, True])
def test_the_patch_embedding_takes_convolutions_and_matrices(save: Save, is_flat: bool) -> None:
    down, up = torch.randn(RANK, 4, 1, 2, 2), torch.randn(HIDDEN, RANK, 1, 1, 1)
    stored = (down.flatten(1), up.flatten(1)) if is_flat else (down, up)
    path = save(dict(zip(("img_in.proj.lora_A.weight", "img_in.proj.lora_B.weight"), stored, strict=True)))
    assert torch.equal(weight_change(path, "img_in.proj", (HIDDEN, 16)), up.flatten(1) @ down.flatten(1))


def test_the_report_tells_what_is_touched(save: Save) -> None:
    layers = make_layers(("double_blocks.1.img_attn_qkv", "single_blocks.0.linear1", "final_layer.adaLN_modulation.1"))
    tensors = {**lora_tensors(layers, "diffusers", HIDDEN), "text_encoder.q.lora_A.weight": torch.zeros(2, 2)}
    coverage = read_lora(save(tensors), TRANSFORMER).coverage
    sizes = layer_sizes(TRANSFORMER)
    assert (coverage.matched, coverage.layers, coverage.all_layers) == (16, 3, len(sizes))
    assert coverage.unmatched == ("text_encoder.q.lora_A.weight",)
    assert coverage.ranks == (RANK,)
    assert (coverage.double_blocks, coverage.single_blocks) == ((1,), (0,))
    assert coverage.others == ("final_layer.adaLN_modulation.1",)
    whole = torch.cat([layer.product().flatten() for layer in layers.values()]).norm().item()
    assert coverage.norm == pytest.approx(whole, rel=1e-5)
    assert coverage.family == "transformer., diffusers' module names, .lora_A.weight"
    assert "1 of 17 tensors" in (coverage.warning() or "")
    assert json.loads(json.dumps(coverage.to_dict()))["unmatched"] == ["text_encoder.q.lora_A.weight"]
    assert "double 1, single 0, 1 other layers" in coverage.describe()


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("kohya", "lora_unet_, Tencent's"),
        ("comfyui_kohya", "lora_unet_, ComfyUI's"),
        ("tencent_i2v", "Hunyuan_video_I2V_lora_, Tencent's"),
        ("onetrainer", "lora_transformer_, diffusers'"),
        ("plain", "no prefix, diffusers'"),
        ("peft", "base_model.model., Tencent's"),
    ],
)
def test_the_report_names_the_family(save: Save, family: str, words: str) -> None:
    path = save(lora_tensors(make_layers(), family, HIDDEN))
    assert read_lora(path, TRANSFORMER).coverage.family.startswith(words)


def test_alpha_in_the_report_is_scale_times_rank() -> None:
    coverage = read_lora(GOLDENS / "lora_tiny.kohya.safetensors", TRANSFORMER).coverage
    assert (coverage.ranks, coverage.alphas) == ((4,), (2.0,))
    assert coverage.warning() is None
    assert SCALE * RANK == 1.5


# Refused

REFUSED = [
    ("dora_scale", {f"{NAME}.dora_scale": torch.ones(HIDDEN + 1)}, "a length for each of 48 rows or 240 columns"),
    ("magnitude", {f"{NAME}.lora_magnitude_vector": torch.ones(4, 12)}, "a length for each of 48 rows"),
    (
        "tucker",
        {f"{NAME}.lora_mid.weight": torch.ones(2, 2)},
        "needs a change of 48 x 240, which its LoRA with",
    ),
    ("set_weight", {f"{NAME}.set_weight": torch.ones(2, 2)}, "is replacement weights.*train it again"),
    ("glora", {f"{NAME}.a1.weight": torch.ones(2, 2)}, "is GLoRA"),
    ("a stranger", {f"{NAME}.unheard_of": torch.ones(2)}, "nothing here knows what that means"),
    ("a stranger's weight", {f"{NAME}.unheard_of.weight": torch.ones(2)}, "nothing here knows what that means"),
    ("bias of the product", {f"{NAME}.lora_B.bias": torch.ones(3)}, "needs 48"),
    (
        "two adapters",
        {f"transformer.{LAYER.replace('.0.', '.1.')}.lora_A.{name}.weight": torch.ones(1, 1) for name in "ab"},
        "holds two adapters, 'a'",
    ),
    ("nan", {f"{NAME}.lora_A.weight": torch.full((RANK, 240), float("nan"))}, "NaN or infinity in transformer.single"),
    ("inf", {f"{NAME}.lora_B.weight": torch.full((48, RANK), float("inf"))}, "NaN or infinity"),
    ("rank", {f"{NAME}.lora_A.weight": torch.ones(RANK + 1, 240)}, "does not fit"),
    ("empty rank", pair(rank=0), "does not fit"),
    ("width", {f"{NAME}.lora_A.weight": torch.ones(RANK, 241)}, "single_blocks.0.linear2 needs 3 x 240"),
    ("rows", {f"{NAME}.lora_B.weight": torch.ones(49, RANK)}, "needs 48 x 3"),
    ("alpha list", {f"{NAME}.alpha": torch.ones(3)}, "needs one number"),
    ("alpha nan", {f"{NAME}.alpha": torch.tensor(float("nan"))}, "alpha is nan"),
    ("integers", {f"{NAME}.lora_A.weight": torch.ones(RANK, 240, dtype=torch.int8)}, "as int8"),
    ("bias", {f"{NAME}.diff_b": torch.ones(3)}, "needs 48"),
    ("scalar", {f"{NAME}.lora_A.weight": torch.ones(())}, "does not fit"),
]


@pytest.mark.parametrize(("tensors", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_act_is_refused(save: Save, tensors: dict[str, Tensor], words: str) -> None:
    with pytest.raises(UnsupportedFile, match=words):
        read_lora(save({**pair(), **tensors}), TRANSFORMER)


def test_a_file_of_which_nothing_fits_is_refused(save: Save) -> None:
    strange = {f"diffusion_model.layers.{i}.attention.q.lora_A.weight": torch.ones(2, 2) for i in range(12)}
    with pytest.raises(UnsupportedFile, match="None of the 12 tensors") as error:
        read_lora(save(strange), TRANSFORMER)
    assert "diffusion_model.layers.0.attention.q.lora_A.weight" in str(error.value)
    assert "and 2 more" in str(error.value)
    with pytest.raises(UnsupportedFile, match="None of the"):
        read_lora(save({f"{NAME}.alpha": torch.tensor(1.0)}), TRANSFORMER)


def test_a_file_that_is_no_lora_is_refused(save: Save, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFile, match=r"is no LoRA: none of its 4 tensors.*a\.weight, b\.weight"):
        read_lora(save({f"{name}.weight": torch.ones(2) for name in "abcd"}), TRANSFORMER)
    gguf = write_gguf(tmp_path / "lora.gguf", {name: entry(tensor) for name, tensor in pair().items()})
    with pytest.raises(UnsupportedFile, match="is a GGUF file"):
        read_lora(gguf, TRANSFORMER)


def test_names_are_checked_before_the_transformer_is_known(save: Save) -> None:
    check_names(save(pair()))  # of shapes that the released transformer does not have
    check_names(GOLDENS / "lora_tiny.diffusers_split.safetensors")
    for name, words in (("blocks.0.q.lora_A", "None of the 1 tensors"), (f"{NAME}.a1.weight", "is GLoRA")):
        with pytest.raises(UnsupportedFile, match=words):
            check_names(save({name: torch.ones(2, 2)}))
    with pytest.raises(FileUnreadable, match=r"lokr_w1 of .*, which do not make a whole of any method"):
        check_names(save({f"{NAME}.lokr_w1": torch.ones(2, 2)}))


@pytest.mark.parametrize("key", ["modelspec.architecture", "ss_base_model_version"])
def test_a_file_that_says_it_is_for_another_model_is_refused(save: Save, key: str) -> None:
    with pytest.raises(UnsupportedFile, match="for another model, Flux: its header says 'flux-1-dev/lora'"):
        read_lora(save(pair(), {key: "flux-1-dev/lora"}), TRANSFORMER)
    read_lora(save(pair(), {key: "hunyuan_video"}), TRANSFORMER)


@pytest.mark.parametrize(("kept", "missing"), [(0, "up"), (1, "down")])
def test_half_a_pair_is_refused(save: Save, kept: int, missing: str) -> None:
    with pytest.raises(FileUnreadable, match=f"not its {missing} matrix"):
        read_lora(save(dict([list(pair().items())[kept]])), TRANSFORMER)


def test_one_layer_named_twice_is_refused(save: Save) -> None:
    with pytest.raises(FileUnreadable, match=r"changes single_blocks\.0\.linear2 twice"):
        read_lora(save({**pair(), **pair("lora_unet_single_blocks_0_linear2", suffixes=PAIRS[0])}), TRANSFORMER)
    with pytest.raises(FileUnreadable, match="are the same thing"):
        read_lora(save({**pair(), **pair(suffixes=PAIRS[0])}), TRANSFORMER)


def test_a_file_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileMissing):
        read_lora(tmp_path / "no.safetensors", TRANSFORMER)
