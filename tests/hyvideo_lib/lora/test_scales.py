"""Alpha from every place, by what is added to a layer: multiplied by hand in float32."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import TRANSFORMER
from torch import Tensor

from hyvideo_lib.checkpoint.lora_layers import layer_sizes
from hyvideo_lib.errors import UnsupportedFile
from hyvideo_lib.lora import Lora, read_lora
from hyvideo_lib.lora.alpha_sources import PEFT_METADATA, AlphaSources
from hyvideo_lib.lora.scales import NOWHERE, TENSORS, Scales, scale_from_alpha
from hyvideo_lib.lora.update import add_updates

RANK = 4
FIRST, SECOND = "double_blocks.0.img_attn_proj", "single_blocks.0.linear2"


def matrices(ranks: Mapping[str, int] = {FIRST: RANK, SECOND: RANK}) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer, rank in ranks.items():
        size = layer_sizes(TRANSFORMER)[layer]
        tensors[f"transformer.{layer}.lora_A.weight"] = torch.randn(rank, size.in_features, generator=generator)
        tensors[f"transformer.{layer}.lora_B.weight"] = torch.randn(size.out_features, rank, generator=generator)
    return tensors


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """make(metadata, files beside it, ...) -> the path of a LoRA of rank 4 for two layers."""

    def write(
        metadata: Mapping[str, str] | None = None,
        beside: Mapping[str, Any] | None = None,
        name: str = "adapter_model.safetensors",
        tensors: Mapping[str, Tensor] | None = None,
    ) -> Path:
        for file, content in (beside or {}).items():
            (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content))
        save_file({**(tensors or matrices())}, tmp_path / name, dict(metadata or {}))
        return tmp_path / name

    return write


def measured(lora: Lora, tensors: Mapping[str, Tensor], layer: str) -> float:
    """The scale that the LoRA really adds with: what becomes of a weight, held against B A in float32."""
    product = tensors[f"transformer.{layer}.lora_B.weight"] @ tensors[f"transformer.{layer}.lora_A.weight"]
    weight = torch.ones_like(product)
    added = add_updates(weight, [(update, 1.0) for update in lora.updates[layer]]) - weight
    scale = float((added * product).sum() / product.square().sum())
    assert torch.allclose(added, scale * product, atol=1e-4)
    return scale


def scales_of(path: Path) -> tuple[float, float]:
    lora = read_lora(path, TRANSFORMER)
    return tuple(round(measured(lora, matrices(), layer), 4) for layer in (FIRST, SECOND))


SLOW = {f"(.{{{1800 + index}}})*": 4 for index in range(120)}
"""Patterns of more states together than are made."""
ALPHA_16 = {"lora_alpha": 16, "r": RANK}


@pytest.mark.parametrize(
    "metadata",
    [
        {"alpha": "16", "rank": "4"},
        {"lora_alpha": "16", "r": "4"},
        {"network_alpha": "16.0", "network_dim": "4"},
        {"lora_alpha": "16", "lora_rank": "4"},
        {"transformer.alpha": "16", "transformer.rank": "4"},
        {"transformer.lora_alpha": "16", "text_encoder.lora_alpha": "1", "text_encoder.r": "4"},
        {"alpha": "16"},
        {PEFT_METADATA: json.dumps(ALPHA_16)},
        {PEFT_METADATA: json.dumps({"transformer": ALPHA_16, "text_encoder": {"lora_alpha": 1, "r": 4}})},
        {PEFT_METADATA: json.dumps({f"transformer.{key}": value for key, value in ALPHA_16.items()})},
        {PEFT_METADATA: json.dumps({"lora_alpha": "16", "r": "4"})},
        {PEFT_METADATA: json.dumps({"lora_alpha": 8, "r": 4, "use_rslora": True})},
    ],
)
def test_the_header_tells_alpha(make, metadata: dict[str, str]) -> None:
    path = make(metadata)
    assert scales_of(path) == (4, 4)
    [place] = read_lora(path, TRANSFORMER).coverage.alpha_sources
    assert place == f"{PEFT_METADATA} in the header" or place.startswith("header entr")


def test_the_report_names_the_entries(make) -> None:
    path = make({"transformer.alpha": "2", "transformer.rank": "4"})
    assert (
        "alpha 2 (header entries transformer.alpha and transformer.rank)"
        in read_lora(path, TRANSFORMER).coverage.describe()
    )


@pytest.mark.parametrize("metadata", [{}, {"ss_network_alpha": "16", "ss_network_dim": "4"}, {"rank": "4"}])
def test_without_alpha_it_is_the_rank(make, metadata: dict[str, str]) -> None:
    path = make(metadata)
    assert scales_of(path) == (1, 1)
    assert read_lora(path, TRANSFORMER).coverage.alpha_sources == (NOWHERE,)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("adapter_config.json", {"peft_type": "LORA", **ALPHA_16, "rank_pattern": {}, "alpha_pattern": {}}),
        ("lora_config.json", {"lora_params": {"lora_rank": 4, "lora_alpha": 16}, "step": 100}),
        ("lora_config.json", {"rank": 4, "alpha": 16, "optimizer": {"alpha": 0.99}}),
    ],
)
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "pytorch_lora_weights.safetensors", "style.safetensors"])
def test_a_configuration_beside_the_file_tells_alpha(make, name: str, file: str, content: Any) -> None:
    path = make(beside={file: content, "README.md": "# A LoRA"}, name=name)
    assert scales_of(path) == (4, 4)
    assert read_lora(path, TRANSFORMER).coverage.alpha_sources == (f"{file} beside it",)


def test_among_other_weights_only_a_writer_s_own_name_has_a_configuration(make) -> None:
    beside = {"adapter_config.json": ALPHA_16, "other.safetensors": ""}
    assert scales_of(make(beside=beside)) == (4, 4)
    path = make(beside=beside, name="style.safetensors")
    assert scales_of(path) == (1, 1)
    assert "other weights" in read_lora(path, TRANSFORMER).coverage.describe()


@pytest.mark.parametrize("content", [{"lora_alpha": 16, "r": 8}, {"lora_alpha": 16}])
def test_a_configuration_whose_rank_does_not_agree_is_another_file_s(make, content: Any) -> None:
    path = make(beside={"adapter_config.json": content})
    assert scales_of(path) == (1, 1)
    assert "another file's" in read_lora(path, TRANSFORMER).coverage.describe()


def test_alpha_tensors_come_first_and_speak_of_their_own_module(make) -> None:
    tensors = {**matrices(), f"transformer.{FIRST}.alpha": torch.tensor(8.0)}
    path = make({"alpha": "8", "rank": "4"}, tensors=tensors)
    assert scales_of(path) == (2, 2)
    assert read_lora(path, TRANSFORMER).coverage.alpha_sources == (TENSORS, "header entries alpha and rank")


def test_an_alpha_tensor_rounded_to_bfloat16_agrees_with_the_header(make) -> None:
    tensors = {**matrices(), f"transformer.{FIRST}.alpha": torch.tensor(0.1, dtype=torch.bfloat16)}
    read_lora(make({"alpha": "0.1", "rank": "4"}, tensors=tensors), TRANSFORMER)


@pytest.mark.parametrize(
    ("metadata", "beside", "tensor"),
    [
        ({"alpha": "16", "rank": "4"}, {}, 8.0),
        ({"alpha": "16", "rank": "4"}, {}, 0.0),
        ({"alpha": "8", "rank": "4", PEFT_METADATA: json.dumps(ALPHA_16)}, {}, None),
        ({"alpha": "8", "transformer.alpha": "16"}, {}, None),
        ({"alpha": "8", "rank": "4"}, {"adapter_config.json": ALPHA_16}, None),
        ({PEFT_METADATA: json.dumps({**ALPHA_16, "use_rslora": True})}, {"adapter_config.json": ALPHA_16}, None),
        ({}, {"adapter_config.json": ALPHA_16, "lora_config.json": {"alpha": 4, "rank": 4}}, None),
    ],
)
def test_two_places_that_contradict_each_other_are_refused(make, metadata, beside, tensor: float | None) -> None:
    alphas = {} if tensor is None else {f"transformer.{FIRST}.alpha": torch.tensor(tensor)}
    with pytest.raises(UnsupportedFile, match=r"two scales for .*: \d.* by .*, \d.* by "):
        read_lora(make(metadata, beside, tensors={**matrices(), **alphas}), TRANSFORMER)


def test_places_that_agree_are_fine(make) -> None:
    metadata = {"alpha": "16", "rank": "4", PEFT_METADATA: json.dumps(ALPHA_16)}
    assert scales_of(make(metadata, {"adapter_config.json": ALPHA_16})) == (4, 4)


@pytest.mark.parametrize(
    ("metadata", "beside"),
    [
        ({PEFT_METADATA: "{"}, {}),
        ({PEFT_METADATA: json.dumps({"lora_alpha": "much"})}, {}),
        ({PEFT_METADATA: '{"lora_alpha": NaN}'}, {}),
        ({PEFT_METADATA: json.dumps({**ALPHA_16, "alpha_pattern": {"(": 4}})}, {}),
        ({PEFT_METADATA: json.dumps({**ALPHA_16, "alpha_pattern": SLOW})}, {}),
        ({"alpha": "-16", "rank": "4"}, {}),
        ({"alpha": "16", "rank": "8"}, {}),
        ({}, {"adapter_config.json": "{"}),
        ({}, {"adapter_config.json": " " * 4_000_001}),
        ({}, {"adapter_config.json": {**ALPHA_16, "init_lora_weights": "pissa"}}),
    ],
)
def test_an_alpha_that_cannot_be_understood_is_refused(make, metadata, beside) -> None:
    with pytest.raises(UnsupportedFile):
        read_lora(make(metadata, beside), TRANSFORMER)


def test_a_broken_place_is_only_noted_where_the_tensors_tell_alpha(make) -> None:
    alphas = {f"transformer.{layer}.alpha": torch.tensor(8.0) for layer in (FIRST, SECOND)}
    path = make({PEFT_METADATA: "{", "alpha": "16", "rank": "8"}, tensors={**matrices(), **alphas})
    assert scales_of(path) == (2, 2)
    assert f"{PEFT_METADATA} in the header is not taken" in read_lora(path, TRANSFORMER).coverage.describe()


def test_patterns_tell_alpha_and_rank_of_their_modules(make) -> None:
    config = {
        "r": 8,
        "lora_alpha": 8,
        "rank_pattern": {r".*_attn_proj": RANK, "linear2": 2},
        "alpha_pattern": {r"single_blocks\.\d+\.linear2": 1, "linear2": 100, "^linear2": 50},
    }
    tensors = matrices({FIRST: RANK, SECOND: 2, "single_blocks.0.linear1": 8})
    path = make(beside={"adapter_config.json": config}, tensors=tensors)
    lora = read_lora(path, TRANSFORMER)
    found = [round(measured(lora, tensors, layer), 4) for layer in (FIRST, SECOND, "single_blocks.0.linear1")]
    assert found == [2, 0.5, 1]


@pytest.mark.parametrize(("pattern", "scale"), [("^double_blocks.0.img_attn_proj", 4), ("^img_attn_proj", 1)])
def test_a_pattern_from_the_top_is_about_the_path_in_the_model(make, pattern: str, scale: float) -> None:
    entries = {
        f"transformer.{key}": value for key, value in {"r": 4, "lora_alpha": 4, "alpha_pattern": {pattern: 16}}.items()
    }
    assert scales_of(make({PEFT_METADATA: json.dumps(entries)})) == (scale, 1)


@pytest.mark.parametrize(("alpha", "rank", "scale"), [(None, 8, 1), (0, 8, 1), (4, 8, 0.5), (16, 8, 2), (8, 8, 1)])
def test_the_scale_is_alpha_over_rank(alpha: float | None, rank: int, scale: float) -> None:
    assert scale_from_alpha(alpha, rank) == scale


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_an_alpha_tensor_that_is_no_number_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha is"):
        scale_from_alpha(alpha, 8)
    with pytest.raises(UnsupportedFile, match="damaged"):
        Scales(AlphaSources("a.safetensors")).of("x", 8, alpha)
