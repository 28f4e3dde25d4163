from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyvideo_lib.quant import ggml
from hyvideo_lib.quant.ggml import GGML_FORMATS, dequantize_ggml

EXTREMES = np.array([0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00], np.uint16)
"""float16 bits: zeros, subnormals, the smallest normal number, the largest, infinities, NaN."""


def oracle(raw: np.ndarray, name: str) -> torch.Tensor:
    with np.errstate(all="ignore"):
        return torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType[name.upper()]))


def assert_same_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit-equal; of a NaN, only that it is one."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == torch.float32
    both_nan = found.isnan() & expected.isnan()
    assert torch.equal(found.view(torch.int32)[~both_nan], expected.view(torch.int32)[~both_nan])


@pytest.mark.parametrize("name", GGML_FORMATS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), blocks=st.integers(1, 3))
def test_any_bytes_decode_as_the_gguf_package_decodes_them(name: str, seed: int, rows: int, blocks: int) -> None:
    width = blocks * GGML_FORMATS[name].num_bytes
    raw = np.random.default_rng(seed).integers(0, 256, (rows, width), dtype=np.uint8)
    assert_same_bits(dequantize_ggml(torch.from_numpy(raw), name), oracle(raw, name))


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_extreme_scales_decode_as_the_gguf_package_decodes_them(name: str) -> None:
    num_bytes = GGML_FORMATS[name].num_bytes
    raw = np.random.default_rng(0).integers(0, 256, (len(EXTREMES), num_bytes), dtype=np.uint8)
    for offset in (*range(0, 6, 2), num_bytes - 4, num_bytes - 2):  # wherever a format keeps its float16 numbers
        changed = raw.copy()
        changed[:, offset : offset + 2] = EXTREMES.view(np.uint8).reshape(-1, 2)
        assert_same_bits(dequantize_ggml(torch.from_numpy(changed), name), oracle(changed, name))


@pytest.mark.parametrize(("name", "steps"), [("q8_0", 127), ("q5_0", 15), ("q5_1", 15), ("q4_0", 7), ("q4_1", 7)])
def test_quantised_weights_come_back_within_half_a_step(name: str, steps: int) -> None:
    weight = np.random.default_rng(1).standard_normal((4, 64), dtype=np.float32)
    raw = gguf.quantize(weight, gguf.GGMLQuantizationType[name.upper()])
    back = dequantize_ggml(torch.from_numpy(raw), name).numpy()
    largest = np.abs(weight.reshape(4, 2, 32)).max(axis=-1, keepdims=True)
    assert (np.abs(back - weight).reshape(4, 2, 32) / largest).max() <= 1.05 / steps


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_rows_decode_by_themselves(name: str) -> None:
    raw = torch.randint(0, 256, (6, 2 * GGML_FORMATS[name].num_bytes), dtype=torch.uint8)
    whole = dequantize_ggml(raw, name).nan_to_num()
    for rows in (slice(0, 2), slice(2, 6), slice(1, 6, 2)):
        assert torch.equal(dequantize_ggml(raw[rows], name).nan_to_num(), whole[rows])


@pytest.mark.parametrize("name", GGML_FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_the_float32_numbers_rounded_once(name: str, dtype: torch.dtype) -> None:
    raw = torch.randint(0, 256, (4, 2, GGML_FORMATS[name].num_bytes), dtype=torch.uint8)
    found = dequantize_ggml(raw, name, dtype)
    assert found.shape == (4, 2, GGML_FORMATS[name].numbers)
    assert torch.equal(found.nan_to_num(), dequantize_ggml(raw, name).to(dtype).nan_to_num())


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_decoding_in_pieces_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = torch.randint(0, 256, (5, 3 * GGML_FORMATS[name].num_bytes), dtype=torch.uint8)
    whole = dequantize_ggml(raw, name)
    monkeypatch.setattr(ggml, "PIECE", 512)
    assert_same_bits(dequantize_ggml(raw, name), whole)


def test_no_rows_are_no_numbers() -> None:
    assert dequantize_ggml(torch.zeros(0, 34, dtype=torch.uint8), "q8_0").shape == (0, 32)


def test_rows_that_are_not_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks of 34"):
        dequantize_ggml(torch.zeros(2, 35, dtype=torch.uint8), "q8_0")
    with pytest.raises(ValueError, match="uint8"):
        dequantize_ggml(torch.zeros(2, 34), "q8_0")
