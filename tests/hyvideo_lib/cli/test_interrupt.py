from __future__ import annotations

import contextlib
import importlib
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hyvideo_lib.cli import generate as cli_generate
from hyvideo_lib.cli import inspect, start
from hyvideo_lib.cli.interrupt import stop_on_signals

ROOT = Path(__file__).parents[3]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals to a process")


def wait_for(process, text: str) -> str:
    """Read stderr up to a line that begins with `text`."""
    seen = ""
    for line in process.stderr:
        seen += line
        if line.startswith(text):
            return seen
    pytest.fail(f"never said {text!r}: {seen}")


def words(tiny_files, *extra: object) -> list[object]:
    return ["generate", "a red circle", *tiny_files.arguments(), "--seed", 1, "--out", "out/a.mp4", "--json", *extra]


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_sampling_ends_with_3_and_leaves_nothing(start_process, tiny_files, tmp_path, number):
    size = ["--width", 32, "--height", 32, "--frames", 5, "--steps", 9999]
    process = start_process(words(tiny_files, *size))
    wait_for(process, "sampling")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 3
    assert json.loads(stdout)["error"]["code"] == "interrupted"
    assert "Traceback" not in stderr
    assert list((tmp_path / "out").iterdir()) == []


@POSIX
def test_ctrl_c_while_decoding_keeps_the_latents_and_no_half_video(start_process, tiny_files, tmp_path):
    size = ["--width", 256, "--height", 256, "--frames", 17, "--steps", 1, "--tiles", 32]
    process = start_process(words(tiny_files, *size))
    wait_for(process, "decoding")
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=300)
    report = json.loads(stdout)
    assert (process.returncode, report["error"]["code"]) == (3, "interrupted")
    assert [str(path.relative_to(tmp_path)) for path in (tmp_path / "out").iterdir()] == [
        report["failed"][0]["latents"]
    ]


def test_the_first_signal_asks_and_the_second_stops():
    cancelled = []
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals(lambda: cancelled.append(1)):
        signal.raise_signal(signal.SIGINT)
        assert cancelled == [1]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def swallow_a_signal() -> None:
    """What imports in C do with Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_fails_after_a_swallowed_ctrl_c_is_told_as_stopped(hyvideo, monkeypatch):
    def fail(*_: object) -> None:
        swallow_a_signal()
        raise ImportError("cannot load module more than once per process")

    monkeypatch.setattr(inspect, "_inspect", fail)
    answer = hyvideo("inspect", "x")
    assert (answer.code, answer.error) == (3, "interrupted")


def test_a_ctrl_c_that_was_swallowed_before_the_run_stops_it(generate, monkeypatch):
    def find_start(options):
        swallow_a_signal()
        return start.find_start(options)

    monkeypatch.setattr(cli_generate, "find_start", find_start)
    answer = generate("a red circle")
    assert (answer.code, answer.error) == (3, "interrupted")
    assert "loading" not in answer.stderr


def test_ctrl_c_in_an_import_waits_for_its_end_and_then_stops(hyvideo, tmp_path, monkeypatch):
    tmp_path.joinpath("interrupted_import.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    monkeypatch.syspath_prepend(tmp_path)

    def import_it(*_: object) -> None:
        assert importlib.import_module("interrupted_import")

    monkeypatch.setattr(inspect, "_inspect", import_it)
    answer = hyvideo("inspect", "x")
    assert (answer.code, answer.error) == (3, "interrupted")


@POSIX
def test_ctrl_c_in_an_import_ends_the_process_with_3(tmp_path):
    tmp_path.joinpath("torch.py").write_text("import signal; signal.raise_signal(signal.SIGINT); print('went on')")
    answer = run_process("sys.path.insert(0, 'TMP'); sys.argv[1:] = ['doctor', '--json']", tmp_path)
    assert (answer.returncode, json.loads(answer.stdout)["error"]["code"]) == (3, "interrupted")


@POSIX
def test_ctrl_c_that_comes_late_does_not_change_the_exit_code(tmp_path):
    late = "leave = sys.exit; sys.exit = lambda code: [signal.raise_signal(signal.SIGINT), leave(code)]"
    answer = run_process(f"sys.argv[1:] = ['--nonsense']; import signal\n{late}", tmp_path)
    assert answer.returncode == 2, answer.stderr


@POSIX
def test_ctrl_c_that_python_remembers_does_not_change_it_either(tmp_path):
    """As one within the code that an import makes and runs."""
    stopped = "def stopped():\n  try: exec('raise KeyboardInterrupt')\n  except KeyboardInterrupt: return 3\n"
    answer = run_process(f"{stopped}from hyvideo_lib import cli; cli.main = stopped", tmp_path)
    assert answer.returncode == 3, answer.stderr


def run_process(before: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, after some statements; TMP in them is the folder."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{before.replace('TMP', str(folder))}\n"
    code += "from hyvideo_lib.__main__ import command; command()"
    (folder / "command.py").write_text(code)
    return subprocess.run([sys.executable, "-m", "command"], cwd=folder, capture_output=True, text=True, check=False)


def test_other_threads_are_left_alone():
    results = []

    def work() -> None:
        with stop_on_signals(lambda: None):
            results.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [before]
