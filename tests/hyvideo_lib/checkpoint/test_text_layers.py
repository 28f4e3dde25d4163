from __future__ import annotations

import pytest
import torch
from torch import nn

from hyvideo_lib.checkpoint.text_layers import Embeddings, StoredEmbedding, halve_heads, use_cast_linears
from hyvideo_lib.quant import quantize_fp8
from hyvideo_lib.transformer.ops import Linear
from tests.hyvideo_lib.checkpoint.text_files import interleave, q8_0

IDS = torch.tensor([[3, 0], [6, 3]])


def embedding(tensors: dict[str, torch.Tensor], scheme: str, dtypes: dict[str, str] | None = None) -> StoredEmbedding:
    """The layer of a model whose only part is an embedding, filled."""
    with torch.device("meta"):
        model = nn.ModuleDict({"tokens": nn.Embedding(7, 32)})
    found = Embeddings(model, tensors, scheme, dtypes or {}, {})
    assert found.taken == tensors.keys()
    model.load_state_dict(found.use(model, torch.float32), strict=True, assign=True)
    layer = model["tokens"]
    assert isinstance(layer, StoredEmbedding)
    return layer


@pytest.fixture
def table() -> torch.Tensor:
    return torch.randn(7, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_rows_are_cast_after_they_were_looked_up(table: torch.Tensor, dtype: torch.dtype) -> None:
    layer = embedding({"tokens.weight": table.to(dtype)}, "none")
    assert torch.equal(layer(IDS), table.to(dtype).float()[IDS])


def test_rows_of_blocks_are_dequantised(table: torch.Tensor) -> None:
    packed, dense = q8_0(table)
    layer = embedding({"tokens.weight": packed}, "gguf", {"tokens.weight": "q8_0"})
    assert layer.weight.dtype == torch.uint8
    assert torch.equal(layer(IDS), dense[IDS])


@pytest.mark.parametrize("rows", [False, True], ids=["one scale", "a scale for each row"])
def test_rows_are_multiplied_with_their_scale(table: torch.Tensor, rows: bool) -> None:
    weight, scale = quantize_fp8(table)
    scale = torch.linspace(0.5, 2, 7)[:, None] * scale if rows else scale
    layer = embedding({"tokens.weight": weight, "tokens.scale_weight": scale}, "comfyui_fp8_scaled")
    assert torch.equal(layer(IDS), (weight.float() * scale)[IDS])


@pytest.mark.parametrize("rows", [False, True], ids=["one scale", "a scale for each row"])
def test_rotated_rows_are_turned_back_after_they_were_looked_up(rows: bool) -> None:
    numbers = torch.randint(-127, 128, (7, 32), dtype=torch.int8)
    scale = torch.rand(7, 1) if rows else torch.rand(())
    text = b'{"format": "int8_tensorwise", "params": {"convrot": true, "convrot_groupsize": 4}}'
    tensors = {"tokens.weight": numbers, "tokens.weight_scale": scale}
    layer = embedding(tensors | {"tokens.comfy_quant": torch.tensor(list(text), dtype=torch.uint8)}, "comfyui_quant")
    four = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2
    expected = (numbers * scale) @ torch.block_diag(*[four] * 8)
    torch.testing.assert_close(layer(IDS), expected[IDS], rtol=0, atol=1e-4)


def test_a_change_of_dtype_leaves_the_storage_alone(table: torch.Tensor) -> None:
    weight, scale = quantize_fp8(table)
    layer = embedding({"tokens.weight": weight, "tokens.scale_weight": scale}, "comfyui_fp8_scaled")
    layer.to(torch.bfloat16)
    assert (layer.weight.dtype, layer.weight_scale.dtype) == (weight.dtype, torch.float32)
    assert layer(IDS).dtype == torch.bfloat16


def test_it_moves_with_its_model(table: torch.Tensor) -> None:
    layer = embedding({"tokens.weight": table}, "none").to("meta")
    assert layer.weight.is_meta
    assert layer(IDS.to("meta")).shape == (2, 2, 32)


def test_linears_are_replaced_wherever_they_are() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 3), nn.ModuleDict({"a": nn.Linear(3, 4, bias=False)}), nn.LayerNorm(4))
    names = model.state_dict().keys()
    use_cast_linears(model)
    assert isinstance(model[0], Linear)
    assert isinstance(model[1]["a"], Linear)
    assert model.state_dict().keys() == names
    assert all(parameter.is_meta for parameter in model[0].parameters())


@pytest.mark.parametrize(("part", "heads"), [("q_proj", 4), ("k_proj", 2)])
def test_interleaved_heads_come_out_in_halves(part: str, heads: int) -> None:
    weight = torch.randn(heads * 8, 5, generator=torch.Generator().manual_seed(2))
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(3))
    model = nn.ModuleDict({part: nn.Linear(5, heads * 8, bias=False), "v_proj": nn.Linear(5, 8, bias=False)})
    model[part].weight.data = interleave(f".{part}.weight", weight)
    plain_v = model["v_proj"](x)
    halve_heads(model, head_dim=8)
    assert torch.allclose(model[part](x), x @ weight.T, atol=1e-6)
    assert torch.equal(model["v_proj"](x), plain_v)
