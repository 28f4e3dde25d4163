"""CLIP-L's text tower: one vector for a whole prompt.

The vector is the final-normed state of the first end-of-text token, without CLIP's projection into the space it shares
with images. Layers are `transformers.CLIPTextModel`'s; the pooling is ours, because that class keeps an old rule (the
highest id instead of the first end-of-text) for configs with a certain end-of-text id.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import InvalidSetting, UnsupportedFile
from .weights import assign_weights, importing_transformers

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import CLIPTextModel

logger = logging.getLogger(__name__)

FILE_PREFIX = "text_model."
START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class ClipEncoderConfig:
    """Sizes of the text tower; the defaults are CLIP ViT-L/14's. Raises InvalidSetting."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    max_positions: int = 77
    hidden_act: str = "quick_gelu"
    bos_token_id: int = 49406
    eos_token_id: int = 49407

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise InvalidSetting(f"{name} of the CLIP encoder is {getattr(self, name)}, but must be at least 1.")
        if self.hidden_size % self.num_heads:
            raise InvalidSetting(
                f"hidden_size is {self.hidden_size} and num_heads {self.num_heads}, but heads must share it equally."
            )
        if self.max_positions < 3:
            raise InvalidSetting(f"max_positions is {self.max_positions}, but start, one token and end need 3.")
        for name in ("bos_token_id", "eos_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise InvalidSetting(
                    f"{name} is {getattr(self, name)}, but the vocabulary has ids 0 to {self.vocab_size - 1}."
                )


def build_clip(config: ClipEncoderConfig, device: str | torch.device = "meta") -> CLIPTextModel:
    """A `CLIPTextModel` of these sizes, in evaluation mode. Its names are the installed transformers' own."""
    with importing_transformers():
        from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device(device):
        model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                max_position_embeddings=config.max_positions,
                hidden_act=config.hidden_act,
                bos_token_id=config.bos_token_id,
                eos_token_id=config.eos_token_id,
                pad_token_id=config.eos_token_id,
            )
        )
    # No file holds position_ids, so on the meta device nothing else would give them numbers.
    for module in model.modules():
        if hasattr(module, "position_ids"):
            module.position_ids = torch.arange(config.max_positions)[None]
    return model.eval()


def check_ends(tokenizer: Tokenizer, config: ClipEncoderConfig) -> None:
    """Raises UnsupportedFile if the tokenizer numbers start and end of text otherwise than the config."""
    for name, wanted in ((START_OF_TEXT, config.bos_token_id), (END_OF_TEXT, config.eos_token_id)):
        found = tokenizer.token_to_id(name)
        if found != wanted:
            raise UnsupportedFile(
                f"the CLIP tokenizer has {'no' if found is None else f'id {found} for'} {name}, but the encoder "
                f"wants id {wanted}. Use the tokenizer.json that came with the CLIP weights."
            )


class ClipTextEncoder(nn.Module):
    """Prompts to pooled vectors. Built on the meta device unless told otherwise; `load_weights` fills it.

    Raises UnsupportedFile if the tokenizer numbers start and end of text otherwise than the config.
    """

    def __init__(self, config: ClipEncoderConfig, tokenizer: Tokenizer, device: str | torch.device = "meta") -> None:
        super().__init__()
        check_ends(tokenizer, config)
        self.config = config
        self.tokenizer = tokenizer
        self.model = build_clip(config, device)
        # Newer versions of transformers have no `text_model` level in memory; files always do.
        has_file_names = all(name.startswith(FILE_PREFIX) for name in self.model.state_dict())
        self._named = [self.model if has_file_names else nn.ModuleDict({FILE_PREFIX.rstrip("."): self.model})]

    @property
    def named_as_files(self) -> nn.Module:
        """The layers in a module whose names are those of files (`text_model.*`)."""
        return self._named[0]  # a list, so that the encoder does not count the layers twice

    def weight_names(self) -> frozenset[str]:
        """The tensors it wants, by the names that files use (`text_model.*`); a file may have more."""
        return frozenset(self.named_as_files.state_dict())

    def load_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take exactly the tensors of `weight_names` as frozen parameters, none copied. Raises UnsupportedFile."""
        assign_weights(self.named_as_files, state_dict, "CLIP text encoder")

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """Start, tokens, end for each prompt; longer ones are cut to max_positions, the end is kept."""
        config, room = self.config, self.config.max_positions - 2
        rows = []
        for prompt in prompts:
            ids: list[int] = self.tokenizer.encode(prompt.strip(), add_special_tokens=False).ids
            if len(ids) > room:
                logger.debug("CLIP reads the first %d of a prompt's %d tokens", room, len(ids))
            rows.append([config.bos_token_id, *ids[:room], config.eos_token_id])
        return rows

    def forward(self, input_ids: Tensor) -> Tensor:
        """Pooled vectors [B, D] of ids [B, L], each row holding the end-of-text id at least once.

        Causal, so what stands after that id (padding) changes nothing.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        states: Tensor = self.model(input_ids=input_ids, position_ids=positions).last_hidden_state  # [B, L, D], normed
        first_end = (input_ids == self.config.eos_token_id).int().argmax(dim=-1)
        return states[torch.arange(len(states), device=states.device), first_end]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Pooled vectors [B, D], on the device and in the dtype of the parameters. Raises UnsupportedFile."""
        rows = self.tokenize(prompts)
        highest = max(max(row) for row in rows)
        if highest >= self.config.vocab_size:
            raise UnsupportedFile(
                f"the tokenizer made id {highest}, but the CLIP encoder has {self.config.vocab_size} embeddings. "
                "Use the tokenizer.json that came with the CLIP weights."
            )
        longest = max(map(len, rows))
        padded = [row + [self.config.eos_token_id] * (longest - len(row)) for row in rows]
        return self(torch.tensor(padded, device=next(self.parameters()).device))
