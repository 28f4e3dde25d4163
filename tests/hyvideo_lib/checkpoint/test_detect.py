from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyvideo_lib.checkpoint import inspect_file
from hyvideo_lib.errors import BadInput, FileMissing

WriteFile = Callable[..., Path]
EntriesOf = Callable[..., dict[str, tuple[list[int], str]]]

# layout file -> kind, layout, variant, quantization
USABLE = {
    "tencent_transformer_t2v": ("transformer", "tencent", "t2v", "none"),
    "tencent_transformer_i2v_v1_latent_concat": ("transformer", "tencent", "i2v_latent_concat", "none"),
    "kijai_transformer_t2v_fp8_e4m3fn": ("transformer", "tencent", "t2v", "fp8_cast"),
    "vae_tencent_diffusers": ("vae", "tencent", "", "none"),
    "llama_hf": ("llama", "huggingface", "", "none"),
    "llava_llama3_comfy_fp16": ("llama", "huggingface", "", "none"),
    "clip_l_text": ("clip", "huggingface", "", "none"),
}
PREFIXES = {
    "tencent_transformer_t2v": ("model.model.", "model.diffusion_model.", "diffusion_model.", "module."),
    "vae_tencent_diffusers": ("vae.", "first_stage_model."),
    "llama_hf": ("model.", "language_model.model.", "model.language_model."),
}


@pytest.mark.parametrize("name", USABLE)
def test_released_layouts_are_recognised_at_full_size(
    name: str, write_sparse: WriteFile, entries_of: EntriesOf
) -> None:
    entries = entries_of(name)
    report = inspect_file(write_sparse(entries))
    assert (report.kind, report.layout, report.variant, report.quantization) == USABLE[name]
    assert (report.supported, report.reason) == (True, "")
    assert report.num_tensors == len(entries)
    assert report.num_parameters == sum(math.prod(shape) for shape, _ in entries.values())
    assert sum(group.parameters for group in report.groups) == report.num_parameters
    assert sum(group.num_bytes for group in report.groups) < report.file_size
    assert not report.missing
    assert not report.unexpected
    assert not report.wrong_shapes


def test_the_13b_transformer_is_measured(write_sparse: WriteFile, entries_of: EntriesOf) -> None:
    report = inspect_file(write_sparse(entries_of("kijai_transformer_t2v_fp8_e4m3fn")))
    assert report.num_parameters == 12_821_012_544
    assert report.num_tensors == 856
    assert report.config is not None
    sizes = ("hidden_size", "num_heads", "num_double_blocks", "num_single_blocks", "rope_axes", "has_guidance")
    assert [report.config[name] for name in sizes] == [3072, 24, 20, 40, (16, 56, 56), True]
    by_part = {(group.name, group.dtype): group.tensors for group in report.groups}
    assert by_part["double_blocks", "float8_e4m3fn"] == 20 * 10
    assert by_part["double_blocks", "bfloat16"] == 20 * 14
    assert by_part["single_blocks", "float8_e4m3fn"] == 40 * 3
    assert any("token replace" in note for note in report.notes)


@pytest.mark.parametrize(("name", "prefix"), [(name, prefix) for name in PREFIXES for prefix in PREFIXES[name]])
def test_prefixes_are_seen_through(name: str, prefix: str, write_sparse: WriteFile, entries_of: EntriesOf) -> None:
    entries = {prefix + key: value for key, value in entries_of(name).items()}
    report = inspect_file(write_sparse({**entries, "another.thing": ([3], "float32")}))
    assert (report.kind, report.prefix, report.supported) == (USABLE[name][0], prefix, True)
    assert any("something else, ignored: 1" in note for note in report.notes)


def test_unknown_file_is_shown_not_refused(write_sparse: WriteFile) -> None:
    report = inspect_file(write_sparse({"some.weight": ([2, 2], "float32")}))
    assert (report.kind, report.supported, report.config) == ("unknown", False, None)
    assert report.some_names == ("some.weight",)
    assert "some.weight" in report.reason


def test_empty_file_is_unknown(write_sparse: WriteFile) -> None:
    assert inspect_file(write_sparse({})).kind == "unknown"


def test_missing_unexpected_and_wrong_tensors_are_listed(write_sparse: WriteFile, entries_of: EntriesOf) -> None:
    entries = entries_of("vae_tencent_diffusers")
    del entries["quant_conv.bias"]
    entries["decoder.extra.weight"] = ([4], "float32")
    entries["decoder.conv_out.conv.bias"] = ([4], "float32")
    report = inspect_file(write_sparse(entries))
    assert not report.supported
    assert report.missing == ("quant_conv.bias",)
    assert report.unexpected == ("decoder.extra.weight",)
    assert report.wrong_shapes == ("decoder.conv_out.conv.bias is [4], expected [3]",)
    for fault in ("Missing tensors (1): quant_conv.bias.", "Unexpected tensors (1)", "of a wrong shape (1)"):
        assert fault in report.reason


def test_ten_names_of_many_are_listed(write_sparse: WriteFile, entries_of: EntriesOf) -> None:
    entries = {name: value for name, value in entries_of("vae_tencent_diffusers").items() if "mid_block" not in name}
    report = inspect_file(write_sparse(entries))
    assert len(report.missing) == 10
    assert "Missing tensors (52): " in report.reason
    assert "and 42 more" in report.reason


def test_a_shard_alone_asks_for_the_others(write_sparse: WriteFile, entries_of: EntriesOf) -> None:
    half = dict(list(entries_of("llama_hf").items())[:150])
    path = write_sparse(half, name="model-00001-of-00004.safetensors")
    with pytest.raises(FileMissing, match="lacks 3 of the 4 parts"):
        inspect_file(path)


def test_a_folder_of_shards_is_reported_as_one(write_sparse: WriteFile, entries_of: EntriesOf, tmp_path: Path) -> None:
    entries = list(entries_of("llama_hf").items())
    write_sparse(dict(entries[:150]), name="model-00001-of-00002.safetensors")
    write_sparse(dict(entries[150:]), name="model-00002-of-00002.safetensors")
    report = inspect_file(tmp_path)
    assert (report.kind, report.supported, report.num_tensors) == ("llama", True, len(entries))
    assert report.num_parameters == 7_505_186_816


def test_integer_weights_are_refused(write_sparse: WriteFile, entries_of: EntriesOf) -> None:
    entries = entries_of("clip_l_text")
    entries["text_model.encoder.layers.0.mlp.fc1.weight"] = ([3072, 768], "uint8")
    assert "stored as uint8" in inspect_file(write_sparse(entries)).reason


def test_scales_beside_weights_are_no_surprise(write_sparse: WriteFile, entries_of: EntriesOf) -> None:
    entries = entries_of("tencent_transformer_t2v_fp8")
    scales = entries_of("tencent_transformer_t2v_fp8", "map_entries")
    entries |= {f"{layer}.fp8_scale": value for layer, value in scales.items()}
    report = inspect_file(write_sparse(entries))
    assert (report.quantization, report.supported) == ("fp8_scale", True)


def test_a_scale_without_its_weight_is_a_surprise(write_sparse: WriteFile, entries_of: EntriesOf) -> None:
    entries = entries_of("tencent_transformer_t2v_fp8") | {"double_blocks.99.fp8_scale": ([1], "float32")}
    assert inspect_file(write_sparse(entries)).unexpected == ("double_blocks.99.fp8_scale",)


def test_unneeded_parts_of_a_text_encoder_may_stand_or_be_missing(
    write_sparse: WriteFile, entries_of: EntriesOf
) -> None:
    entries = entries_of("llama_hf")
    del entries["norm.weight"]
    entries["lm_head.weight"] = ([128320, 4096], "float16")
    assert inspect_file(write_sparse(entries)).supported
    clip = entries_of("clip_l_text")
    clip["text_model.embeddings.position_ids"] = ([1, 77], "int64")
    clip["logit_scale"] = ([], "float32")
    clip["vision_model.post_layernorm.weight"] = ([1024], "float32")
    assert inspect_file(write_sparse(clip)).supported


def test_report_is_ready_for_json(write_sparse: WriteFile, entries_of: EntriesOf) -> None:
    path = write_sparse(entries_of("tencent_transformer_t2v"), metadata={"made": "here"})
    report = json.loads(json.dumps(inspect_file(path).to_dict()))
    assert report["kind"] == "transformer"
    assert report["metadata"] == {"made": "here"}
    assert report["config"]["rope_axes"] == [16, 56, 56]
    assert report["groups"][0]["name"] == "double_blocks"


@pytest.mark.parametrize("name", ["dit_tiny_t2v_noguidance", "vae_tiny", "te_llama_tiny", "te_clip_tiny"])
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bits_are_reported_or_fail_in_words(
    name: str, goldens: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Names, shapes and dtypes that almost fit never end in anything but a report or one of our errors."""
    whole = bytearray((goldens / f"{name}.weights.safetensors").read_bytes())
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(8, header_end - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(whole)
    try:
        report = inspect_file(path)
    except BadInput:
        return
    json.dumps(report.to_dict()).encode()


@pytest.mark.parametrize(
    "name",
    [
        "tencent_transformer_t2v",
        "comfy_transformer_t2v",
        "diffusers_transformer_t2v",
        "vae_tencent_diffusers",
        "vae_comfy",
        "llama_hf",
        "llava_llama3_comfy_fp8_scaled",
        "clip_l_text",
    ],
)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_size_that_shapes_tell_is_survived(
    name: str, write_sparse: WriteFile, entries_of: EntriesOf, data: st.DataObject
) -> None:
    """Shapes that disagree with each other in any way end in a verdict."""
    entries = entries_of(name)
    some = data.draw(st.lists(st.sampled_from(sorted(entries)), min_size=1, max_size=4))
    for tensor in some:
        ndim = data.draw(st.sampled_from([len(entries[tensor][0]), 0, 1, 2]))
        shape = [data.draw(st.sampled_from([0, 1, 2, 3, 5, 64, 3072, 2**20])) for _ in range(ndim)]
        entries[tensor] = (shape if math.prod(shape) < 2**40 else [1], entries[tensor][1])
    report = inspect_file(write_sparse(entries))
    assert report.supported == (not report.reason)
