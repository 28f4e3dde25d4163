"""Prompts: templates, the cache, other nodes' conditioning, and encoded prompts as files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from graph import call, run, validate

PROMPT = "a blue square moving up on a navy background"


@pytest.fixture
def text(pack):
    return pack.nodes.text


@pytest.fixture
def errors(pack):
    return pack.hyvideo_lib.errors


def same(first, second) -> bool:
    parts = ("text_embeds", "text_mask", "pooled_embeds")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in parts)


# Templates


def test_a_template_of_ones_own_says_how_much_is_cut(text, text_encoders, texts):
    output = run(text.PromptTemplateNode, text="Look at this: {}", text_encoders=text_encoders)
    crop = len(text_encoders.llm.tokenizer.encode("Look at this: ", add_special_tokens=False).ids) + 1
    assert output[0].text == "Look at this: {}"
    assert output.ui == {"text": (f"the first {crop} tokens are cut off after encoding",)}
    assert texts() == [output.ui["text"][0]]


def test_a_template_needs_no_encoders(text):
    output = run(text.PromptTemplateNode)
    assert output[0].text == text.TEMPLATES["video"].text
    assert "connect" in output.ui["text"][0]


@pytest.mark.parametrize("words", ["no place", "{} and {}", ""])
def test_a_template_has_one_place_for_the_prompt(text, errors, words):
    assert "must hold exactly one" in validate(text.PromptTemplateNode, text=words)
    with pytest.raises(errors.InvalidTemplate, match=r"\[invalid_template\]$"):
        run(text.PromptTemplateNode, text=words)


def test_a_template_over_a_wire_is_checked_in_the_run(text):
    assert validate(text.PromptTemplateNode, text=None) is True


# Encoding


def test_a_prompt_becomes_the_librarys_embeds(text, text_encoders, pack):
    embeds = run(text.EncodePrompt, text_encoders=text_encoders, prompt=PROMPT)[0]
    encode = pack.hyvideo_lib.text.encode_prompt
    assert same(embeds.positive, encode(PROMPT, text_encoders.llm, text_encoders.clip))
    assert same(embeds.negative, encode("", text_encoders.llm, text_encoders.clip))
    assert embeds.template == "video"
    assert embeds.positive.text_embeds.device.type == "cpu"


@pytest.mark.parametrize("template", ["video", "image", "none"])
def test_every_template_encodes(text, text_encoders, template):
    assert validate(text.EncodePrompt, template=template) is True
    embeds = run(text.EncodePrompt, text_encoders=text_encoders, prompt="a red circle", template=template)[0]
    assert embeds.positive.text_embeds.isfinite().all()
    assert embeds.template == template


def test_a_template_of_ones_own_is_used_when_it_is_chosen(text, text_encoders, errors):
    own = run(text.PromptTemplateNode, text="on a screen: {}")[0]
    inputs = {"text_encoders": text_encoders, "prompt": "a red circle"}
    custom, plain, ignored = (
        run(text.EncodePrompt, **inputs, template=name, custom_template=template)[0].positive
        for name, template in (("custom", own), ("video", None), ("video", own))
    )
    assert not torch.equal(custom.text_embeds, plain.text_embeds)
    assert same(plain, ignored)
    assert "no Prompt Template is connected" in validate(text.EncodePrompt, template="custom")
    assert validate(text.EncodePrompt, template="custom", custom_template=None) is True
    with pytest.raises(errors.InvalidSetting, match=r"no Prompt Template is connected.*\[invalid_setting\]$"):
        run(text.EncodePrompt, **inputs, template="custom")


def test_templates_that_there_are_not_are_refused(text):
    assert "template is 'poem'" in validate(text.EncodePrompt, template="poem")
    assert validate(text.EncodePrompt, template=None) is True


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_text_that_a_wrong_decoding_made_is_refused_before_the_run_and_in_it(text, text_encoders, errors, name):
    given = {"prompt": "a red circle", "negative_prompt": "", name: "a\0 \0b"}
    assert validate(text.EncodePrompt, **given).startswith(f"{name} holds U+0000 at character 2")
    assert validate(text.EncodePrompt, **{**given, name: "👩\u200d🚀\r\n\u200f"}) is True
    assert validate(text.EncodePrompt, **{**given, name: None}) is True
    with pytest.raises(errors.InvalidSetting, match=rf"^{name} holds U\+0000 .*\[invalid_setting\]$"):
        run(text.EncodePrompt, text_encoders=text_encoders, **given)


def test_a_template_that_is_not_text_is_refused(text):
    assert "U+0001" in validate(text.PromptTemplateNode, text="look\x01: {}")


def test_the_node_says_how_long_the_prompt_is_and_what_was_cut(text, text_encoders, texts, caplog):
    run(text.EncodePrompt, text_encoders=text_encoders, prompt="a red circle")
    tokens, seconds, *rest = texts()[-1].split(", ")
    assert (tokens.endswith(" tokens"), seconds.endswith(" s")) == (True, True)
    assert any(fact.startswith("RAM peak ") for fact in rest)
    run(text.EncodePrompt, text_encoders=text_encoders, prompt="a red circle " * 200)
    assert "too long: the last " in texts()[-1]


def test_a_prompt_is_encoded_once_and_then_needs_no_encoder(text, text_encoders, mm):
    inputs = {"text_encoders": text_encoders, "prompt": "a prompt of this test", "negative_prompt": "another of it"}
    first = run(text.EncodePrompt, **inputs)[0]
    assert all(entry.loaded_size() == entry.model_size() for entry in text_encoders.managed)
    mm.unload_all_models()
    again = run(text.EncodePrompt, **{**inputs, "prompt": " a prompt of this test\n"})[0]
    assert again.positive is first.positive
    assert again.negative is first.negative
    assert [entry.loaded_size() for entry in text_encoders.managed] == [0, 0]


def test_other_words_or_another_template_are_encoded_anew(text, text_encoders):
    keys = len(text_encoders.cache)
    for words, template in (("one thing", "video"), ("one thing", "image"), ("two things", "image")):
        run(text.EncodePrompt, text_encoders=text_encoders, prompt=words, negative_prompt=words, template=template)
    assert len(text_encoders.cache) == min(keys + 3, text.MAX_CACHED)


def test_the_cache_is_bounded_and_forgets_the_oldest(text, text_encoders, monkeypatch):
    monkeypatch.setattr(text, "MAX_CACHED", 2)
    before = dict(text_encoders.cache)
    try:
        for words in ("first", "second", "third"):
            run(text.EncodePrompt, text_encoders=text_encoders, prompt=words, negative_prompt=words)
        assert [key[0] for key in text_encoders.cache] == ["second", "third"]
    finally:
        text_encoders.cache.clear()
        text_encoders.cache.update(before)


def test_cancelling_between_the_encoders_stops(text, text_encoders, mm):
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        run(text.EncodePrompt, text_encoders=text_encoders, prompt="a prompt that nobody waited for")
    assert all(key[0] != "a prompt that nobody waited for" for key in text_encoders.cache)


# Other nodes' conditioning


def conditioning(embeds, pad: int = 0, with_mask: bool = False) -> list:
    """As ComfyUI's own encoders hand it on."""
    states = torch.nn.functional.pad(embeds.text_embeds, (0, 0, 0, pad), value=9.0)
    extra = {"pooled_output": embeds.pooled_embeds}
    if with_mask:
        extra["attention_mask"] = torch.nn.functional.pad(embeds.text_mask, (0, pad))
    return [[states, extra]]


def test_other_nodes_conditioning_gives_the_same_video(text, embeds, sample):
    expected = sample()[0]["samples"]
    for given in (conditioning(embeds.positive), conditioning(embeds.positive, pad=3, with_mask=True)):
        bridged = run(text.EmbedsFromConditioning, positive=given)[0]
        assert bridged.negative is None
        assert bridged.template == "native"
        assert torch.equal(sample(embeds=bridged)[0]["samples"], expected)


def test_other_nodes_negative_acts_under_cfg(text, embeds, sample, pack):
    cfg = pack.hyvideo_lib.sampling.GuidanceConfig(cfg_scale=3.0)
    inputs = {"positive": conditioning(embeds.positive), "negative": conditioning(embeds.negative)}
    bridged = run(text.EmbedsFromConditioning, **inputs)[0]
    found, expected = (sample(embeds=e, guidance_options=cfg)[0]["samples"] for e in (bridged, embeds))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "holds 0 conditionings"),
        ([[torch.zeros(1, 2, 3), {}]] * 2, "holds 2 conditionings"),
        ([[torch.zeros(1, 2, 3), {}]], "no pooled CLIP vector"),
        ([[torch.zeros(2, 3), {"pooled_output": torch.zeros(1, 4)}]], "no pooled CLIP vector"),
    ],
)
def test_conditioning_of_other_models_is_refused(text, errors, given, said):
    for name in ("positive", "negative"):
        good = [[torch.zeros(1, 2, 3), {"pooled_output": torch.zeros(1, 4)}]]
        with pytest.raises(errors.UnsupportedFile, match=rf"^{name} .*{said}.*\[unsupported_file\]$"):
            run(text.EmbedsFromConditioning, **{"positive": good, "negative": good, name: given})


# Files


def test_saved_embeds_give_the_same_video_bit_for_bit(text, embeds, sample, pack, texts):
    saved = run(text.SaveEmbeds, embeds=embeds)
    assert saved.result is None
    assert saved.ui == {"text": ("saved as hyvideo_00001_.embeds.safetensors",)}
    assert texts() == [saved.ui["text"][0]]
    (name,) = text.list_embeds()
    assert name == "embeds/hyvideo_00001_.embeds.safetensors [output]"
    assert validate(text.LoadEmbeds, file=name) is True
    loaded = run(text.LoadEmbeds, file=name)[0]
    assert same(loaded.positive, embeds.positive)
    assert same(loaded.negative, embeds.negative)
    assert (loaded.template, repr(loaded)) == (embeds.template, repr(embeds))
    cfg = pack.hyvideo_lib.sampling.GuidanceConfig(cfg_scale=3.0)
    found, expected = (sample(embeds=e, guidance_options=cfg)[0]["samples"] for e in (loaded, embeds))
    assert torch.equal(found, expected)


def test_saving_never_writes_over_a_file(text, embeds):
    for _ in range(3):
        run(text.SaveEmbeds, embeds=embeds, filename_prefix="mine")
    assert text.list_embeds() == [f"mine_0000{i}_.embeds.safetensors [output]" for i in (1, 2, 3)]


def test_embeds_without_a_negative_can_be_saved(text, embeds):
    bridged = run(text.EmbedsFromConditioning, positive=conditioning(embeds.positive))[0]
    run(text.SaveEmbeds, embeds=bridged, filename_prefix="mine")
    loaded = run(text.LoadEmbeds, file=text.list_embeds()[0])[0]
    assert loaded.negative is None
    assert same(loaded.positive, bridged.positive)


@pytest.mark.parametrize("prefix", ["../outside", "/tmp/outside", "a/../../outside"])
def test_nothing_is_saved_outside_the_output_folder(text, embeds, prefix, tmp_path):
    with pytest.raises(Exception, match="outside the output folder"):
        run(text.SaveEmbeds, embeds=embeds, filename_prefix=prefix)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_files_of_the_input_folder_are_offered_first(text, embeds, folder):
    run(text.SaveEmbeds, embeds=embeds, filename_prefix="a")
    (file,) = Path(folder("output")).glob("*.safetensors")
    (folder("input/inner") / "b.embeds.safetensors").write_bytes(file.read_bytes())
    (folder("input") / "z.embeds.safetensors").symlink_to(file)
    (folder("input") / "other.safetensors").touch()
    names = text.list_embeds()
    assert names == ["inner/b.embeds.safetensors", "z.embeds.safetensors", f"{file.name} [output]"]
    for name in names:
        assert same(run(text.LoadEmbeds, file=name)[0].positive, embeds.positive)


@pytest.mark.parametrize("name", ["gone", "../secret.embeds.safetensors", "/etc/passwd", "", " [output]", "a\0b"])
def test_files_elsewhere_are_refused(text, errors, folder, name):
    (folder("input").parent / "secret.embeds.safetensors").touch()
    assert "file is" in validate(text.LoadEmbeds, file=name)
    with pytest.raises(errors.FileMissing, match=r"\[file_missing\]$"):
        run(text.LoadEmbeds, file=name)


def test_a_file_over_a_wire_is_looked_for_in_the_run(text):
    assert validate(text.LoadEmbeds, file=None) is True


def test_a_damaged_file_is_named(text, errors, folder):
    (folder("input") / "x.embeds.safetensors").write_text("no")
    with pytest.raises(errors.FileUnreadable, match=r"^x\.embeds\.safetensors .*\[file_unreadable\]$"):
        run(text.LoadEmbeds, file="x.embeds.safetensors")


def test_embeds_are_read_again_only_when_their_file_changed(text, folder):
    path = folder("input") / "x.embeds.safetensors"
    path.write_text("one")

    def said() -> str:
        return call(text.LoadEmbeds, "fingerprint_inputs", {"file": path.name})

    before = said()
    assert said() == before
    path.write_text("three")
    assert said() != before
    path.unlink()
    assert said() == "missing"
