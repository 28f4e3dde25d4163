from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hyvideo_lib.errors import InvalidSetting, InvalidTemplate, UnsupportedFile
from hyvideo_lib.text import TEMPLATES, PromptTemplate, load_tokenizer, tokenize_prompt
from hyvideo_lib.text.tokens import opening_ids

BOS, EOT = 0, 3


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Path(__file__).parents[2] / "goldens" / "te_llama_tiny.tokenizer.json")


def merging_tokenizer() -> Tokenizer:
    """Joins a space with the word after it, as byte-level vocabularies do."""
    vocab = {"<|begin_of_text|>": 0, ":": 1, "_": 2, "c": 3, "_c": 4}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("_", "c")]))
    tokenizer.add_special_tokens(["<|begin_of_text|>"])
    return tokenizer


def test_an_empty_prompt_keeps_the_closing_token(tokenizer):
    tokens = tokenize_prompt(tokenizer, " \n", TEMPLATES["video"])
    assert tokens.ids[tokens.crop_start :] == (EOT,)
    assert tokens.tokens_cut == 0


def test_whitespace_around_a_prompt_changes_nothing(tokenizer):
    assert tokenize_prompt(tokenizer, "\n a cat ", TEMPLATES["video"]) == tokenize_prompt(
        tokenizer, "a cat", TEMPLATES["video"]
    )


@pytest.mark.parametrize("room", [1, 5, 12])
def test_the_limit_cuts_from_the_end_and_counts_what_it_cut(tokenizer, room):
    whole = tokenize_prompt(tokenizer, "a cat walks on the grass", TEMPLATES["video"])
    cut = tokenize_prompt(tokenizer, "a cat walks on the grass", TEMPLATES["video"], room)
    assert len(cut.ids) == cut.crop_start + room
    assert cut.ids == whole.ids[: len(cut.ids)]
    assert cut.tokens_cut == len(whole.ids) - len(cut.ids)


def test_an_image_prompt_may_be_longer_by_the_difference_of_the_openings(tokenizer):
    video, image = TEMPLATES["video"], TEMPLATES["image"]
    prompt = "cat " * 300
    assert len(tokenize_prompt(tokenizer, prompt, image, 16).ids) == len(opening_ids(tokenizer, video)) + 16


def test_a_custom_template_needs_only_its_text(tokenizer):
    tokens = tokenize_prompt(tokenizer, "cat", PromptTemplate("the video: {}."))
    words = [tokenizer.id_to_token(i) for i in tokens.ids]
    assert words == ["<|begin_of_text|>", "the", " ", "video", ":", " ", "cat", "."]
    assert words[tokens.crop_start :] == ["cat", "."]


def test_without_an_opening_nothing_is_cut(tokenizer):
    tokens = tokenize_prompt(tokenizer, "a cat", TEMPLATES["none"], 3)
    assert tokens.crop_start == 0
    assert [tokenizer.id_to_token(i) for i in tokens.ids] == ["<|begin_of_text|>", "a", " "]
    assert tokens.tokens_cut == 1


def test_a_token_across_the_boundary_belongs_to_the_prompt():
    tokens = tokenize_prompt(merging_tokenizer(), "c", PromptTemplate(":_{}"))
    assert tokens.ids == (0, 1, 4)
    assert tokens.crop_start == 2


def test_one_token_stays_even_of_nothing():
    tokens = tokenize_prompt(merging_tokenizer(), "", PromptTemplate(":{}"))
    assert tokens.ids == (0, 1)
    assert tokens.crop_start == 1


@pytest.mark.parametrize("in_file", [True, False])
def test_begin_of_text_comes_once_whether_or_not_the_file_adds_it(tokenizer, in_file):
    variant = Tokenizer.from_str(tokenizer.to_str())
    if not in_file:
        variant.post_processor = processors.ByteLevel(trim_offsets=False)
    ids = tokenize_prompt(variant, "a cat", TEMPLATES["video"]).ids
    assert ids.count(BOS) == 1
    assert ids == tokenize_prompt(tokenizer, "a cat", TEMPLATES["video"]).ids
    assert tokenize_prompt(variant, "a", PromptTemplate("<|begin_of_text|>{}")).ids.count(BOS) == 1


def test_a_tokenizer_without_begin_of_text_is_refused():
    other = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UnsupportedFile, match="begin_of_text"):
        tokenize_prompt(other, "a", TEMPLATES["none"])


def test_a_template_in_another_models_control_tokens_is_refused(tokenizer):
    with pytest.raises(InvalidTemplate, match=r"<\|im_start\|>"):
        tokenize_prompt(tokenizer, "a", PromptTemplate("<|im_start|>{}<|eot_id|>"))


def test_a_limit_leaves_room_for_a_token(tokenizer):
    with pytest.raises(InvalidSetting, match="max_length is 0"):
        tokenize_prompt(tokenizer, "a", TEMPLATES["video"], 0)
