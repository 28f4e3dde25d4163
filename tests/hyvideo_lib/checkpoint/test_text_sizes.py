from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hyvideo_lib.checkpoint.folder import open_header
from hyvideo_lib.checkpoint.text_sizes import with_text_sizes
from hyvideo_lib.errors import FileUnreadable
from tests.gguf_file import entry, gguf_bytes

KEY = "hyvideo.config"


def gguf_sizes(tmp_path: Path, **metadata: Any) -> dict[str, Any] | None:
    """What is found in a GGUF file with these entries; two underscores stand for a dot."""
    table = {"general.architecture": "llama"} | {f"llama.{k.replace('__', '.')}": v for k, v in metadata.items()}
    path = tmp_path / "file.gguf"
    path.write_bytes(gguf_bytes({"x": entry(torch.zeros(2))}, table))
    text = with_text_sizes(open_header(path)).metadata.get(KEY)
    return json.loads(text) if text else None


def folder_sizes(tmp_path: Path, config: Any, metadata: dict[str, str] | None = None) -> dict[str, Any] | None:
    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors", metadata)
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = with_text_sizes(open_header(tmp_path)).metadata.get(KEY)
    return json.loads(text) if text else None


def test_a_gguf_files_entries_are_taken(tmp_path: Path) -> None:
    assert gguf_sizes(tmp_path, embedding_length=96, attention__head_count=4) == {"head_dim": 24}
    said = gguf_sizes(tmp_path, embedding_length=96, attention__head_count=4, attention__key_length=16)
    assert said == {"head_dim": 16}
    assert gguf_sizes(tmp_path, rope__freq_base=10000.0) == {"rope_theta": 10000.0}
    assert gguf_sizes(tmp_path) is None
    assert gguf_sizes(tmp_path, embedding_length=4, attention__head_count=0) is None


def test_another_architectures_entries_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    metadata = {"general.architecture": "hyvid", "llama.rope.freq_base": 3.0}
    path.write_bytes(gguf_bytes({"x": entry(torch.zeros(2))}, metadata))
    assert KEY not in with_text_sizes(open_header(path)).metadata


@pytest.mark.parametrize("value", ["much", "[" * 100_000, [1, 2], True, "null and void"], ids=lambda v: str(v)[:8])
def test_an_entry_that_is_no_number_is_named(tmp_path: Path, value: Any) -> None:
    with pytest.raises(FileUnreadable, match=r"file\.gguf gives llama\.rope\.freq_base as .*no number"):
        gguf_sizes(tmp_path, rope__freq_base=value)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ({"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4}, {"head_dim": 8}),
        ({"model_type": "llama", "head_dim": 16, "hidden_size": 32, "num_attention_heads": 4}, {"head_dim": 16}),
        ({"model_type": "llama", "head_dim": None, "rms_norm_eps": 0.1}, {"rms_norm_eps": 0.1}),
        ({"model_type": "llama", "rope_parameters": {"rope_theta": 7.0}}, {"rope_theta": 7.0}),
        ({"model_type": "llava", "text_config": {"model_type": "llama", "rope_theta": 7.0}}, {"rope_theta": 7.0}),
        (
            {"model_type": "clip", "text_config": {"model_type": "clip_text_model", "num_attention_heads": 3}},
            {"num_heads": 3},
        ),
        # The ids of start and end of text are wrong in many released configs.
        ({"model_type": "clip_text_model", "num_attention_heads": 3, "eos_token_id": 2}, {"num_heads": 3}),
        ({"model_type": "t5", "num_heads": 3}, None),
        ({}, None),
    ],
    ids=str,
)
def test_config_json_is_read_by_its_model_type(tmp_path: Path, config: Any, sizes: dict[str, Any] | None) -> None:
    assert folder_sizes(tmp_path, config) == sizes


def test_what_the_file_says_itself_is_kept(tmp_path: Path) -> None:
    config = {"model_type": "llama", "head_dim": 4}
    assert folder_sizes(tmp_path, config, {KEY: json.dumps({"head_dim": 8})}) == {"head_dim": 8}


def test_a_config_beside_a_single_file_is_not_taken_for_its_own(tmp_path: Path) -> None:
    """ComfyUI's folders hold many models."""
    folder_sizes(tmp_path, {"model_type": "llama", "head_dim": 4})
    assert KEY not in with_text_sizes(open_header(tmp_path / "model.safetensors")).metadata


@pytest.mark.parametrize(
    ("config", "warns"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, True),
        ({"rope_parameters": {"rope_type": "llama3"}}, True),
        ({"rope_parameters": {"rope_type": "default"}}, False),
        ({"rope_scaling": None}, False),
    ],
    ids=str,
)
def test_scaled_rope_is_warned_of(tmp_path: Path, config: Any, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        folder_sizes(tmp_path, {"model_type": "llama", **config})
    assert ("Llama 3.1" in caplog.text) == warns
