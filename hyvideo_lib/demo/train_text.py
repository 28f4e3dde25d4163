"""Second stage of the demo's training: both text encoders and their tokenizers, from random weights.

The language model learns to continue prompts, and to know at a prompt's last token what the prompt said about each of
the four attributes, in the state the transformer will read (third from the end). The CLIP-type encoder learns the same
from its pooled vector. The classifiers are thrown away.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..text import TEMPLATES, ClipEncoderConfig, ClipTextEncoder, LlamaEncoderConfig, LlamaTextEncoder
from .training import cosine_rate
from .world import BACKGROUNDS, COLORS, MOTIONS, SHAPES, Scene, all_prompts, random_caption

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

LLM_SPECIAL = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<pad>")
CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
VOCABULARY = 640
STEPS = 350
BATCH = 32
ATTRIBUTES: dict[str, Sequence[str]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "motion": tuple(MOTIONS),
    "background": tuple(BACKGROUNDS),
}
UNSAID = -100
"""Label of an attribute that a prompt leaves open (what cross entropy ignores)."""


def train_tokenizer(texts: Iterable[str], special: Sequence[str]) -> Tokenizer:
    """A small byte-level BPE: any text can be written with it, and the world's words are one token each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_tokenizers(folder: Path) -> tuple[Tokenizer, Tokenizer]:
    """Train both tokenizers on every prompt of the world and the templates; they are saved beside the weights."""
    from tokenizers import normalizers

    prompts = all_prompts()
    llm = train_tokenizer([*prompts, *(template.text for template in TEMPLATES.values())], LLM_SPECIAL)
    clip = train_tokenizer(prompts, CLIP_SPECIAL)
    clip.normalizer = normalizers.Lowercase()
    llm.save(str(folder / "llm.tokenizer.json"))
    clip.save(str(folder / "clip.tokenizer.json"))
    return llm, clip


def make_configs(llm: Tokenizer, clip: Tokenizer) -> tuple[LlamaEncoderConfig, ClipEncoderConfig]:
    return (
        LlamaEncoderConfig(
            vocab_size=llm.get_vocab_size(),
            hidden_size=192,
            intermediate_size=512,
            num_layers=5,
            num_heads=4,
            num_kv_heads=2,
            head_dim=48,
        ),
        ClipEncoderConfig(
            vocab_size=clip.get_vocab_size(),
            hidden_size=128,
            intermediate_size=512,
            num_layers=2,
            num_heads=4,
            max_positions=77,
            bos_token_id=CLIP_SPECIAL.index("<|startoftext|>"),  # a trainer numbers special tokens from 0
            eos_token_id=CLIP_SPECIAL.index("<|endoftext|>"),
        ),
    )


class Classifiers(nn.Module):
    """One Linear per attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()})

    def loss(self, states: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, float]:
        """Mean cross entropy over what was said, and the share of attributes that were right. states: [B, D]."""
        losses, right, said = [], 0, 0
        for name, head in self.heads.items():
            logits, label = head(states), labels[name]
            is_said = label != UNSAID
            if is_said.any():
                losses.append(F.cross_entropy(logits, label, ignore_index=UNSAID))
                right += int((logits.argmax(1) == label)[is_said].sum())
                said += int(is_said.sum())
        return torch.stack(losses).mean(), right / max(said, 1)


def caption_labels(captions: Sequence[tuple[str, Scene, frozenset[str]]]) -> dict[str, Tensor]:
    """Per attribute the index of what each caption says, or UNSAID."""
    return {
        name: torch.tensor(
            [values.index(getattr(scene, name)) if name in said else UNSAID for _, scene, said in captions]
        )
        for name, values in ATTRIBUTES.items()
    }


def train_text(folder: Path, seed: int = 0, steps: int = STEPS) -> tuple[LlamaTextEncoder, ClipTextEncoder]:
    """Train both encoders; `folder` receives the tokenizers. The language model comes back with all its layers."""
    torch.manual_seed(seed + 1)
    llm_tokenizer, clip_tokenizer = make_tokenizers(folder)
    llm_config, clip_config = make_configs(llm_tokenizer, clip_tokenizer)
    # With skip_layers=0 every layer and the norm exist; the wanted state is caught on its way through.
    llm = LlamaTextEncoder(replace(llm_config, skip_layers=0), llm_tokenizer, device="cpu")
    clip = ClipTextEncoder(clip_config, clip_tokenizer, device="cpu")
    taken: list[Tensor] = []
    layer = llm.model.layers[llm_config.num_built_layers - 1]
    hook = layer.register_forward_hook(lambda _m, _i, out: taken.append(out[0] if isinstance(out, tuple) else out))
    llm_heads, clip_heads = Classifiers(llm_config.hidden_size), Classifiers(clip_config.hidden_size)
    modules = nn.ModuleList([llm, clip, llm_heads, clip_heads])
    modules.train()
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, steps, 1.5e-3, warmup=30)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + 500_000 + step)
        captions = [random_caption(generator) for _ in range(BATCH)]
        labels = caption_labels(captions)
        prompts = [text for text, _, _ in captions]

        tokens = llm.tokenize(prompts)
        ids = nn.utils.rnn.pad_sequence([torch.tensor(item.ids) for item in tokens], batch_first=True)
        last = torch.tensor([len(item.ids) - 1 for item in tokens])
        taken.clear()
        top = llm(ids)
        known, llm_right = llm_heads.loss(taken[0][torch.arange(len(ids)), last], labels)
        start = min(item.crop_start for item in tokens)
        logits = top[:, start - 1 : -1] @ llm.model.embed_tokens.weight.T / llm_config.hidden_size**0.5
        target = ids[:, start:].masked_fill(torch.arange(start, ids.shape[1]) > last[:, None], UNSAID)
        following = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=UNSAID)

        pooled = clip_pooled(clip, prompts)
        clip_known, clip_right = clip_heads.loss(pooled, labels)
        loss = known + 0.3 * following + clip_known
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            log.info(
                "text step %d/%d following %.3f known %.4f (%.3f right) pooled %.4f (%.3f right)",
                *(step, steps, following.item(), known.item(), llm_right, clip_known.item(), clip_right),
            )
    hook.remove()
    modules.eval()
    return llm, clip


def clip_pooled(clip: ClipTextEncoder, prompts: Sequence[str]) -> Tensor:
    """Pooled vectors [B, P] with gradients."""
    rows = [torch.tensor(ids) for ids in clip.tokenize(prompts)]
    return clip(nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=clip.config.eos_token_id))
