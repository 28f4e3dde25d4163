"""Where a text encoder's tokenizer is found, in which order, and what is done about a wrong one."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from hyvideo_lib.checkpoint import load_text_encoder
from hyvideo_lib.checkpoint.examine import Findings, examine
from hyvideo_lib.checkpoint.find_tokenizer import find_tokenizer
from hyvideo_lib.checkpoint.folder import open_header
from hyvideo_lib.errors import FileMissing, FileUnreadable, UnsupportedFile
from hyvideo_lib.text.llama3_tokenizer import LLAMA3_PACKAGE
from tests.hyvideo_lib.checkpoint import text_files as files
from tests.hyvideo_lib.checkpoint.text_files import under, weights_of, write

TINY = files.LLAMA_TOKENIZER


def named(name: str) -> Tokenizer:
    """A tokenizer that can be told from others: it knows one more word."""
    return Tokenizer(models.WordLevel({"<|begin_of_text|>": 0, "x": 1, name: 2}, unk_token="x"))


def bytes_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def find(path: Path, *args: object, **settings: object) -> Tokenizer:
    header = open_header(path)
    return find_tokenizer(header, examine(header), *(args or (None,)), **settings)


@pytest.fixture
def llama_file(tmp_path: Path) -> Path:
    return write(tmp_path / "models" / "l.safetensors", "llama", weights_of("llama"))


def test_the_likeliest_place_wins(tmp_path: Path) -> None:
    inside = under("model.", tokenizer=bytes_tensor(named("inside").to_str().encode()))
    path = write(tmp_path / "text_encoder" / "l.safetensors", "llama", inside(weights_of("llama")))
    places = {
        "beside": path.with_name("l.tokenizer.json"),
        "inside": None,
        "folder": path.with_name("tokenizer.json"),
        "sibling": tmp_path / "tokenizer" / "tokenizer.json",
        "elsewhere": tmp_path / "comfy" / "llama_tokenizer" / "tokenizer.json",
    }
    for name, place in places.items():
        if place:
            place.parent.mkdir(parents=True, exist_ok=True)
            named(name).save(str(place))
    elsewhere = (tmp_path / "absent", tmp_path / "comfy" / "llama_tokenizer")
    for name, place in places.items():
        assert find(path, None, places=elsewhere).token_to_id(name) == 2, name
        if place:
            place.unlink()
        else:
            write(path, "llama", weights_of("llama"))
    with pytest.raises(FileMissing, match=r"l\.tokenizer\.json, tokenizer\.json, and vocab\.json with merges\.txt"):
        find(path, None, places=elsewhere)


def test_one_that_is_named_counts_alone(llama_file: Path, tmp_path: Path) -> None:
    named("beside").save(str(llama_file.with_name("l.tokenizer.json")))
    named("chosen").save(str(tmp_path / "chosen.json"))
    assert find(llama_file, tmp_path / "chosen.json").token_to_id("chosen") == 2
    assert find(llama_file, named("given")).token_to_id("given") == 2
    with pytest.raises(FileMissing, match=r"absent\.json"):
        find(llama_file, tmp_path / "absent.json")


@pytest.mark.parametrize("name", ["tokenizer", "model.tokenizer"])
def test_the_tensor_in_the_file_is_read(tmp_path: Path, name: str) -> None:
    tensors = under("model.", **{name.replace(".", "__"): bytes_tensor(TINY.read_bytes())})(weights_of("llama"))
    path = write(tmp_path / "file.safetensors", "llama", tensors)
    assert load_text_encoder(path).tokenizer.to_str() == Tokenizer.from_file(str(TINY)).to_str()


@pytest.mark.parametrize("content", [b"\n\x0e\n\x05<unk>", b"\x00\x01", b"{}"], ids=["sentencepiece", "noise", "empty"])
def test_an_unusable_tensor_is_passed_over_with_a_warning(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = under("model.", tokenizer=bytes_tensor(content))(weights_of("llama"))
    path = write(tmp_path / "file.safetensors", "llama", tensors)
    with pytest.raises((FileUnreadable, UnsupportedFile), match=r"the tensor 'tokenizer' of file\.safetensors"):
        find(path)
    shutil.copy(TINY, path.with_name("tokenizer.json"))
    with caplog.at_level(logging.WARNING):
        assert find(path).get_vocab_size() == 81
    assert "A tokenizer that fits was taken instead" in caplog.text


# In GGUF files

TOKENS = ["a", "b", "ab", "c", "<|begin_of_text|>", "<|eot_id|>"]
GGUF_TOKENIZER = files.LLAMA_METADATA | {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.token_type": [1, 1, 1, 1, 3, 3],
}


def test_a_gguf_files_lists_are_read(tmp_path: Path) -> None:
    path = files.write_gguf(tmp_path / "l.gguf", weights_of("llama"), metadata=GGUF_TOKENIZER)
    tokenizer = load_text_encoder(path).tokenizer
    assert tokenizer.encode("abc<|eot_id|>", add_special_tokens=False).ids == [2, 3, 5]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer.ggml.model": "llama"}, "kind llama / llama-bpe"),
        ({"tokenizer.ggml.pre": "qwen2"}, "kind gpt2 / qwen2"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "incomplete"),
        ({"tokenizer.ggml.merges": 7}, "incomplete"),
        ({"tokenizer.ggml.merges": ["b c"]}, "bc is missing"),
    ],
)
def test_unusable_lists_are_named(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = files.write_gguf(tmp_path / "l.gguf", weights_of("llama"), metadata=GGUF_TOKENIZER | change)
    with pytest.raises((UnsupportedFile, FileUnreadable), match=words):
        load_text_encoder(path)


# CLIP


def test_clips_two_files_are_read_from_another_place(tmp_path: Path) -> None:
    path = write(tmp_path / "models" / "clip.safetensors", "clip", weights_of("clip"))
    folder = tmp_path / "sd1_tokenizer"
    folder.mkdir()
    tokens = ["a", "b", "a</w>", "b</w>", "ab</w>"]
    ids = {token: index for index, token in enumerate(tokens)} | {"<|startoftext|>": 38, "<|endoftext|>": 39}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    encoder = load_text_encoder(path, tokenizer_places=[folder])
    assert encoder.tokenize(["AB a"]) == [[38, 4, 2, 39]]


# Held to the real vocabularies


def sized(findings: Findings, vocab_size: int) -> Findings:
    """The findings on a model with so many embeddings."""
    return replace(findings, config=replace(findings.config, vocab_size=vocab_size))


def test_a_neighbours_tokenizer_is_passed_over_for_the_right_one(
    llama_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if importlib.util.find_spec(LLAMA3_PACKAGE) is None:
        pytest.skip("the real Llama-3 vocabulary is in the package llama-models (pip install llama-models)")
    shutil.copy(TINY, llama_file.with_name("tokenizer.json"))
    header = open_header(llama_file)
    with caplog.at_level(logging.WARNING):
        found = find_tokenizer(header, sized(examine(header), 128320), None)
    assert found.get_vocab_size() == 128259
    assert "is not Llama-3's tokenizer" in caplog.text
    assert "the package llama-models" in caplog.text


@pytest.mark.parametrize(("kind", "vocab_size", "model"), [("llama", 128320, "Llama-3"), ("clip", 49408, "CLIP")])
def test_a_wrong_tokenizer_is_refused_with_the_fix(
    tmp_path: Path, kind: str, vocab_size: int, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyvideo_lib.text.llama3_tokenizer.LLAMA3_PACKAGE", "a_package_that_is_not_there")
    path = write(tmp_path / f"{kind}.safetensors", kind, weights_of(kind))
    shutil.copy(TINY, path.with_name("tokenizer.json"))
    header = open_header(path)
    for chosen in (None, path.with_name("tokenizer.json"), named("given")):
        with pytest.raises(UnsupportedFile, match=rf"is not {model}'s tokenizer: .*Use the tokenizer\.json"):
            find_tokenizer(header, sized(examine(header), vocab_size), chosen)


def test_small_vocabularies_are_held_to_nothing(llama_file: Path) -> None:
    assert find(llama_file, TINY).get_vocab_size() == 81
