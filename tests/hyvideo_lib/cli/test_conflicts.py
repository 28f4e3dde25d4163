from __future__ import annotations

import pytest

from hyvideo_lib.cli import build_parser
from hyvideo_lib.cli.conflicts import COMMON, DECODING, OF_CFG


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--decode", "l.safetensors", "--vae", "v", "a circle"], "bad_input", "prompts has no effect"),
        (
            ["--decode", "l.safetensors", "--cache", "teacache", "--swap-double", 3],
            "bad_input",
            "--cache, --swap-double have no effect here: --decode only",
        ),
        (["a circle", "--negative", "x"], "invalid_guidance", "--negative has no effect here: --cfg-scale is 1"),
        (["a circle", "--cfg-in-turn", "--cfg-end", 0.5], "invalid_guidance", "--cfg-end, --cfg-in-turn have no"),
        (["a circle", "--template", "image", "--template-text", "{}"], "invalid_setting", "--template has no effect"),
    ],
)
def test_options_without_effect_are_refused(hyvideo, words, code, said):
    answer = hyvideo("generate", *words)
    assert (answer.code, answer.error) == (2, code)
    assert said in answer.message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cpu", "--card", "rtx4090"], "--device has no effect"),
        (["--device", "cpu", "--gpu-memory", "12GiB"], "--device has no effect"),
        (["--decode", "l.safetensors"], "--decode has no effect"),
    ],
)
def test_a_plan_refuses_them_too(hyvideo, words, said):
    answer = hyvideo("plan", *words)
    assert answer.code == 2
    assert said in answer.message


def test_the_demo_refuses_them_too(hyvideo):
    assert hyvideo("demo", "--negative", "x").error == "invalid_guidance"


def test_what_is_given_is_known_by_its_name():
    options = build_parser().parse_args(["generate", "a", "b", "--steps", "3", "--cfg-in-turn", "--solver", "euler"])
    assert set(options.given) == {"prompts", "--steps", "--cfg-in-turn"}


def test_the_table_names_options_that_there_are():
    parser = build_parser()
    (verbs,) = (action.choices for action in parser._actions if action.dest == "verb")
    names = {name for action in verbs["generate"]._actions for name in action.option_strings}
    assert names >= COMMON | DECODING | OF_CFG
