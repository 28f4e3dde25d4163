from pathlib import Path

import pytest

from hyvideo_lib.errors import FileMissing, FileUnreadable, UnsupportedFile
from hyvideo_lib.text import load_tokenizer
from hyvideo_lib.text.tokenizer import tokenizer_files_in, tokenizer_from_bytes

GOLDENS = Path(__file__).parents[2] / "goldens"
TINY = GOLDENS / "te_llama_tiny.tokenizer.json"


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


@pytest.mark.parametrize("content", [b"\xff\xfe binary", b"{}", b"", b"words", b"[1]"])
def test_another_kind_of_file_is_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(FileUnreadable, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_model_is_named_as_such(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    with pytest.raises(UnsupportedFile, match="SentencePiece"):
        load_tokenizer(tmp_path)


def test_a_file_too_large_for_a_tokenizer_is_not_read(tmp_path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(FileUnreadable, match="too many for a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_table_of_ranks_is_told_from_json():
    with pytest.raises(FileUnreadable, match="holds 2 token ranks"):
        tokenizer_from_bytes(b"YQ== 0\nYg== 1\n", "the tensor 'tokenizer'")
    with_mark = b"\xef\xbb\xbf" + TINY.read_bytes()
    assert tokenizer_from_bytes(with_mark, "here").to_str() == load_tokenizer(TINY).to_str()


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ((), []),
        (("vocab.json",), []),
        (("vocab.json", "merges.txt"), ["vocab.json"]),
        (("tokenizer.model",), ["tokenizer.model"]),
        (
            ("vocab.json", "merges.txt", "tokenizer.model", "tokenizer.json"),
            ["tokenizer.json", "vocab.json", "tokenizer.model"],
        ),
    ],
)
def test_a_folder_is_searched_for_every_form(tmp_path, names, found):
    for name in names:
        (tmp_path / name).touch()
    assert [file.name for file in tokenizer_files_in(tmp_path)] == found
