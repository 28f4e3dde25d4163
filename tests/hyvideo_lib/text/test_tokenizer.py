import importlib.util
from pathlib import Path

import pytest

from hyvideo_lib.errors import FileMissing, FileUnreadable, MissingPackage
from hyvideo_lib.text import TEMPLATES, build_llama3_tokenizer, load_tokenizer, tokenize_prompt
from hyvideo_lib.text.tokenizer import LLAMA3_PACKAGE
from hyvideo_lib.text.tokens import opening_ids, text_ids

GOLDENS = Path(__file__).parents[2] / "goldens"
TINY = GOLDENS / "te_llama_tiny.tokenizer.json"


@pytest.fixture(scope="module")
def llama3():
    if importlib.util.find_spec(LLAMA3_PACKAGE) is None:
        pytest.skip("the real Llama-3 vocabulary is in the package llama-models (pip install llama-models)")
    return build_llama3_tokenizer()


def test_a_folder_stands_for_its_tokenizer_json(tmp_path):
    (tmp_path / "tokenizer.json").write_text(TINY.read_text())
    from_folder, from_file = load_tokenizer(tmp_path), load_tokenizer(str(TINY))
    assert from_folder.to_str() == from_file.to_str()


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path):
    tokenizer = load_tokenizer(TINY)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=30)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("a cat walks").ids == load_tokenizer(TINY).encode("a cat walks").ids


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(FileMissing, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_another_kind_of_file_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe binary")
    with pytest.raises(FileUnreadable, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FileUnreadable):
        load_tokenizer(tmp_path)


def test_without_the_vocabulary_package_the_install_line_is_given(monkeypatch):
    monkeypatch.setattr("hyvideo_lib.text.tokenizer.LLAMA3_PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(MissingPackage, match="pip install llama-models"):
        build_llama3_tokenizer()


@pytest.mark.parametrize("content", [b"", b"not base64!", b"YQ== one", b"YQ== 0\nYg== 2", b"YQ==", b"a b c"])
def test_a_damaged_table_of_ranks_is_refused(tmp_path, content):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(content)
    with pytest.raises(FileUnreadable):
        build_llama3_tokenizer(file)


def test_a_missing_table_of_ranks_is_named(tmp_path):
    with pytest.raises(FileMissing, match="vocabulary"):
        build_llama3_tokenizer(tmp_path / "tokenizer.model")


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
