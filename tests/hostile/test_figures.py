"""When a figure counts as met, and the one that comes from another process."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.hostile import planted
from benchmarks.hostile.figures import Figure
from benchmarks.mutation.__main__ import AIM


def test_a_figure_is_met_when_all_or_the_share_that_is_asked_for_ended_well():
    figure = Figure("part", "what")
    assert not figure.is_met  # nothing was tried
    figure.add(None)
    assert figure.is_met
    figure.add("it broke")
    assert not figure.is_met
    assert replace(figure, least=0.5).is_met
    assert not replace(figure, least=0.51).is_met
    assert "FAIL part: what: wanted 2, found 1\n       it broke" in figure.line()


def test_planted_faults_are_counted_in_a_process_of_their_own(scale, met):
    (figure,) = planted.run(replace(scale, only="geometry", share=0.05))
    assert (figure.wanted, figure.least) == (2, AIM)
    met(figure)


def test_a_module_that_could_not_be_tried_does_not_count_as_met(scale, monkeypatch):
    monkeypatch.setitem(planted.MODULES, "no/such", ())
    (figure,) = planted.run(replace(scale, only="no/such"))
    assert not figure.is_met
