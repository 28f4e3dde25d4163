from __future__ import annotations

import importlib.util
import re

from hyvideo_lib.attention import BACKENDS
from hyvideo_lib.cli import doctor, main
from hyvideo_lib.demo import assets
from hyvideo_lib.quant import PRODUCTS

REFUSED = re.compile("are not possible on cpu|are too slow on this processor")


def test_the_report_names_versions_devices_memory_and_attention(hyvideo):
    report = hyvideo("doctor").report
    assert report["packages"]["torch"]
    assert report["ffmpeg"]["version"]
    assert report["memory"]["total_bytes"] is None or report["memory"]["total_bytes"] > 2**28
    cpu = report["devices"][-1]
    assert cpu["name"] == "cpu"
    assert cpu["attention"]["sdpa"] == "ok"
    assert tuple(cpu["matmul"]) == tuple(PRODUCTS)
    assert all(said == "ok" or REFUSED.search(said) for said in cpu["matmul"].values())
    for name, backend in BACKENDS.items():
        said = cpu["attention"][name]
        assert said == "ok" or said.endswith(backend.install)


def test_a_whole_installation_has_no_problems(hyvideo):
    answer = hyvideo("doctor")
    assert answer.report["problems"] == []
    assert answer.code == 0


def test_what_is_missing_comes_with_how_to_get_it(hyvideo, monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else find_spec(name, *rest)
    )
    monkeypatch.setattr(assets, "VAE", tmp_path / "vae.safetensors")
    answer = hyvideo("doctor")
    assert answer.code == 1
    assert answer.report["packages"]["transformers"] is None
    assert any("pip install transformers" in problem for problem in answer.report["problems"])
    assert any("vae.safetensors" in problem for problem in answer.report["problems"])


def test_a_package_that_is_only_sometimes_needed_is_no_problem(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", (doctor.Package("no_such_module", "no-such", "pip install no-such"),))
    problems: list[str] = []
    assert doctor._packages(problems) == {"no-such": None}
    assert problems == []


def test_people_read_the_same(capsys):
    main(["doctor"])
    text = capsys.readouterr().out
    assert "torch" in text
    assert "device cpu" in text
    assert "attention sdpa" in text
