"""A whole model, random and tiny, as the four files that a user has."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

from hyvideo_lib.text import ClipEncoderConfig, ClipTextEncoder, LlamaEncoderConfig, LlamaTextEncoder
from hyvideo_lib.transformer import HunyuanVideoTransformer, TransformerConfig
from hyvideo_lib.vae import CausalVideoVAE, VAEConfig

WORDS = ["a", "red", "blue", "circle", "square", "moving", "left", "right", "up", "on", "the", "background"]
LLAMA_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CLIP_TOKENS = ["<|startoftext|>", "<|endoftext|>"]


@dataclass(frozen=True)
class TinyFiles:
    transformer: Path
    vae: Path
    llm: Path
    clip: Path

    def arguments(self) -> list[str]:
        """As the command line takes them."""
        return [word for name in vars(self) for word in (f"--{name}", str(getattr(self, name)))]


def word_tokenizer(special: list[str], path: Path) -> int:
    """Write a tokenizer of one token a word; returns the size of its vocabulary."""
    vocabulary = {word: index for index, word in enumerate(["<unk>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    tokenizer.save(str(path))
    return tokenizer.get_vocab_size()


def randomise(module: nn.Module, scale: float) -> dict[str, torch.Tensor]:
    """Fill a module with seeded noise (norms stay near 1); returns its state dict."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in module.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator) * scale
        state[name] = 1 + noise if "norm" in name and tensor.ndim == 1 and name.endswith("weight") else noise
    return state


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    folder = tmp_path_factory.mktemp("model")
    files = TinyFiles(*(folder / f"{name}.safetensors" for name in ("transformer", "vae", "llm", "clip")))
    llm_words = word_tokenizer(LLAMA_TOKENS, folder / "llm.tokenizer.json")
    clip_words = word_tokenizer(CLIP_TOKENS, folder / "clip.tokenizer.json")
    transformer = HunyuanVideoTransformer(
        TransformerConfig(16, 16, 32, 2, 1, 1, rope_axes=(4, 6, 6), text_dim=32, pooled_dim=16)
    )
    vae = CausalVideoVAE(VAEConfig((8, 8, 16, 16), layers_per_block=1, norm_groups=4))
    llm = LlamaTextEncoder(LlamaEncoderConfig(llm_words, 32, 64, 4, 4, 2, 8), Tokenizer(WordLevel({})), "cpu")
    clip_tokenizer = Tokenizer.from_file(str(folder / "clip.tokenizer.json"))
    clip = ClipTextEncoder(
        ClipEncoderConfig(clip_words, 16, 32, 2, 2, 16, bos_token_id=clip_words - 2, eos_token_id=clip_words - 1),
        clip_tokenizer,
        "cpu",
    )
    llm_state = randomise(llm.model, 0.1)
    for layer in (2, 3):  # a file has the layers that are not used, too
        llm_state |= {
            name.replace("layers.0.", f"layers.{layer}."): torch.zeros_like(tensor)
            for name, tensor in llm_state.items()
            if name.startswith("layers.0.")
        }
    clip_state = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in randomise(clip.model, 0.1).items()}
    for path, state, config in (
        (files.transformer, randomise(transformer, 0.15), {"rope_axes": [4, 6, 6]}),
        (files.vae, randomise(vae, 0.25), {"norm_groups": 4}),
        (files.llm, llm_state, {"head_dim": 8}),
        (files.clip, clip_state, {"num_heads": 2}),
    ):
        save_file({name: t.contiguous() for name, t in state.items()}, path, {"hyvideo.config": json.dumps(config)})
    return files
