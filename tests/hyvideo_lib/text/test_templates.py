import pytest

from hyvideo_lib.errors import InvalidTemplate
from hyvideo_lib.text import TEMPLATES, PromptTemplate


@pytest.mark.parametrize("text", ["", "no place", "{} and {}", "{prompt}"])
def test_a_template_has_exactly_one_place_for_the_prompt(text):
    with pytest.raises(InvalidTemplate, match="exactly one"):
        PromptTemplate(text)


def test_a_prompt_is_stripped_and_its_braces_are_text():
    assert PromptTemplate("{a} <{}> {b}").fill("  a {} {0} cat\n") == "{a} <a {} {0} cat> {b}"


def test_the_template_called_none_adds_nothing():
    assert TEMPLATES["none"].fill("a cat") == "a cat"


@pytest.mark.parametrize("name", ["video", "image"])
def test_tencents_templates_open_a_system_turn_and_close_the_users(name):
    template = TEMPLATES[name]
    assert template.prefix.startswith("<|start_header_id|>system<|end_header_id|>\n\nDescribe the " + name)
    assert template.prefix.endswith("<|start_header_id|>user<|end_header_id|>\n\n")
    assert template.suffix == "<|eot_id|>"


def test_a_template_is_text():
    with pytest.raises(InvalidTemplate, match=r"The prompt template holds U\+009F"):
        PromptTemplate("look\x9f: {}")
    assert PromptTemplate("look:\r\n{}") == PromptTemplate("look:\n{}")
