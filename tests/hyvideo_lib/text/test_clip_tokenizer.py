import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyvideo_lib.errors import FileUnreadable, UnsupportedFile
from hyvideo_lib.text import load_tokenizer
from hyvideo_lib.text.clip_tokenizer import build_clip_tokenizer
from hyvideo_lib.text.llama3_tokenizer import _byte_letters

MERGES = ["c a", "ca t</w>", "d o", "do g</w>", "Ã ©</w>", "' s</w>", "! !</w>"]
TEXTS = [
    "a cat",
    "  CAT\n\ndog's  ",
    "it's 123 cats!!",
    "cafe\u0301 café",
    "<|endoftext|>x<|startoftext|>",
    "ＡＢＣ ﬁ 日本語 🐈",
    "",
]


def write_folder(folder: Path, merges: list[str] = MERGES) -> Path:
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split(" ")) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Ours, and what transformers makes of the same folder."""
    from transformers import CLIPTokenizerFast

    folder = write_folder(tmp_path_factory.mktemp("clip"))
    return build_clip_tokenizer(folder), CLIPTokenizerFast.from_pretrained(str(folder))


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(both, text):
    ours, theirs = both
    assert ours.encode(text).ids == theirs(text).input_ids


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_is_read_as_transformers_reads_it(both, text):
    ours, theirs = both
    assert ours.encode(text).ids == theirs(text).input_ids


def test_any_text_in_the_real_vocabulary(clip_folder):
    from transformers import CLIPTokenizerFast

    ours, theirs = load_tokenizer(clip_folder), CLIPTokenizerFast.from_pretrained(str(clip_folder))
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text).input_ids


def test_either_file_stands_for_the_pair(tmp_path):
    write_folder(tmp_path)
    for name in ("", "vocab.json", "merges.txt"):
        assert load_tokenizer(tmp_path / name).encode("cat").tokens == ["<|startoftext|>", "cat</w>", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("vocab.json", "[]", "not a table from tokens"),
        ("vocab.json", "{", "not a table of tokens"),
        ("vocab.json", '{"a": "b"}', "not a table from tokens"),
        ("merges.txt", "a b\nabc\n", "no pair of pieces in line 2"),
        ("merges.txt", "q q\n", "do not belong together"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, content, words):
    write_folder(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(FileUnreadable, match=words):
        build_clip_tokenizer(tmp_path)


def test_a_missing_half_is_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(FileUnreadable, match=r"merges\.txt"):
        build_clip_tokenizer(tmp_path)


@pytest.mark.parametrize("vocab", [{"a": 0, "Ġa": 1}, {"<|startoftext|>": 0, "<|endoftext|>": 1}], ids=["gpt2", "bare"])
def test_another_models_vocabulary_is_refused(tmp_path, vocab):
    write_folder(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(UnsupportedFile, match="not CLIP's vocabulary"):
        build_clip_tokenizer(tmp_path)
