import json
import re

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from hyvideo_lib.errors import UnsupportedFile
from hyvideo_lib.text import check_clip_tokenizer, check_llama3_tokenizer, load_tokenizer
from hyvideo_lib.text.known_ids import CLIP_IDS, LLAMA3_IDS

WORDS = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)])


def test_the_llama3_vocabulary_passes(llama3):
    check_llama3_tokenizer(llama3, "tokenizer.json")


@pytest.mark.parametrize(
    ("part", "broken", "words"),
    [
        ("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False), "'1234567' .* lost the pre-tokenizer"),
        ("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True), "'video' .* of another model, or damaged"),
        ("normalizer", normalizers.Lowercase(), "' Việt' .* lost the normalizer"),
        ("normalizer", normalizers.NFD(), "' Việt' .* lost the normalizer"),
        ("model", models.BPE(), "'video' .* of another model, or damaged"),
    ],
)
def test_a_silently_broken_llama3_tokenizer_is_caught(llama3, monkeypatch, part, broken, words):
    monkeypatch.setattr(llama3, part, broken)
    with pytest.raises(UnsupportedFile, match=r"^tokenizer\.json beside x is not Llama-3's tokenizer: ") as error:
        check_llama3_tokenizer(llama3, "tokenizer.json beside x")
    assert re.search(words, str(error.value))
    assert "pip install llama-models" in str(error.value)


def test_a_tokenizer_without_its_special_tokens_is_caught(llama3):
    parts = json.loads(llama3.to_str())
    parts["added_tokens"] = []
    parts["post_processor"] = None
    with pytest.raises(
        UnsupportedFile, match=r"'<\|begin_of_text\|>' as \[.*\], but it must be \[128000\].*added_tokens"
    ):
        check_llama3_tokenizer(Tokenizer.from_str(json.dumps(parts)), "tokenizer.json")


def test_shifted_special_tokens_are_caught(llama3):
    parts = json.loads(llama3.to_str())
    del parts["added_tokens"][5]
    with pytest.raises(UnsupportedFile, match=r"start_header_id\|>' as \[128005\], but it must be \[128006\]"):
        check_llama3_tokenizer(Tokenizer.from_str(json.dumps(parts)), "tokenizer.json")


def test_templates_cut_elsewhere_are_caught(llama3, monkeypatch):
    monkeypatch.setattr("hyvideo_lib.text.known_ids.LLAMA3_CROPS", {"video": 94})
    with pytest.raises(UnsupportedFile, match="the video template's opening has 95 tokens, not 94"):
        check_llama3_tokenizer(llama3, "tokenizer.json")


def test_the_clip_vocabulary_passes(clip_folder):
    check_clip_tokenizer(load_tokenizer(clip_folder), "tokenizer.json")


@pytest.mark.parametrize(
    ("part", "broken", "words"),
    [
        ("normalizer", normalizers.NFC(), "'PHOTO' .* lost the normalizer"),
        ("pre_tokenizer", WORDS, "it's 1234567.* lost the pre-tokenizer"),
    ],
)
def test_a_silently_broken_clip_tokenizer_is_caught(clip_folder, part, broken, words):
    tokenizer = load_tokenizer(clip_folder)
    setattr(tokenizer, part, broken)
    with pytest.raises(UnsupportedFile, match=words):
        check_clip_tokenizer(tokenizer, "tokenizer.json")


def test_another_models_tokenizer_is_caught(llama3):
    tiny = Tokenizer(models.WordLevel({"Hello": 3, "photo": 4}, unk_token="Hello"))
    tiny.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    for check, model in ((check_llama3_tokenizer, "Llama-3"), (check_clip_tokenizer, "CLIP")):
        with pytest.raises(UnsupportedFile, match=f"not {model}'s tokenizer.*another model"):
            check(tiny, "tokenizer.json")
    with pytest.raises(UnsupportedFile, match="not CLIP's tokenizer"):
        check_clip_tokenizer(llama3, "tokenizer.json")


def test_every_text_of_the_tables_is_needed_once():
    for table in (LLAMA3_IDS, CLIP_IDS):
        assert len({entry.text for entry in table}) == len(table)
