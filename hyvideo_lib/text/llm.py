"""The language model: token states of a Llama-type network, taken below its top.

HunyuanVideo reads the third hidden state from the end, before any final norm, so the last two layers and the norm are
not built at all. The layers are `transformers.LlamaModel`'s; two of its parts are replaced: the norm, and the rotary
embedding, whose buffers could neither stand on the meta device nor survive a cast to 16 bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..errors import InvalidSetting, UnsupportedFile
from .templates import TEMPLATES, PromptTemplate
from .tokens import PromptTokens, tokenize_prompt
from .weights import assign_weights, importing_transformers

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaModel


@dataclass(frozen=True)
class LlamaEncoderConfig:
    """Sizes of the language model; the defaults are llava-llama-3-8b's.

    num_layers: of the whole network, as its file has them. skip_layers: how far from the end the states are taken;
    0 is the very last, normed state. apply_final_norm: norm states taken earlier too (off in the reference).
    Raises InvalidSetting.
    """

    vocab_size: int = 128320
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    skip_layers: int = 2
    apply_final_norm: bool = False

    def __post_init__(self) -> None:
        sizes = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
        )
        for name in sizes:
            if getattr(self, name) < 1:
                raise InvalidSetting(f"{name} of the language model is {getattr(self, name)}, but must be at least 1.")
        if self.num_heads % self.num_kv_heads:
            raise InvalidSetting(
                f"num_heads is {self.num_heads} and num_kv_heads {self.num_kv_heads}, but each key head must serve "
                "equally many query heads: num_heads must be a multiple of num_kv_heads."
            )
        if self.head_dim % 2:
            raise InvalidSetting(f"head_dim is {self.head_dim}, but rotary embedding needs an even number.")
        if not 0 <= self.skip_layers < self.num_layers:
            raise InvalidSetting(
                f"skip_layers is {self.skip_layers}, but {self.num_layers} layers allow 0 to {self.num_layers - 1}."
            )

    @property
    def num_built_layers(self) -> int:
        """Layers that the wanted states pass through."""
        return self.num_layers - self.skip_layers

    @property
    def has_norm(self) -> bool:
        """Whether the states are normed, as the last of `LlamaModel`'s hidden states is."""
        return self.apply_final_norm or self.skip_layers == 0


class RotaryAngles(nn.Module):
    """Rotary cosines and sines computed from two numbers, in float32, with no buffer to place or to round."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, L, head_dim] of the positions [B, L], on the device and in the dtype of x."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=x.device) / self.head_dim
        angles = position_ids.to(x.device, torch.float32)[..., None] * (1.0 / self.theta**exponents)
        angles = torch.cat([angles, angles], dim=-1)  # Llama rotates halves, not neighbours
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def build_llama(config: LlamaEncoderConfig, device: str | torch.device = "meta") -> LlamaModel:
    """A `LlamaModel` of the layers that the config needs, in evaluation mode; its last_hidden_state is the wanted one.

    Its state dict has the bare names: embed_tokens.weight, layers.{0..num_built_layers - 1}.*, and norm.weight only
    where the config asks for a norm. It holds no buffers.
    """
    with importing_transformers():
        from transformers import LlamaConfig, LlamaModel

    with torch.device(device):
        model = LlamaModel(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_built_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                rms_norm_eps=config.rms_norm_eps,
            )
        )
    if not config.has_norm:
        model.add_module("norm", nn.Identity())
    rotary = RotaryAngles(config.head_dim, config.rope_theta)
    for module in model.modules():
        if hasattr(module, "rotary_emb"):  # older versions have one in every attention layer as well
            module.rotary_emb = rotary
    return model.eval()


class LlamaTextEncoder(nn.Module):
    """Prompts to token states. Built on the meta device unless told otherwise; `load_weights` fills it.

    It computes in the dtype of its parameters, which must be one: cast with `.to(dtype)` where a file mixes them.
    """

    def __init__(self, config: LlamaEncoderConfig, tokenizer: Tokenizer, device: str | torch.device = "meta") -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.model = build_llama(config, device)

    @property
    def named_as_files(self) -> nn.Module:
        """The layers in a module whose names are those of files, bare."""
        return self.model

    @property
    def blocks(self) -> list[nn.Module]:
        """Its layers, in the order they compute."""
        return list(self.model.layers)

    def weight_names(self) -> frozenset[str]:
        """The tensors it wants, by their bare `LlamaModel` names; a file has more, which are not needed."""
        return frozenset(self.model.state_dict())

    def load_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take exactly the tensors of `weight_names` as frozen parameters, none copied. Raises UnsupportedFile."""
        assign_weights(self.model, state_dict, "language model")

    def tokenize(
        self, prompts: Sequence[str], template: PromptTemplate = TEMPLATES["video"], max_length: int = 256
    ) -> list[PromptTokens]:
        """Each prompt in the template as token ids; needs no weights. Raises InvalidTemplate, UnsupportedFile."""
        return [tokenize_prompt(self.tokenizer, prompt, template, max_length) for prompt in prompts]

    def forward(self, input_ids: Tensor) -> Tensor:
        """States [B, L, D] of ids [B, L]. Causal, so rows to the right (padding) change nothing before them."""
        states: Tensor = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        return states

    def encode(self, tokens: Sequence[PromptTokens]) -> tuple[Tensor, Tensor]:
        """States of the prompts' own tokens [B, L, D] and their mask [B, L] (int64), L the longest prompt's length.

        Rows outside the mask are zero. On the device and in the dtype of the parameters. Raises UnsupportedFile for
        ids that the model has no embedding for.
        """
        highest = max(max(row.ids) for row in tokens)
        if highest >= self.config.vocab_size:
            raise UnsupportedFile(
                f"the tokenizer made id {highest}, but the language model has {self.config.vocab_size} embeddings. "
                "Tokenizer and weights are of different models: use the tokenizer.json that came with the weights."
            )
        device = self.model.embed_tokens.weight.device
        input_ids = pad_sequence([torch.tensor(row.ids) for row in tokens], batch_first=True).to(device)
        states = self(input_ids)
        kept = [rows[item.crop_start : len(item.ids)] for rows, item in zip(states, tokens, strict=True)]
        mask = pad_sequence([rows.new_ones(len(rows), dtype=torch.int64) for rows in kept], batch_first=True)
        return pad_sequence(kept, batch_first=True), mask
