"""What tensors cannot say of a text encoder's sizes, from where its file or folder says it.

GGUF files have it in their metadata, folders in a config.json. Both are put under the name that `sizes` reads.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ..errors import FileUnreadable
from .folder import ShardedHeader, read_json
from .read import Header
from .sizes import METADATA_KEY

logger = logging.getLogger(__name__)

# GGUF's key after the architecture's name -> ours.
_GGUF_KEYS = {
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
# config.json's key -> ours, by its model_type. CLIP's ids of start and end are wrong in released files: not taken.
_CONFIG_KEYS = {
    "llama": {"head_dim": "head_dim", "rope_theta": "rope_theta", "rms_norm_eps": "rms_norm_eps"},
    "clip_text_model": {"num_attention_heads": "num_heads"},
}
_SCALED_ROPE = (
    "%s has scaled rotary angles, as Llama 3.1 and later; they are not applied. HunyuanVideo was trained with "
    "llava-llama-3-8b, whose angles are plain: its states are what the transformer expects."
)


def with_text_sizes(header: Header) -> Header:
    """A header whose metadata has the sizes under METADATA_KEY, where they stand somewhere at all.

    What a file says under that key itself is kept. Raises FileUnreadable.
    """
    if METADATA_KEY in header.metadata:
        return header
    sizes = _sizes_of_gguf(header) if header.format == "gguf" else _sizes_of_folder(header)
    if not sizes:
        return header
    return replace(header, metadata=MappingProxyType({**header.metadata, METADATA_KEY: json.dumps(sizes)}))


def _sizes_of_gguf(header: Header) -> dict[str, Any]:
    family = header.metadata.get("general.architecture", "")
    if family != "llama":
        return {}
    if "rope_freqs.weight" in header.tensors:
        logger.warning(_SCALED_ROPE, header.path.name)
    values = {ours: _number(header, f"{family}.{theirs}") for theirs, ours in _GGUF_KEYS.items()}
    width, heads = (_number(header, f"{family}.{name}") for name in ("embedding_length", "attention.head_count"))
    return _with_head_dim({name: value for name, value in values.items() if value is not None}, width, heads)


def _number(header: Header, key: str) -> Any:
    """A number of the metadata, which is text there; None if it has no such entry. Raises FileUnreadable."""
    text = header.metadata.get(key)
    try:
        value = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if value is not None and type(value) not in (int, float):
        raise FileUnreadable(
            f"{header.path.name} gives {key} as {str(text)[:60]!r}, which is no number. Download it again."
        )
    return value


def _sizes_of_folder(header: Header) -> dict[str, Any]:
    path = header.path / "config.json"
    if not isinstance(header, ShardedHeader) or not path.is_file():
        return {}
    config = read_json(path)
    inner = config.get("text_config")
    config = inner if isinstance(inner, dict) else config
    rope = config.get("rope_parameters")  # newer versions of transformers keep what concerns rope here
    config = {**config, **rope} if isinstance(rope, dict) else config
    if (config.get("rope_scaling") or config.get("rope_type", "default")) not in ("default", None):
        logger.warning(_SCALED_ROPE, header.path.name)
    keys: Mapping[str, str] = _CONFIG_KEYS.get(str(config.get("model_type")), {})
    values = {ours: config[theirs] for theirs, ours in keys.items() if config.get(theirs) is not None}
    if "head_dim" not in keys:
        return values
    return _with_head_dim(values, config.get("hidden_size"), config.get("num_attention_heads"))


def _with_head_dim(values: dict[str, Any], width: Any, heads: Any) -> dict[str, Any]:
    """The width of a head, where it is not said, is what each head has of the whole."""
    if "head_dim" not in values and type(width) is int and type(heads) is int and 0 < heads <= width:
        values["head_dim"] = width // heads
    return values
