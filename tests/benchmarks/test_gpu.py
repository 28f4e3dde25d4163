"""The tables that a graphics card fills run on a CPU in tiny sizes, and tell what they are told."""

import json

import pytest
import torch

from benchmarks.gpu.__main__ import TABLES, main
from benchmarks.gpu.models import FP8, TINY_TRANSFORMER, random_transformer
from hyvideo_lib.quant import is_kept_in_plain_fp8

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("name", TABLES)
def test_every_table_runs_in_small(name, capsys):
    assert main([name, "--quick", "--device", "cpu", "--repeats", "1"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    measured = [row for row in rows if row["kind"] == "measured"]
    assert measured
    assert all(row["seconds"] > 0 and row["device"] == "cpu" and row["quick"] for row in measured)
    assert {row["benchmark"] for row in rows} == {f"gpu {name}"}
    for row in rows:
        assert row.get("output_difference", 0) < 0.1


def test_a_case_can_be_chosen(capsys):
    assert main(["swap", "--quick", "--device", "cpu", "--repeats", "1", "--only", "bf16"]) == 0
    cases = {json.loads(line)["case"] for line in capsys.readouterr().out.splitlines()}
    assert len(cases) == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nonsense"], "unknown table 'nonsense'"),
        (["step", "--device", "cpu"], "--quick"),
        (["step", "--repeats", "0", "--device", "cpu", "--quick"], "--repeats is 0"),
    ],
)
def test_words_that_make_no_sense_are_refused(words, complaint, capsys):
    assert main(words) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_card_it_says_so(capsys):
    assert main(["step"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_weights_rest_as_in_released_fp8_files():
    model = random_transformer(TINY_TRANSFORMER, FP8, "cpu")
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == (torch.bfloat16 if is_kept_in_plain_fp8(name) else FP8)
        assert tensor.float().isfinite().all()
