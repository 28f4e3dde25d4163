"""The tables that a graphics card fills run on a CPU in tiny sizes, and tell what they are told."""

import json
import re
import sys
import weakref
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from benchmarks.cases import Case
from benchmarks.gpu import caps, card, decode, step, swapped
from benchmarks.gpu.__main__ import TABLES, main
from benchmarks.gpu.attention import least_cosine
from benchmarks.gpu.clips import TINY_CLIPS, Clip
from benchmarks.gpu.models import FP8, TINY_TRANSFORMER, TINY_VAE, random_transformer, random_vae
from benchmarks.gpu.table import NO_TIME, Table
from benchmarks.rows import OURS, Measurement, Options, measured_row
from benchmarks.transformer import QUICK as LEAST
from hyvideo_lib.quant import is_kept_in_plain_fp8
from hyvideo_lib.vae import Tiles
from hyvideo_lib.video import frames_from_pixels

CPU = torch.device("cpu")
QUICK = Options(1, True, "", CPU, (torch.bfloat16,), Path(), minutes=1.0)

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
        if row["kind"] == "skipped" and not row["side"].startswith("sdpa "):  # of which a CPU has only some
            assert not re.match(r"out of memory|\w*(Error|Invalid\w*): ", row["skipped"])


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
        (["step", "--minutes", "0", "--device", "cpu", "--quick"], "--minutes is 0"),
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


def test_the_cap_is_told_the_number_of_the_device(monkeypatch):
    told = []

    def set_fraction(fraction, device):
        told.append((fraction, torch.cuda._utils._get_device_index(device)))  # as PyTorch's own does

    class Properties:
        total_memory = 16 * 2**30

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_fraction)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    with card.capped(card.device_of("cuda"), 9.0):
        pass
    assert told == [(0.5, 1), (1.0, 1)]


@pytest.mark.parametrize(("table", "peer"), [("step", "diffusers"), ("decode", decode.PEER)])
def test_ours_is_measured_where_diffusers_is_absent(table, peer, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    if table == "step":
        monkeypatch.setattr(step, "STORAGES", {"fp8": FP8})
    assert main([table, "--quick", "--device", "cpu", "--repeats", "1"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["kind"] == "measured"
    reasons = [row["skipped"] for row in rows if row["side"] == peer]
    assert reasons
    assert all("diffusers" in reason for reason in reasons)


class Hours:
    """A clock that goes on by what cases take."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds

    def case(self, name, seconds, work=1.0, side=OURS):
        def rows():
            self.seconds += seconds
            yield measured_row("b", name, side, Measurement([seconds]))

        return Case(name, rows, side, work)


def test_what_would_take_longer_than_is_left_is_left_out():
    clock = Hours()
    table = Table("b", QUICK, clock)  # of 60 seconds
    cases = [
        clock.case("first", 20, work=2.0),
        clock.case("too long", 50, work=5.0),
        clock.case("peer", 20, work=2.0, side="peer"),
        clock.case("just right", 20, work=2.0),
        clock.case("too late", 1, work=0.1),
    ]
    rows = list(table.rows_of(cases))
    assert [row["case"] for row in rows] == [case.name for case in cases]
    assert [row.get("skipped") for row in rows] == [None, NO_TIME, None, None, NO_TIME]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 1 GiB."), "out of memory: CUDA out of memory. Tried 1 GiB."),
        (RuntimeError("CUDA error: out of memory"), "out of memory: CUDA error: out of memory"),
        (ModuleNotFoundError("No module named 'peer'"), "No module named 'peer'"),
        (KeyError("a layer"), "KeyError: 'a layer'"),
        (RuntimeError("no kernel\nand more"), "RuntimeError: no kernel"),
    ],
)
def test_a_case_that_fails_says_why_and_the_next_one_runs(error, reason):
    def fails():
        raise error

    clock = Hours()
    rows = list(Table("b", QUICK, clock).rows_of([Case("one", fails), clock.case("two", 1)]))
    assert [row.get("skipped") for row in rows] == [reason, None]


@pytest.mark.parametrize(("long", "calls"), [(10.0, 3), (-1.0, 1)])
def test_a_long_call_is_made_once(long, calls, monkeypatch):
    monkeypatch.setattr(card, "LONG_CALL", long)
    made, seen = [], []
    result = card.measure(lambda: made.append(len(made)) or len(made), CPU, 2, seen.append)
    assert len(made) == calls
    assert seen == [1]
    assert len(result.seconds) == max(1, calls - 1)


def test_equal_tokens_have_a_cosine_of_one():
    heads = torch.randn(1, 3, 500, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert least_cosine(heads, heads.clone()) > 0.99999
    other = heads.clone()
    other[0, 1, 7] *= -1
    assert least_cosine(heads, other) < -0.99999


@pytest.fixture
def one_block_each(monkeypatch):
    """The quick tables with the least transformer there is."""
    monkeypatch.setattr(step, "TINY_TRANSFORMER", LEAST)


def test_ours_is_let_go_before_a_peer_is_measured(one_block_each, monkeypatch):
    models, alive = [], {}
    measure, make, rows_of = card.measure, step.random_transformer, step.Found._rows

    def making(*args):
        model = make(*args)
        models.append(weakref.ref(model))
        return model

    def measuring(*args):
        alive[side] = sum(model() is not None for model in models)
        return measure(*args)

    def noting(self, clip, case, name, made):
        nonlocal side
        side = name
        return rows_of(self, clip, case, name, made)

    side = ""
    monkeypatch.setattr(step, "random_transformer", making)
    monkeypatch.setattr(card, "measure", measuring)
    monkeypatch.setattr(step.Found, "_rows", noting)
    monkeypatch.setattr(step, "STORAGES", {"fp8": FP8})
    rows = list(step.run(QUICK))
    assert alive == {OURS: 1, "diffusers": 0}
    assert {row["attention"] for row in rows if row["kind"] == "measured"} == {"sdpa flash"}


class Masks(TorchFunctionMode):
    """Notes the mask of every attention in its context."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.seen.append((kwargs or {}).get("attn_mask"))
        return func(*args, **(kwargs or {}))


def test_diffusers_attends_without_a_mask():
    model = random_transformer(LEAST, torch.bfloat16, "cpu")
    forward, inputs = step.diffusers_side(model, "bf16"), TINY_CLIPS[0].inputs(LEAST, torch.bfloat16, CPU)
    with Masks() as masks, torch.no_grad():
        forward(inputs)
    assert len(masks.seen) == 4  # two refiner blocks, one of each kind
    assert masks.seen == [None] * 4


def failing_once(source, call):
    """Memory runs out in that call of the transformer."""
    calls = []

    def fail(module, args, options):
        calls.append(1)
        if len(calls) == call:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    source.module.register_forward_pre_hook(fail, with_kwargs=True)
    return source


def test_a_cap_takes_the_rungs_that_a_run_would_take(monkeypatch):
    monkeypatch.setattr(caps, "CAPS", (8.0, 12.0, 16.0))
    found = caps.Capped("b", QUICK)
    failing_once(found._source(), 2)  # the first is the warm-up
    with torch.no_grad():
        rows = list(Table("b", QUICK).rows_of(found.cases()))
    assert rows[0]["rungs"] == ["heads in 2 groups"]
    assert rows[0]["head_groups"] == 2
    assert rows[1]["rungs"] == []  # the same plan, but it did not hold before
    assert rows[2]["skipped"] == "as under 12 GiB: the same plan"


def test_sides_that_swap_take_turns_and_one_that_fails_drops_out():
    model = random_transformer(LEAST, FP8, "cpu")
    turns = []

    def noted(name, place):
        @contextmanager
        def noting(inputs):
            turns.append(name)
            if name == "in turn, pageable":
                raise RuntimeError("no memory to pin")
            with place(inputs) as placed:
                yield placed

        return noting

    sides = {name: noted(name, place) for name, place in swapped.places(model, CPU).items()}
    options = Options(2, True, "", CPU, (torch.bfloat16,), Path())
    with torch.no_grad():
        rows = list(swapped.in_turns("b", "c", model, sides, TINY_CLIPS[0], options))
    left = ["resident", OURS, "exchange, pageable"]
    assert turns == [*sides, *left]
    assert [row["side"] for row in rows] == ["in turn, pageable", *left, "ratio", "ratio"]
    assert [row["swapped"] for row in rows[1:4]] == [0, 2, 2]


def test_what_is_streamed_is_the_whole_video():
    clip, vae = Clip(48, 32, 21), random_vae(TINY_VAE, torch.float32, CPU)
    latents = torch.randn(1, vae.config.latent_channels, *clip.latents)
    tiles = Tiles(size=32, frames=16)
    whole = frames_from_pixels(vae.decode(latents, tiles)[0])
    assert torch.equal(decode.streamed(vae, latents, tiles, clip), whole)
