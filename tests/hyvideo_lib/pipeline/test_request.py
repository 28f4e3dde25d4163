from __future__ import annotations

import json

import pytest

from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.pipeline import NEGATIVE_PROMPT, GenerateRequest, Precision
from hyvideo_lib.sampling import GuidanceConfig
from hyvideo_lib.text import PromptTemplate


def test_defaults_are_accepted():
    GenerateRequest("a cat").check()


def test_settings_are_plain_and_tell_the_template():
    settings = GenerateRequest("a cat", tiles=None).settings(9)
    assert json.loads(json.dumps(settings)) == settings
    assert (settings["template"], settings["seed"], settings["tiles"]) == ("video", 9, None)
    own = GenerateRequest("a cat", template=PromptTemplate("look: {}")).settings(9)
    assert own["template"] == "look: {}"


def test_the_negative_prompt_is_the_references_unless_given():
    guided = GuidanceConfig(cfg_scale=2.0)
    assert GenerateRequest("a").used_negative is None
    assert GenerateRequest("a", guidance=guided).used_negative == NEGATIVE_PROMPT
    assert GenerateRequest("a", negative_prompt="", guidance=guided).used_negative == ""


@pytest.mark.parametrize("changes", [{"compute": "int8"}, {"storage": "int4"}, {"vae": "fp8"}, {"text": ""}])
def test_precision_takes_known_names_only(changes):
    with pytest.raises(InvalidSetting, match="must be one of"):
        Precision(**changes)


def test_a_negative_prompt_that_is_not_text_is_refused_though_it_is_not_used():
    with pytest.raises(InvalidSetting, match=r"The negative prompt holds U\+0085"):
        GenerateRequest("a cat", negative_prompt="a\x85b").check()
