import json

import pytest

from hyvideo_lib.errors import FileMissing, FileUnreadable, MissingPackage
from hyvideo_lib.text import TEMPLATES, build_llama3_tokenizer, tokenize_prompt
from hyvideo_lib.text.llama3_tokenizer import llama3_from_merges
from hyvideo_lib.text.tokens import opening_ids, text_ids

TOKENS = ["a", "b", "c", "ab", "<|begin_of_text|>", "<|eot_id|>"]


def test_without_the_vocabulary_package_the_install_line_is_given(monkeypatch):
    monkeypatch.setattr("hyvideo_lib.text.llama3_tokenizer.LLAMA3_PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(MissingPackage, match="pip install llama-models"):
        build_llama3_tokenizer()


@pytest.mark.parametrize("content", [b"", b"not base64!", b"YQ== one", b"YQ== 0\nYg== 2", b"YQ==", b"a b c"])
def test_a_damaged_table_of_ranks_is_refused(tmp_path, content):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(content)
    with pytest.raises(FileUnreadable, match="llama-models"):
        build_llama3_tokenizer(file)


def test_a_missing_table_of_ranks_is_named(tmp_path):
    with pytest.raises(FileMissing, match="vocabulary"):
        build_llama3_tokenizer(tmp_path / "tokenizer.model")


def test_tokens_and_merges_make_a_tokenizer():
    tokenizer = llama3_from_merges(TOKENS, ["a b"], TOKENS[4:], "tiny.gguf")
    assert tokenizer.encode("abc<|eot_id|>", add_special_tokens=False).ids == [3, 2, 5]
    assert tokenizer.encode("a").ids == [4, 0]
    assert tokenizer.get_vocab_size() == len(TOKENS)


@pytest.mark.parametrize(
    ("tokens", "merges", "missing"),
    [
        (TOKENS, [], "the list of merges"),
        (TOKENS[:4], ["a b"], "begin_of_text"),
        (TOKENS, ["a b", "b c"], "bc is missing"),
        (TOKENS, ["a d"], "d is missing"),
        (TOKENS, ["ab"], r"\( is missing"),
    ],
)
def test_lists_that_do_not_belong_together_are_refused(tokens, merges, missing):
    with pytest.raises(FileUnreadable, match=missing):
        llama3_from_merges(tokens, merges, tokens[4:], "tiny.gguf")


def test_lists_give_the_tokenizer_that_the_ranks_give(llama3):
    vocab = llama3.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    merges = [" ".join(pair) for pair in json.loads(llama3.to_str())["model"]["merges"]]
    other = llama3_from_merges(tokens, merges, tokens[128000:], "llama.gguf")
    for text in (TEMPLATES["video"].fill("A cat's 1234567 日本語 naïve\n\n  x"), "<|eot_id|>a <image>"):
        assert other.encode(text).ids == llama3.encode(text).ids


def test_llama3_numbers_its_control_tokens_as_published(llama3):
    known = {
        "<|begin_of_text|>": 128000,
        "<|end_of_text|>": 128001,
        "<|start_header_id|>": 128006,
        "<|end_header_id|>": 128007,
        "<|eot_id|>": 128009,
        "<|reserved_special_token_250|>": 128255,
        "<image>": 128257,
        "<pad>": 128258,
    }
    assert {name: llama3.token_to_id(name) for name in known} == known
    assert llama3.get_vocab_size() == 128259


@pytest.mark.parametrize(("name", "crop"), [("video", 95), ("image", 36), ("none", 0)])
def test_crops_of_the_templates_in_the_llama3_vocabulary(llama3, name, crop):
    for prompt in ("A cat walks on the grass, realistic style.", "", "1920", "日本語", "'s", "\u200b x"):
        tokens = tokenize_prompt(llama3, prompt, TEMPLATES[name])
        assert tokens.crop_start == crop
        assert list(tokens.ids[:crop]) == opening_ids(llama3, TEMPLATES[name])


def test_video_opening_in_the_llama3_vocabulary(llama3):
    ids = opening_ids(llama3, TEMPLATES["video"])
    assert ids[:6] == [128000, 128006, 9125, 128007, 271, 75885]
    assert ids[-5:] == [128009, 128006, 882, 128007, 271]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, world!", [9906, 11, 1917, 0]),
        (" ", [220]),
        ("\n\n", [271]),
        ("1234567", [4513, 10961, 22]),
        (" Việt", [101798]),
    ],
)
def test_known_ids_of_the_llama3_vocabulary(llama3, text, ids):
    assert text_ids(llama3, text) == [128000, *ids]
    assert llama3.encode(text).ids == [128000, *ids]
    assert llama3.decode(ids) == text


def test_an_empty_video_prompt_is_its_closing_token(llama3):
    tokens = tokenize_prompt(llama3, "  ", TEMPLATES["video"])
    assert tokens.ids[tokens.crop_start :] == (128009,)


def test_limits_follow_the_video_template(llama3):
    for name in ("video", "image"):
        tokens = tokenize_prompt(llama3, "cat " * 400, TEMPLATES[name])
        assert len(tokens.ids) == 351
        assert tokens.tokens_cut > 0
        assert 128009 not in tokens.ids[tokens.crop_start :]
