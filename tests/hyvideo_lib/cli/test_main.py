from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from hyvideo_lib import __version__
from hyvideo_lib.attention import AUTO, BACKENDS
from hyvideo_lib.caches import METHODS
from hyvideo_lib.cli import VERBS, arguments, build_parser, inspect, main
from hyvideo_lib.memory.machine import CARDS
from hyvideo_lib.pipeline import COMPUTE_DTYPES, DTYPES
from hyvideo_lib.pipeline.precision import MATMULS
from hyvideo_lib.sampling import SOLVERS
from hyvideo_lib.text import TEMPLATES
from hyvideo_lib.transformer.compile_config import BACKENDS as BACKENDS_TO_COMPILE
from hyvideo_lib.transformer.compile_config import MODES

ROOT = Path(__file__).parents[3]


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_module_runs_and_names_its_version():
    answer = python("-m", "hyvideo_lib", "--version")
    assert (answer.returncode, answer.stdout.strip()) == (0, f"hyvideo {__version__}")


def test_help_and_wrong_options_import_nothing_heavy():
    code = (
        "import sys; from hyvideo_lib.cli import main; main(['generate', '--help']); main(['demo', '--nonsense']); "
        "sys.exit(bool({'torch', 'numpy', 'transformers', 'imageio_ffmpeg'} & sys.modules.keys()))"
    )
    assert python("-c", code).returncode == 0


@pytest.mark.parametrize("verb", [name for name in VERBS if name != "bench"])
def test_each_verb_explains_itself(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: hyvideo {verb}")
    assert "--json" in text


def test_no_option_is_without_an_explanation():
    parser = build_parser()
    (verbs,) = (action.choices.values() for action in parser._actions if action.dest == "verb")
    assert [action.dest for verb in verbs for action in verb._actions if not action.help] == []


@pytest.mark.parametrize(
    "words", [[], ["conquer"], ["demo", "--nonsense"], ["inspect"], ["demo", "--steps"], ["demo", "--gui", "3"]]
)
def test_a_wrong_command_is_bad_input_in_one_paragraph(words, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Error: ")
    assert captured.err.count("\n") == 1
    assert "--help" in captured.err
    assert main([*words, "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == "bad_input"
    assert captured.err == ""


@pytest.mark.parametrize("is_debug", [False, True])
def test_a_traceback_is_for_those_who_debug(capsys, is_debug):
    assert main(["inspect", "nowhere", *(["--debug"] if is_debug else [])]) == 2
    assert ("Traceback" in capsys.readouterr().err) == is_debug


def test_what_nobody_planned_for_is_told_in_words(capsys, monkeypatch):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(inspect, "_inspect", fail)
    assert main(["inspect", "x", "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "run_failed"
    assert "ZeroDivisionError: by zero" in error["message"]
    assert "--debug" in error["message"]


@pytest.mark.parametrize(
    ("name", "code"), [("torch", "missing_package"), ("hyvideo_lib.gone", "run_failed"), (None, "run_failed")]
)
def test_a_package_that_is_missing_is_named_with_the_python_that_lacks_it(capsys, monkeypatch, name, code):
    def lacking(options, console):
        raise ModuleNotFoundError("No module named", name=name)

    monkeypatch.setattr(VERBS["doctor"], "run", lacking)
    assert main(["doctor", "--json"]) == (2 if name == "torch" else 1)
    told = json.loads(capsys.readouterr().out)["error"]
    assert told["code"] == code
    if name == "torch":
        assert sys.executable in told["message"]


def test_ctrl_c_outside_the_work_ends_with_3(capsys, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "_inspect", stop)
    assert main(["inspect", "x", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "interrupted"


def test_a_reader_that_left_is_no_traceback():
    code = "from hyvideo_lib.cli import main; import sys; sys.exit(main(['doctor']))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1


def test_a_terminal_that_lacks_a_letter_gets_an_escape(monkeypatch, tmp_path):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    err = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["inspect", "日本.mp4"]) == 2
    assert b"\\u65e5\\u672c.mp4" in err.buffer.getvalue()


def test_names_in_the_options_are_those_of_the_tables():
    assert tuple(SOLVERS) == arguments.SOLVERS
    assert tuple(TEMPLATES) == arguments.TEMPLATES
    assert tuple(METHODS) == arguments.CACHES
    assert tuple(DTYPES) == arguments.STORAGE_DTYPES
    assert COMPUTE_DTYPES == arguments.COMPUTE_DTYPES
    assert (AUTO, *BACKENDS) == arguments.ATTENTION
    assert MATMULS == arguments.MATMULS
    assert tuple(CARDS) == arguments.CARDS
    assert MODES == arguments.COMPILE_MODES
    assert BACKENDS_TO_COMPILE == arguments.COMPILE_BACKENDS
