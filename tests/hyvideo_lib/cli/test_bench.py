from __future__ import annotations

from pathlib import Path

import pytest

from hyvideo_lib.cli import bench
from hyvideo_lib.errors import Interrupted, UnsupportedFile


def write_benchmarks(root: Path, code: str) -> Path:
    (root / "benchmarks").mkdir()
    (root / "benchmarks" / "__init__.py").write_text("NAME = 'ours'\n")
    (root / "benchmarks" / "__main__.py").write_text(f"import sys\nfrom . import NAME\n{code}\n")
    return root


def test_words_reach_the_benchmarks_and_their_exit_code_comes_back(tmp_path, capfd, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_benchmarks(elsewhere, "sys.exit('the wrong folder')")
    monkeypatch.chdir(elsewhere)
    root = write_benchmarks(tmp_path, "print(NAME, sys.argv[1:]); sys.exit(5)")
    assert bench.run_arguments(["vae", "--json", "--repeat", "3"], root) == 5
    assert capfd.readouterr().out.strip() == "ours ['vae', '--json', '--repeat', '3']"


def test_without_the_folder_it_says_where_to_get_it(tmp_path):
    with pytest.raises(UnsupportedFile, match="source repository"):
        bench.run_arguments([], tmp_path)


def test_stopped_benchmarks_count_as_interrupted(tmp_path):
    root = write_benchmarks(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    with pytest.raises(Interrupted):
        bench.run_arguments([], root)
