"""Settings of precision, tried on the device before anything is loaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.pipeline import Precision


def report(quantization: str) -> SimpleNamespace:
    return SimpleNamespace(config={"hidden_size": 48, "num_heads": 2}, quantization=quantization)


@pytest.mark.parametrize("quantization", ["none", "gguf"])
@pytest.mark.parametrize("storage", [None, "bfloat16"])
def test_fp8_is_refused_for_weights_that_would_not_rest_in_it(storage, quantization):
    with pytest.raises(InvalidSetting, match=r"weights that rest in fp8.*fp8_rows or int8"):
        Precision("bfloat16", storage, matmul="fp8").check_device("cpu", report(quantization))


@pytest.mark.parametrize("name", ["fp8_rows", "int8"])
@pytest.mark.parametrize("quantization", ["none", "gguf", "fp8_cast"])
def test_the_others_take_every_storage(name, quantization, monkeypatch):
    tried = []
    monkeypatch.setattr("hyvideo_lib.quant.probe_product", lambda *given: tried.append(given))
    Precision("bfloat16", matmul=name).check_device("cpu", report(quantization))
    assert tried == [(name, torch.device("cpu"), torch.bfloat16)]


@pytest.mark.parametrize("storage", [None, "float8_e4m3fn", "float8_e5m2"])
def test_fp8_is_tried_for_weights_that_do(storage, monkeypatch):
    tried = []
    monkeypatch.setattr("hyvideo_lib.quant.probe_product", lambda *given: tried.append(given[0]))
    Precision("bfloat16", storage, matmul="fp8").check_device("cpu", report("fp8_cast"))
    assert tried == ["fp8"]


def test_dense_products_are_not_tried(monkeypatch):
    monkeypatch.setattr("hyvideo_lib.quant.probe_product", lambda *_: pytest.fail("tried"))
    Precision().check_device("cpu", report("none"))


def test_a_wrong_name_is_refused_when_it_is_made():
    with pytest.raises(InvalidSetting, match="matmul is 'int4', but must be one of: dense, fp8, fp8_rows, int8"):
        Precision(matmul="int4")
