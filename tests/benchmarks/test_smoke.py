"""The benchmarks run at their smallest sizes and say what a row must say. Nothing here looks at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import pieces, vae_seams
from benchmarks.measure import compare, working_memory
from benchmarks.random_file import QUICK, write_random
from benchmarks.rows import OURS, Measurement, Options, ratio_row, table
from hyvideo_lib.checkpoint import inspect_file, load_transformer
from hyvideo_lib.quant import PRODUCTS
from hyvideo_lib.vae import Tiles

COMMON = {"benchmark", "case", "side", "kind", "date", "device", "threads", "quick", "hardware"}
BY_KIND = {
    "measured": {
        "seconds",
        "seconds_min",
        "seconds_max",
        "seconds_iqr",
        "repeats",
        "working_memory_bytes",
    },
    "computed": {"peer", "seconds", "seconds_min", "seconds_max", "repeats", "working_memory"},
    "counted": {"peer", "counted_bytes", "peer_counted_bytes", "working_memory"},
    "predicted": {"predicted_bytes", "working_memory_bytes", "working_memory"},
    "skipped": {"skipped"},
}
CPU = torch.device("cpu")


def run(*words: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The rows of one run."""
    assert benchmarks.main(["--quick", "--repeats", "1", *words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", ["transformer", "vae"])
def test_every_case_has_both_sides_and_a_ratio_of_equal_results(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(name, "--dtype", "float32", capsys=capsys)
    by_case: dict[str, list[str]] = {}
    for row in rows:
        assert set(row) >= COMMON | BY_KIND[row["kind"]]
        by_case.setdefault(row["case"], []).append(row["side"])
    assert len(by_case) >= 2
    for case, sides in by_case.items():
        assert sides == [OURS, "whole" if "to bytes" in case else "diffusers", "ratio"]
    assert all(row["output_difference"] < 1e-4 for row in rows if row["side"] == "ratio")
    assert all(row["working_memory_bytes"] > 0 for row in rows if row["kind"] == "measured")


def test_the_lean_blocks_are_compared_with_the_plain_ones_and_with_what_was_predicted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = run("lean", "--dtype", "float32", capsys=capsys)
    ratios = [row for row in rows if row["side"] == "ratio"]
    assert len(ratios) == 10
    assert all(row["peer"] == "plain" and row["output_difference"] < 1e-5 for row in ratios)
    assert all(0 < row["predicted_working_memory"] < 1 for row in ratios)


def test_what_could_not_be_compiled_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "why_uncompiled", lambda *_: "no compiler")
    sides = {OURS: lambda: torch.ones(1), pieces.AS_IS: lambda: torch.ones(1)}
    options = Options(1, True, "", torch.device("cpu"), (torch.float32,), Path())
    rows = list(pieces._rows("b", "c", sides, options, pieces.PIECES))
    assert [row["kind"] for row in rows] == ["skipped"]


@pytest.mark.parametrize("kind", ["double", "single"])
def test_two_groups_of_heads_take_at_most_a_quarter_of_the_plain_blocks_memory(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the released model, at the sizes of videos; as many as memory asks for take less and less."""
    rows = run("lean", "--only", f"released model's {kind}", capsys=capsys)
    by_video: dict[str, list[float]] = {}
    for row in rows:
        assert set(row) >= COMMON | BY_KIND["counted"]
        by_video.setdefault(row["case"].split(", ")[1], []).append(row["working_memory"])
    assert len(by_video) == 3
    for ratios in by_video.values():
        assert ratios == sorted(ratios, reverse=True)
        assert max(ratios[1:]) <= 0.25


def test_products_in_8_bits_are_compared_with_dense_ones(capsys: pytest.CaptureFixture[str]) -> None:
    rows = run("products", "--dtype", "bfloat16", capsys=capsys)
    assert {row["case"].rpartition(", ")[2] for row in rows} == set(PRODUCTS)
    ratios = [row for row in rows if row["side"] == "ratio"]
    assert len(ratios) + sum(row["kind"] == "skipped" for row in rows) == 2 * len(PRODUCTS)
    assert all(row["peer"] == "dense" and 0 < row["output_difference"] < 0.1 for row in ratios)


def test_merged_loras_are_compared_with_loras_beside_and_with_none(capsys: pytest.CaptureFixture[str]) -> None:
    ratios = [row for row in run("adapters", "--dtype", "float32", capsys=capsys) if row["side"] == "ratio"]
    assert len(ratios) == 2 * 2 * 2
    for row in ratios:
        changed = row["output_difference"]
        assert changed < 1e-5 if row["peer"] == "beside" else 1e-3 < changed < 0.2


def test_the_planners_predictions_are_close_to_what_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    rows = run("plan", "--dtype", "float32", capsys=capsys)
    assert {row["case"].partition(",")[0] for row in rows} == {"transformer", "VAE", "text encoder"}
    assert all(set(row) >= COMMON | BY_KIND["predicted"] for row in rows)
    ratios = {row["case"]: row["working_memory"] for row in rows}
    assert all(0.7 < ratio < 1.4 for ratio in ratios.values()), ratios
    assert all(0.95 < ratio < 1.05 for case, ratio in ratios.items() if case.startswith("VAE")), ratios


def test_loading_says_cold_and_warm_and_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run("load", "--folder", str(tmp_path), capsys=capsys)
    assert all(set(row) >= COMMON | BY_KIND[row["kind"]] for row in rows)
    cases = {row["case"] for row in rows}
    for part in ("cold page cache", "warm page cache", "first forward", "cast to fp8", "converted to fp8"):
        assert any(part in case for case in cases)
    (forward,) = (row for row in rows if "first forward, 1 x" in row["case"])
    assert forward["is_finite"] is True
    assert list(tmp_path.iterdir()) == []


def test_the_random_file_is_a_transformer_that_loads_and_stays_finite(tmp_path: Path) -> None:
    path = tmp_path / "random.safetensors"
    assert write_random(path, QUICK) == path.stat().st_size
    report = inspect_file(path)
    assert (report.kind, report.quantization, report.supported) == ("transformer", "fp8_cast", True)
    model = load_transformer(path)
    assert model.config == QUICK
    weights = model.double_blocks[0].img_attn_qkv.weight.float()
    assert 0.005 < weights.std() < 0.02
    assert weights.abs().max() < 2**-5


def test_caches_say_what_was_saved_and_what_it_cost(capsys: pytest.CaptureFixture[str]) -> None:
    rows = run("caches", "--only", "cache", capsys=capsys)
    assert all(set(row) >= COMMON | BY_KIND[row["kind"]] for row in rows)
    outcome = {"clips", "skipped_steps", "right", "color", "shape", "motion", "background", "psnr", "psnr_worst"}
    assert all(set(row) >= outcome for row in rows)
    assert [row["case"] for row in rows if row["side"] == OURS] == [
        "no cache",
        "teacache 0.3",
        "easycache 0.1",
        "magcache 0.12",
    ]
    ratios = [row for row in rows if row["side"] == "ratio"]
    assert all(row["peer"] == "no cache" and 0 < row["calls"] <= 1 and row["cpu"] > 0 for row in ratios)
    assert rows[0]["psnr"] is None  # nothing differs from itself
    assert any(row["skipped_steps"] > 0 for row in ratios)


def test_only_chooses_cases_and_rows_are_appended_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text('{"before": 1}\n')
    rows = run("vae", "--only", "encode 5", "--out", str(out), capsys=capsys)
    assert {row["case"] for row in rows} == {"encode 5 x 32 x 32, untiled, float32"}
    assert [json.loads(line) for line in out.read_text().splitlines()] == [{"before": 1}, *rows]


@pytest.mark.parametrize(
    "words", [["nonsense"], ["--repeats", "0"], ["--folder", "no/such/folder"], ["--dtype", "int8"]]
)
def test_wrong_words_are_refused_before_anything_runs(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words[-1] in said.err


def test_working_memory_is_the_peak_above_the_level_before() -> None:
    kept = torch.ones(1000)

    def call() -> torch.Tensor:
        first = torch.ones(2**20)
        second = first + 1
        del first
        return second + kept[0]

    peak, output = working_memory(call, CPU)
    assert output[0] == 3
    assert 2 * 2**22 <= peak < 2 * 2**22 + 2**16


def test_the_sides_take_turns() -> None:
    calls = []
    sides = {name: lambda name=name: (calls.append(name), torch.ones(1))[1] for name in "ab"}
    results, difference = compare(sides, 3, CPU)
    assert "".join(calls) == "abababab"
    assert [len(result.seconds) for result in results.values()] == [3, 3]
    assert difference == 0


def test_a_ratio_pairs_the_rounds() -> None:
    row = ratio_row("vae", "case", "peer", Measurement([1.0, 20.0, 3.0], 50), Measurement([2.0, 20.0, 4.0], 100))
    assert (row["seconds"], row["seconds_min"], row["seconds_max"]) == (0.75, 0.5, 1.0)
    assert row["working_memory"] == 0.5


def test_the_table_shows_a_skipped_side_with_its_reason() -> None:
    rows = [{"benchmark": "load", "case": "c", "side": "peer", "kind": "skipped", "skipped": "not installed"}]
    assert "not installed" in table(rows)


def test_the_seams_are_measured_with_every_kind_of_statistics() -> None:
    rows = list(vae_seams.rows_of(vae_seams.wide_case(True)))
    assert [row["statistics"] for row in rows] == ["own", "small", "tile", "mean", "whole"]
    assert all(-50 < row[where] < 100 for row in rows for where in ("psnr_joins", "psnr_elsewhere"))


def test_a_seam_is_a_steep_error() -> None:
    wanted, mask = torch.zeros(1, 3, 1, 4, 6), torch.zeros(4, 6, dtype=torch.bool)
    mask[:, 2:4] = True
    found = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]).expand_as(wanted)
    assert vae_seams.slope(found, wanted, mask) == 0.25  # one of two steps, in halves of the range
    assert vae_seams.slope(found, wanted, ~mask) == 0


def test_joins_are_where_tiles_overlap() -> None:
    mask = vae_seams.joins(Tiles(32, 64), 56, 24)
    assert mask[:, 0].tolist() == [24 <= y < 32 or 48 <= y < 56 for y in range(56)]
    assert mask[0].tolist() == [False] * 24
