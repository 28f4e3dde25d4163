from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyvideo_lib.checkpoint.read import read_header
from hyvideo_lib.checkpoint.sizes import (
    METADATA_KEY,
    clip_config_from_header,
    llama_config_from_header,
    transformer_config_from_header,
    vae_config_from_header,
)
from hyvideo_lib.errors import FileUnreadable, InvalidSetting, UnsupportedFile
from hyvideo_lib.text import ClipEncoderConfig, LlamaEncoderConfig
from hyvideo_lib.transformer import TransformerConfig
from hyvideo_lib.vae import VAEConfig

WriteFile = Callable[..., Path]
EntriesOf = Callable[..., dict[str, tuple[list[int], str]]]
READERS: dict[str, Callable[..., Any]] = {
    "tencent_transformer_t2v": transformer_config_from_header,
    "tencent_transformer_i2v_v1_latent_concat": transformer_config_from_header,
    "vae_tencent_diffusers": vae_config_from_header,
    "llama_hf": llama_config_from_header,
    "clip_l_text": clip_config_from_header,
}
RELEASED = {
    "tencent_transformer_t2v": TransformerConfig(16, 16, 3072, 24, 20, 40),
    "tencent_transformer_i2v_v1_latent_concat": TransformerConfig(33, 16, 3072, 24, 20, 40, has_guidance=False),
    "vae_tencent_diffusers": VAEConfig(),
    "llama_hf": LlamaEncoderConfig(),
    "clip_l_text": ClipEncoderConfig(),
}
TRANSFORMER_GOLDENS = (
    "dit_tiny_t2v",
    "dit_tiny_t2v_noguidance",
    "dit_tiny_i2v_latent_concat",
    "dit_headdim128_t2v",
)


def config_metadata(**values: Any) -> dict[str, str]:
    return {METADATA_KEY: json.dumps(values)}


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_give_the_default_sizes(name: str, write_sparse: WriteFile, entries_of: EntriesOf) -> None:
    assert READERS[name](read_header(write_sparse(entries_of(name)))) == RELEASED[name]


@pytest.mark.parametrize("name", TRANSFORMER_GOLDENS)
def test_transformer_sizes_equal_the_references(name: str, goldens: Path, write_sparse: WriteFile) -> None:
    recorded = next(
        case for case in json.loads((goldens / "manifest.json").read_text())["cases"] if case["name"] == name
    )
    wanted = recorded["config"]
    header = read_header(goldens / f"{name}.weights.safetensors")
    entries = {key: (list(info.shape), info.dtype) for key, info in header.tensors.items()}
    axes = config_metadata(rope_axes=wanted["rope_dim_list"])
    found = transformer_config_from_header(read_header(write_sparse(entries, axes)))
    assert found == TransformerConfig(
        in_channels=wanted["in_channels"],
        out_channels=wanted["out_channels"],
        hidden_size=wanted["hidden_size"],
        num_heads=wanted["heads_num"],
        num_double_blocks=wanted["mm_double_blocks_depth"],
        num_single_blocks=wanted["mm_single_blocks_depth"],
        rope_axes=tuple(wanted["rope_dim_list"]),
        rope_theta=wanted["rope_theta"],
        mlp_ratio=wanted["mlp_width_ratio"],
        text_dim=wanted["text_states_dim"],
        pooled_dim=wanted["text_states_dim_2"],
        num_refiner_blocks=wanted["refiner_depth"],
        patch_size=tuple(wanted["patch_size"]),
        has_guidance=wanted["guidance_embed"],
    )


def test_vae_sizes_are_read_and_groups_given(goldens: Path, write_sparse: WriteFile) -> None:
    header = read_header(goldens / "vae_tiny.weights.safetensors")
    entries = {key: (list(info.shape), info.dtype) for key, info in header.tensors.items()}
    found = vae_config_from_header(read_header(write_sparse(entries, config_metadata(norm_groups=4, scaling=0.5))))
    assert found == VAEConfig((8, 8, 16, 16), layers_per_block=2, norm_groups=4, latent_channels=4, scaling=0.5)
    with pytest.raises(InvalidSetting, match="32 norm groups"):
        vae_config_from_header(header)


def test_text_encoder_sizes_are_read_and_heads_given(goldens: Path, write_sparse: WriteFile) -> None:
    def with_metadata(name: str, **values: Any) -> Any:
        header = read_header(goldens / f"{name}.weights.safetensors")
        entries = {key: (list(info.shape), info.dtype) for key, info in header.tensors.items()}
        return read_header(write_sparse(entries, config_metadata(**values)))

    assert llama_config_from_header(with_metadata("te_llama_tiny", head_dim=8)) == LlamaEncoderConfig(
        vocab_size=81, hidden_size=32, intermediate_size=64, num_layers=5, num_heads=4, num_kv_heads=2, head_dim=8
    )
    assert clip_config_from_header(with_metadata("te_clip_tiny", num_heads=3)) == ClipEncoderConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=48,
        num_layers=3,
        num_heads=3,
        max_positions=10,
        bos_token_id=38,
        eos_token_id=39,
    )


@pytest.mark.parametrize(
    ("head_dim", "axes"), [(128, (16, 56, 56)), (32, (4, 14, 14)), (64, (8, 28, 28)), (96, (12, 42, 42))]
)
def test_heads_are_split_in_the_released_proportions(
    head_dim: int, axes: tuple[int, int, int], write_sparse: WriteFile, entries_of: EntriesOf
) -> None:
    entries = entries_of("tencent_transformer_t2v")
    entries["double_blocks.0.img_attn_q_norm.weight"] = ([head_dim], "bfloat16")
    found = transformer_config_from_header(read_header(write_sparse(entries)))
    assert found.rope_axes == axes
    assert found.num_heads == 3072 // head_dim


def test_an_odd_head_asks_for_its_split(goldens: Path) -> None:
    header = read_header(goldens / "dit_tiny_t2v.weights.safetensors")  # 24 wide: 3 : 10.5 : 10.5
    with pytest.raises(UnsupportedFile, match=r"24 wide.*rope_axes"):
        transformer_config_from_header(header)


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[1]",
        '"text"',
        "[" * 100_000,
        '{"rope_axes": 5}',
        '{"rope_axes": ["a", "b", "c"]}',
        '{"rope_theta": "x"}',
    ],
)
def test_damaged_metadata_is_told(text: str, write_sparse: WriteFile, entries_of: EntriesOf) -> None:
    header = read_header(write_sparse(entries_of("tencent_transformer_t2v"), {METADATA_KEY: text}))
    with pytest.raises(FileUnreadable, match="metadata entry"):
        transformer_config_from_header(header)


@pytest.mark.parametrize("head_dim", [0, -8, "8", 8.0, None])
def test_impossible_head_size_in_metadata_is_told(
    head_dim: Any, write_sparse: WriteFile, entries_of: EntriesOf
) -> None:
    header = read_header(write_sparse(entries_of("llama_hf"), config_metadata(head_dim=head_dim)))
    with pytest.raises(FileUnreadable, match="gives head_dim as"):
        llama_config_from_header(header)


@pytest.mark.parametrize("shape", [[], [3072], [0, 16, 1, 2, 2], [2**40, 0, 1, 2, 2]])
def test_impossible_shapes_are_told(shape: list[int], write_sparse: WriteFile, entries_of: EntriesOf) -> None:
    entries = entries_of("tencent_transformer_t2v") | {"img_in.proj.weight": (shape, "bfloat16")}
    with pytest.raises(UnsupportedFile, match=r"img_in\.proj\.weight"):
        transformer_config_from_header(read_header(write_sparse(entries)))


def test_thousands_of_blocks_are_refused_unbuilt(write_sparse: WriteFile, entries_of: EntriesOf) -> None:
    entries = entries_of("tencent_transformer_t2v")
    entries |= {f"double_blocks.{index}.extra": ([1], "bfloat16") for index in range(20, 10_000)}
    with pytest.raises(UnsupportedFile, match="has 10000 blocks in a row"):
        transformer_config_from_header(read_header(write_sparse(entries)))


def test_a_block_number_of_thousands_of_digits_is_no_block(write_sparse: WriteFile, entries_of: EntriesOf) -> None:
    entries = entries_of("tencent_transformer_t2v") | {f"double_blocks.{'9' * 200}.extra": ([1], "bfloat16")}
    assert transformer_config_from_header(read_header(write_sparse(entries))).num_double_blocks == 20


def test_a_missing_tensor_that_gives_a_size_is_named(write_sparse: WriteFile, entries_of: EntriesOf) -> None:
    entries = entries_of("vae_tencent_diffusers")
    del entries["post_quant_conv.weight"]
    with pytest.raises(UnsupportedFile, match=r"post_quant_conv\.weight' is missing"):
        vae_config_from_header(read_header(write_sparse(entries)))
