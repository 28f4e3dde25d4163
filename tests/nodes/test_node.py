"""Checks before the run never raise; errors in it carry their code."""

from __future__ import annotations

import sys

import pytest
import torch
from graph import call, run, validate

WORDS = ["", "no such choice", "../../etc/passwd", "a\0b"]
NUMBERS = [-1, 10**30, float("nan"), float("inf"), True]
JUNK = [*WORDS, *NUMBERS, [], [1], {}, object()]


@pytest.fixture
def form(pack):
    """A node with one widget of each kind that has limits."""
    io = sys.modules["comfy_api.latest"].io
    node = pack.nodes.node

    class Form(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(
                "HyvForm",
                inputs=[
                    io.Int.Input("count", default=4, min=1, max=9),
                    io.Float.Input("part", default=0.5, min=0.0, max=1.0),
                    io.Combo.Input("kind", options=["a", "b"], default="a"),
                ],
                outputs=[],
                hidden=[io.Hidden.unique_id],
            )

        @classmethod
        def validate_inputs(cls, count=4, part=0.5, kind="a"):
            def check():
                if count == 7:
                    raise pack.hyvideo_lib.errors.InvalidSteps("not seven")
                if count == 8:
                    raise RuntimeError("broken")

            return node.check_inputs(cls, {"count": count, "part": part, "kind": kind}, check)

        @classmethod
        @node.names_its_errors
        def execute(cls, count=4, part=0.5, kind="a"):
            if count == 7:
                raise pack.hyvideo_lib.errors.InvalidSteps("not seven")
            if isinstance(count, Exception):
                raise count
            return io.NodeOutput(cls.hidden.unique_id)

    return Form


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"count": 0}, "count is 0, but must be at least 1."),
        ({"count": 10}, "count is 10, but must be at most 9."),
        ({"part": 1.5}, "part is 1.5, but must be at most 1.0."),
        ({"part": float("nan")}, "part is nan, but must be at least 0.0."),
        ({"kind": "c"}, "kind is 'c', but must be one of: a, b."),
        ({"count": 7}, "not seven"),
        ({"count": 8}, "could not be checked (RuntimeError: broken)"),
        ({"count": "x"}, "could not be checked (TypeError"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(form, inputs, said):
    assert said in validate(form, **inputs)


def test_right_values_pass(form):
    assert validate(form) is True
    assert validate(form, count=9, part=0.0, kind="b") is True


def test_values_over_a_wire_are_left_for_later_and_the_others_are_checked(form):
    assert validate(form, count=None, part=None, kind=None) is True
    assert "part is 2.0" in validate(form, count=None, part=2.0)


def test_our_errors_carry_their_code(form, pack):
    with pytest.raises(pack.hyvideo_lib.errors.InvalidSteps) as caught:
        run(form, count=7)
    assert str(caught.value) == "not seven [invalid_steps]"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), MemoryError(), ValueError("v"), KeyError("k")])
def test_other_errors_pass_untouched(form, error):
    with pytest.raises(type(error)) as caught:
        run(form, count=error)
    assert caught.value is error


def test_cancelling_passes_untouched(form, mm):
    error = mm.InterruptProcessingException()
    with pytest.raises(mm.InterruptProcessingException) as caught:
        run(form, count=error)
    assert caught.value is error


def test_a_node_runs_on_a_class_that_cannot_be_written_to(form, pack):
    assert run(form)[0] == "7"

    @classmethod
    def execute(cls, **_):
        cls.memory = 1

    form.execute = execute
    with pytest.raises(AttributeError, match="locked"):
        run(form)


def test_no_junk_makes_any_check_raise(pack):
    """Whatever a client sends for one input, with the others as they should be."""
    for node in pack.nodes.extension.list_nodes():
        base = sys.modules["comfy_api.latest"].io.ComfyNode
        if node.validate_inputs.__func__ is base.validate_inputs.__func__:
            continue
        for entry in node.define_schema().inputs:
            for junk in (*JUNK, None):
                said = validate(node, **{entry.id: junk})
                assert said is True or (isinstance(said, str) and said), (node.__name__, entry.id, junk)
                if getattr(entry, "options", None) and junk is not None:
                    takes = junk in entry.options
                    assert (said is True) == takes or takes, (node.__name__, entry.id, junk)


def test_no_junk_makes_a_fingerprint_raise(pack):
    """ComfyUI would run the node again every time, which for a loader is minutes."""
    for node in (pack.nodes.load.LoadTransformer, pack.nodes.load.LoadTextEncoders, pack.nodes.load.LoadVAE):
        widgets = [entry.id for entry in node.define_schema().inputs if not entry.optional]
        for junk in (None, "no such file", 5):
            said = call(node, "fingerprint_inputs", dict.fromkeys(widgets, junk))
            assert said == call(node, "fingerprint_inputs", dict.fromkeys(widgets, junk))
    for junk in (None, "no such file", 5):
        assert isinstance(call(pack.nodes.text.LoadEmbeds, "fingerprint_inputs", {"file": junk}), str)
