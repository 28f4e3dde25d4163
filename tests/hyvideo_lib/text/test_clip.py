import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hyvideo_lib.errors import InvalidSetting, UnsupportedFile
from hyvideo_lib.text import ClipEncoderConfig, ClipTextEncoder

GOLDENS = Path(__file__).parents[2] / "goldens"
IO = load_file(GOLDENS / "te_clip_tiny.io.safetensors")
WEIGHTS = {name: t.float() for name, t in load_file(GOLDENS / "te_clip_tiny.weights.safetensors").items()}
BOS, EOS = 38, 39
CONFIG = ClipEncoderConfig(40, 24, 48, num_layers=3, num_heads=3, max_positions=10, bos_token_id=BOS, eos_token_id=EOS)


def make_tokenizer(bos: int = BOS, eos: int = EOS, adds_ends: bool = False) -> Tokenizer:
    """Word wN is id N."""
    words = {f"w{index}": index for index in range(40) if index not in (bos, eos)}
    tokenizer = Tokenizer(models.WordLevel({**words, "<|startoftext|>": bos, "<|endoftext|>": eos}, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    if adds_ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|startoftext|> $A <|endoftext|>",
            special_tokens=[("<|startoftext|>", bos), ("<|endoftext|>", eos)],
        )
    return tokenizer


def make_encoder(config: ClipEncoderConfig = CONFIG, tokenizer: Tokenizer | None = None) -> ClipTextEncoder:
    encoder = ClipTextEncoder(config, tokenizer or make_tokenizer(config.bos_token_id, config.eos_token_id))
    encoder.load_weights(WEIGHTS)
    return encoder


def assert_close(found: torch.Tensor, golden: torch.Tensor) -> None:
    assert found.shape == golden.shape
    assert (found - golden).abs().max() <= 2e-5 * golden.abs().max()


def test_pooled_vector_is_the_references():
    assert_close(make_encoder()(IO["input_ids"]), IO["pooler_output"])


@pytest.mark.parametrize("adds_ends", [True, False])
def test_prompts_become_the_references_ids_and_vectors(adds_ends):
    encoder = make_encoder(tokenizer=make_tokenizer(adds_ends=adds_ends))
    prompts = [" w3 w4 w5 ", "w7 w8 w9 w10 w11 w12 w13 w14 w15 w16"]
    assert encoder.tokenize(prompts) == [[BOS, 3, 4, 5, EOS], [BOS, *range(7, 15), EOS]]
    assert_close(encoder.encode(prompts), IO["pooler_output"])


def test_whitespace_around_a_prompt_changes_nothing():
    tokenizer = make_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="isolated")  # a space is a token of its own
    encoder = make_encoder(tokenizer=tokenizer)
    assert encoder.tokenize([" w3\n", "w3"]) == [[BOS, 3, EOS]] * 2


def test_company_does_not_change_a_prompt():
    encoder = make_encoder()
    prompts = ["w3", "", "w7 w8 w9 w10"]
    together = encoder.encode(prompts)
    for row, prompt in enumerate(prompts):
        assert_close(together[row : row + 1], encoder.encode([prompt]))


def test_the_first_end_counts_whatever_its_id():
    """transformers pools at the highest id when the end-of-text id is 2; the vector must be the end token's."""
    config = replace(CONFIG, eos_token_id=2)
    encoder = make_encoder(config)
    ids = torch.tensor([[BOS, 5, 2, 30, 2]])
    assert_close(encoder(ids), encoder(ids[:, :3]))
    assert not torch.allclose(encoder(ids), encoder(torch.tensor([[BOS, 6, 2]])), atol=1e-3)


def test_names_are_the_files_whatever_transformers_calls_them():
    encoder = ClipTextEncoder(CONFIG, make_tokenizer())
    assert encoder.weight_names() == WEIGHTS.keys()
    assert all(parameter.is_meta for parameter in encoder.parameters())
    encoder.load_weights(WEIGHTS)
    pointers = {tensor.data_ptr() for tensor in WEIGHTS.values()}
    assert {parameter.data_ptr() for parameter in encoder.parameters()} == pointers
    assert not any(tensor.is_meta for tensor in (*encoder.parameters(), *encoder.buffers()))


def test_vectors_come_in_the_dtype_of_the_parameters():
    encoder = make_encoder().to(torch.bfloat16)
    pooled = encoder.encode(["w3 w4 w5"])
    assert pooled.dtype == torch.bfloat16
    assert (pooled.float() - IO["pooler_output"][:1]).abs().max() < 0.05 * IO["pooler_output"].abs().max()


def test_a_long_prompt_is_mentioned_only_when_debugging(caplog):
    with caplog.at_level(logging.DEBUG, logger="hyvideo_lib.text.clip"):
        make_encoder().encode(["w3 " * 11])
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", "CLIP reads the first 8 of a prompt's 11 tokens")
    ]


def test_weights_with_a_projection_are_refused():
    with pytest.raises(UnsupportedFile, match=r"1 not expected \(text_projection.weight\)"):
        ClipTextEncoder(CONFIG, make_tokenizer()).load_weights({**WEIGHTS, "text_projection.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize(("bos", "eos"), [(BOS, 37), (37, EOS)])
def test_another_models_tokenizer_is_refused(bos, eos):
    with pytest.raises(UnsupportedFile, match="id 37"):
        ClipTextEncoder(CONFIG, make_tokenizer(bos, eos))


def test_an_id_without_an_embedding_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["stranger"])
    with pytest.raises(UnsupportedFile, match="id 40"):
        make_encoder(tokenizer=tokenizer).encode(["a stranger"])


@pytest.mark.parametrize(
    "change", [{"num_layers": 0}, {"num_heads": 5}, {"max_positions": 2}, {"eos_token_id": 40}], ids=str
)
def test_impossible_sizes_are_refused(change):
    with pytest.raises(InvalidSetting, match=next(iter(change))):
        replace(CONFIG, **change)
