"""Model sizes read off a header: every number that the shapes of the tensors determine.

What shapes cannot say (how channels are grouped, how a head is split over the axes) may stand as JSON in the file's
metadata under `hyvideo.config`; without it the released models' values are assumed. Headers here carry the names of the
layout itself, without a prefix.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from ..errors import FileUnreadable, UnsupportedFile
from ..text import ClipEncoderConfig, LlamaEncoderConfig
from ..transformer import TransformerConfig
from ..vae import TinyVAEConfig, VAEConfig
from .read import Header

METADATA_KEY = "hyvideo.config"
MAX_DIM = 2**20  # the largest real one is a vocabulary of 128,320; more is a damaged file
MAX_BLOCKS = 256  # the largest known model has 60 in a row; what thousands would hold takes minutes to work out
RELEASED_HEAD_DIM, RELEASED_ROPE_AXES = 128, (16, 56, 56)
MAX_CONFIG = 100_000  # characters of that entry
VAE_LEVELS = 4
LLAMA_HEAD_DIM = 128
CLIP_HEAD_DIM = 64


def transformer_config_from_header(header: Header) -> TransformerConfig:
    """Sizes of a transformer with Tencent's names.

    Metadata may give rope_axes and rope_theta. Raises UnsupportedFile if a shape that is needed is missing or if the
    rope axes cannot be told, FileUnreadable if the metadata is damaged, InvalidSetting if sizes contradict each other.
    """
    given = _metadata_config(header, rope_axes=_are_axes, rope_theta=_is_positive)
    hidden_size, in_channels, *patch = _dims(header, "img_in.proj.weight", 5)
    (head_dim,) = _dims(header, "double_blocks.0.img_attn_q_norm.weight", 1)
    if "rope_axes" not in given:
        given["rope_axes"] = _rope_axes(head_dim)
    return TransformerConfig(
        in_channels=in_channels,
        out_channels=_dims(header, "final_layer.linear.weight", 2)[0] // math.prod(patch),
        hidden_size=hidden_size,
        num_heads=hidden_size // head_dim,
        num_double_blocks=_count(header, r"double_blocks\.(\d+)\."),
        num_single_blocks=_count(header, r"single_blocks\.(\d+)\."),
        mlp_ratio=_dims(header, "double_blocks.0.img_mlp.fc1.weight", 2)[0] / hidden_size,
        text_dim=_dims(header, "txt_in.input_embedder.weight", 2)[1],
        pooled_dim=_dims(header, "vector_in.in_layer.weight", 2)[1],
        num_refiner_blocks=_count(header, r"txt_in\.individual_token_refiner\.blocks\.(\d+)\."),
        patch_size=(patch[0], patch[1], patch[2]),
        has_guidance="guidance_in.mlp.0.weight" in header.tensors,
        **given,
    )


def vae_config_from_header(header: Header) -> VAEConfig | TinyVAEConfig:
    """Sizes of a VAE with Tencent's (diffusers') names, or of a tiny one with its own.

    Metadata may give norm_groups and scaling. Raises as above.
    """
    if "decoder.1.weight" in header.tensors:
        return _tiny_vae_config(header)
    given = _metadata_config(header, norm_groups=_is_size, scaling=_is_positive)
    has_encoder = any(name.startswith("encoder.") for name in header.tensors)
    blocks = "encoder.down_blocks" if has_encoder else "decoder.up_blocks"
    widths = [_dims(header, f"{blocks}.{level}.resnets.0.conv1.conv.weight", 5)[0] for level in range(VAE_LEVELS)]
    layers = _count(header, re.escape(blocks) + r"\.0\.resnets\.(\d+)\.")
    first, second, third, last = widths if has_encoder else reversed(widths)
    return VAEConfig(
        block_channels=(first, second, third, last),
        layers_per_block=layers if has_encoder else layers - 1,  # the decoder has one more
        latent_channels=_dims(header, "post_quant_conv.weight", 5)[0],
        has_encoder=has_encoder,
        **given,
    )


def _tiny_vae_config(header: Header) -> TinyVAEConfig:
    first, latent_channels, *_ = _dims(header, "decoder.1.weight", 4)
    second, third, last = (_dims(header, f"decoder.{place}.weight", 4)[0] for place in (8, 14, 20))
    given = _metadata_config(header, scaling=_is_positive)
    return TinyVAEConfig((first, second, third, last), latent_channels, **given)


def llama_config_from_header(header: Header) -> LlamaEncoderConfig:
    """Sizes of a Llama with bare names. Metadata may give head_dim, skip_layers, rope_theta and rms_norm_eps.

    Raises as above.
    """
    given = _metadata_config(
        header, head_dim=_is_size, skip_layers=_is_whole, rope_theta=_is_positive, rms_norm_eps=_is_positive
    )
    vocab_size, hidden_size = _dims(header, "embed_tokens.weight", 2)
    head_dim = given.setdefault("head_dim", LLAMA_HEAD_DIM)
    return LlamaEncoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=_dims(header, "layers.0.mlp.gate_proj.weight", 2)[0],
        num_layers=_count(header, r"layers\.(\d+)\."),
        num_heads=_dims(header, "layers.0.self_attn.q_proj.weight", 2)[0] // head_dim,
        num_kv_heads=_dims(header, "layers.0.self_attn.k_proj.weight", 2)[0] // head_dim,
        **given,
    )


def clip_config_from_header(header: Header) -> ClipEncoderConfig:
    """Sizes of a CLIP text tower with the names of its files (text_model.*).

    Metadata may give num_heads, bos_token_id and eos_token_id; else heads are 64 wide and the last two ids
    of the vocabulary start and end a text, as in CLIP-L. Raises as above.
    """
    given = _metadata_config(header, num_heads=_is_size, bos_token_id=_is_whole, eos_token_id=_is_whole)
    vocab_size, hidden_size = _dims(header, "text_model.embeddings.token_embedding.weight", 2)
    given.setdefault("num_heads", hidden_size // CLIP_HEAD_DIM)
    given.setdefault("bos_token_id", vocab_size - 2)
    given.setdefault("eos_token_id", vocab_size - 1)
    return ClipEncoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=_dims(header, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        num_layers=_count(header, r"text_model\.encoder\.layers\.(\d+)\."),
        max_positions=_dims(header, "text_model.embeddings.position_embedding.weight", 2)[0],
        **given,
    )


def _rope_axes(head_dim: int) -> tuple[int, int, int]:
    """How a head is split over (T, H, W): the released split, or the same proportions 2 : 7 : 7 in sixteenths."""
    if head_dim == RELEASED_HEAD_DIM:
        return RELEASED_ROPE_AXES
    time, space = head_dim / 8, 7 * head_dim / 16
    if time % 2 or space % 2:
        raise UnsupportedFile(
            f"The heads are {head_dim} wide, which does not tell how they are split over time, height and width. "
            f"Give config=TransformerConfig(..., rope_axes=(t, h, w)), or store rope_axes in the metadata under "
            f"{METADATA_KEY!r}."
        )
    return int(time), int(space), int(space)


def _metadata_config(header: Header, **fields: Callable[[Any], bool]) -> dict[str, Any]:
    """Those of `fields` that the metadata gives, each held to its rule; other entries are for other readers."""
    text = header.metadata.get(METADATA_KEY)
    if text is None:
        return {}
    if len(text) > MAX_CONFIG:
        raise FileUnreadable(f"The metadata entry {METADATA_KEY!r} has {len(text)} characters; {MAX_CONFIG} are read.")
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileUnreadable(f"The metadata entry {METADATA_KEY!r} is not JSON: {text[:60]!r}.") from error
    if not isinstance(given, dict):
        raise FileUnreadable(f"The metadata entry {METADATA_KEY!r} is not a table: {text[:60]!r}.")
    for name in fields.keys() & given.keys():
        if not fields[name](given[name]):
            raise FileUnreadable(f"The metadata entry {METADATA_KEY!r} gives {name} as {str(given[name])[:60]!r}.")
    return {
        name: tuple(given[name]) if isinstance(given[name], list) else given[name] for name in fields if name in given
    }


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_DIM


def _is_size(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _are_axes(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_size, value))


def _dims(header: Header, name: str, ndim: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there with so many dimensions."""
    shape = header.shape(name)
    if shape is None:
        raise UnsupportedFile(f"{name!r} is missing, without which the model's sizes are unknown.")
    if len(shape) != ndim or not all(0 < size <= MAX_DIM for size in shape):
        raise UnsupportedFile(f"{name!r} has shape {list(shape)}, but {ndim} dimensions of usual sizes are expected.")
    return shape


def _count(header: Header, pattern: str) -> int:
    """How many blocks 0, 1, 2, ... there are; a gap ends the count (what is beyond is then reported as unexpected)."""
    found = {int(match[1][:9]) for match in map(re.compile(pattern, re.ASCII).match, header.tensors) if match}
    count = next(index for index in range(len(found) + 1) if index not in found)
    if count > MAX_BLOCKS:
        raise UnsupportedFile(f"It has {count} blocks in a row ({pattern}); no known model has more than {MAX_BLOCKS}.")
    return count
