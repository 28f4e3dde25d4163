from __future__ import annotations

import logging
import sys

import pytest

from hyvideo_lib.cli.progress import BAR_WIDTH, Progress, bar, duration
from hyvideo_lib.cli.report import LIBRARY, Console


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (60, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7380, "2 h 03 min"),
    ],
)
def test_durations_are_said_as_people_do(seconds, text):
    assert duration(seconds) == text


def test_the_bar_holds_step_seconds_per_step_and_time_left():
    line = bar(2, 8, "sampling", "step", 3.0)
    assert line == "sampling [######..................] 2/8, 1.50 s per step, 9.0 s left"
    assert bar(0, 8, "sampling", "step", 0.0) == f"sampling [{'.' * BAR_WIDTH}] 0/8"
    assert bar(8, 8, "sampling", "step", 4.0).count("#") == BAR_WIDTH


@pytest.fixture
def console():
    console = Console()
    yield console
    console.close()


def run(progress: Progress) -> None:
    progress.stage("loading VAE", 0)
    progress.stage("decoding", 0)
    for done in (1, 2, 3):
        progress.step(done, 3)
    progress.close()


def test_elsewhere_than_on_a_terminal_lines_are_plain_and_few(console, capsys):
    run(Progress(console))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("loading VAE: ")
    assert lines[1].startswith("decoding [########........")
    assert lines[2].startswith("decoding: ")
    assert "3 tiles" in lines[2]


def test_tensors_are_counted_as_such_and_a_time_of_nothing_is_left_out(console, capsys):
    progress = Progress(console)
    progress.stage("converting", 2)
    progress.step(1, 2)
    progress.step(2, 2)
    progress.close()
    assert capsys.readouterr().err.splitlines()[-1] == "converting: 0.0 s (2 tensors)"


def test_on_a_terminal_the_bar_overwrites_itself(console, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run(Progress(console))
    text = capsys.readouterr().err
    assert text.count("\n") == 2
    assert text.count("\rdecoding [") == 3


def test_a_log_line_does_not_stick_to_the_bar(console, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    console.progress("half a bar")
    logging.getLogger(f"{LIBRARY}.text").warning("careful")
    assert capsys.readouterr().err == "\rhalf a bar\r          \rWarning: careful\n"


def test_quiet_shows_no_progress_but_warnings(console, capsys):
    console.configure(quiet=True, verbose=False)
    run(Progress(console))
    logging.getLogger(LIBRARY).warning("careful")
    assert capsys.readouterr().err == "Warning: careful\n"


def test_verbose_logs_what_a_bug_report_wants(console, capsys):
    logging.getLogger(LIBRARY).info("before")
    console.configure(quiet=False, verbose=True)
    logging.getLogger(LIBRARY).info("variant t2v")
    assert capsys.readouterr().err == "Info: variant t2v\n"


def test_a_closed_console_leaves_the_logging_alone():
    before = logging.getLogger(LIBRARY).handlers[:], logging.getLogger(LIBRARY).level
    Console(debug=True).close()
    assert (logging.getLogger(LIBRARY).handlers, logging.getLogger(LIBRARY).level) == before
