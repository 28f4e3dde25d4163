from __future__ import annotations

import json
import signal
import sys
import threading

import pytest

from hyvideo_lib.cli.interrupt import stop_on_signals

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
