import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from hyvideo_lib.errors import EmptyPrompt, Interrupted, InvalidSetting
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.text import (
    TEMPLATES,
    ClipEncoderConfig,
    ClipTextEncoder,
    LlamaEncoderConfig,
    LlamaTextEncoder,
    TextEmbeds,
    encode_prompt,
    load_tokenizer,
    stack_embeds,
)

GOLDENS = Path(__file__).parents[2] / "goldens"


@pytest.fixture(scope="module")
def llm():
    torch.manual_seed(0)
    config = LlamaEncoderConfig(81, 32, 64, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8)
    return LlamaTextEncoder(config, load_tokenizer(GOLDENS / "te_llama_tiny.tokenizer.json"), device="cpu")


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    words = ["?", "a", "cat", "dog", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return ClipTextEncoder(ClipEncoderConfig(6, 24, 48, 2, 2, 10, bos_token_id=4, eos_token_id=5), tokenizer, "cpu")


def test_one_prompt_is_a_batch_of_one(llm, clip):
    embeds = encode_prompt("a cat", llm, clip)
    assert embeds.text_embeds.shape == (1, 4, 32)  # a, space, cat, end of turn
    assert embeds.text_mask.tolist() == [[1, 1, 1, 1]]
    assert embeds.text_mask.dtype == torch.int64
    assert embeds.pooled_embeds.shape == (1, 24)
    assert embeds.tokens_cut == (0,)
    assert not embeds.text_embeds.requires_grad
    assert not embeds.pooled_embeds.requires_grad


def test_both_encoders_see_the_prompt_without_its_margin(llm, clip):
    plain, padded = encode_prompt("a cat", llm, clip), encode_prompt("\n a cat  ", llm, clip)
    assert torch.equal(plain.text_embeds, padded.text_embeds)
    assert torch.equal(plain.pooled_embeds, padded.pooled_embeds)


def test_the_template_reaches_only_the_language_model(llm, clip):
    video, image = (encode_prompt("a cat", llm, clip, TEMPLATES[name]) for name in ("video", "image"))
    assert torch.equal(video.pooled_embeds, image.pooled_embeds)
    assert video.text_embeds.shape == image.text_embeds.shape
    assert not torch.allclose(video.text_embeds, image.text_embeds, atol=1e-3)


def test_several_prompts_are_padded_on_the_right(llm, clip):
    embeds = encode_prompt(["", "a cat on the grass"], llm, clip)
    assert embeds.text_mask.tolist() == [[1] + [0] * 9, [1] * 10]
    assert not embeds.text_embeds[0, 1:].any()
    assert repr(embeds) == "TextEmbeds(prompts=2, tokens=[1, 10], tokens_cut=[0, 0])"


def test_a_long_prompt_is_cut_and_the_count_told(llm, clip, caplog):
    with caplog.at_level(logging.WARNING):
        embeds = encode_prompt(["a cat", "a cat on the grass"], llm, clip, max_length=4)
    assert embeds.tokens_cut == (0, 6)
    assert embeds.text_mask.tolist() == [[1] * 4] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "prompt 2 of 2 is too long: its last 6 tokens are not used (limit 4). Shorten it."
    ]


def test_no_prompt_at_all_is_refused(llm, clip):
    with pytest.raises(EmptyPrompt):
        encode_prompt([], llm, clip)


def test_text_that_a_wrong_decoding_made_is_refused_and_line_breaks_are_one(llm, clip):
    with pytest.raises(InvalidSetting, match=r"Prompt 2 of 2 holds U\+0000 at character 2"):
        encode_prompt(["a cat", "c\0a\0t"], llm, clip)
    windows, plain = (encode_prompt(text, llm, clip) for text in ("a cat\r\na dog", "a cat\na dog"))
    assert torch.equal(windows.text_embeds, plain.text_embeds)


def test_interruption_is_noticed_between_the_encoders(llm, clip, monkeypatch):
    host = HeadlessHost()
    encode = llm.encode
    monkeypatch.setattr(llm, "encode", lambda tokens: (encode(tokens), host.cancel())[0])
    monkeypatch.setattr(clip, "encode", lambda prompts: pytest.fail("went on after the user cancelled"))
    with pytest.raises(Interrupted):
        encode_prompt("a cat", llm, clip, host=host)


def make_embeds(*lengths: int) -> TextEmbeds:
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    return TextEmbeds(torch.randn(*mask.shape, 3) * mask[..., None], mask, torch.randn(len(lengths), 2), lengths)


def test_a_row_is_one_prompt_at_its_real_length(llm, clip):
    both = encode_prompt(["a cat on the grass", "a cat"], llm, clip)
    alone = encode_prompt("a cat", llm, clip)
    for row in (both.row(1), both.row(-1)):
        assert torch.equal(row.text_mask, alone.text_mask)
        assert torch.allclose(row.text_embeds, alone.text_embeds, atol=1e-5)
        assert torch.allclose(row.pooled_embeds, alone.pooled_embeds, atol=1e-5)
    assert make_embeds(5, 2).row(1).tokens_cut == (2,)
    with pytest.raises(IndexError):
        both.row(2)


def test_stacked_batches_come_apart_again():
    negative, positive = make_embeds(1), make_embeds(5, 2)
    both = stack_embeds(negative, positive)
    assert both.text_mask.sum(dim=1).tolist() == [1, 5, 2]
    assert both.tokens_cut == (1, 5, 2)
    for index, (part, row) in enumerate([(negative, 0), (positive, 0), (positive, 1)]):
        assert torch.equal(both.row(index).text_embeds, part.row(row).text_embeds)
        assert torch.equal(both.row(index).pooled_embeds, part.row(row).pooled_embeds)


def test_repeats_of_a_prompt_stand_together():
    embeds = make_embeds(4, 2)
    repeated = embeds.repeat(3)
    assert len(repeated) == 6
    assert repeated.tokens_cut == (4, 4, 4, 2, 2, 2)
    for index in range(6):
        assert torch.equal(repeated.row(index).text_embeds, embeds.row(index // 3).text_embeds)
        assert torch.equal(repeated.row(index).pooled_embeds, embeds.row(index // 3).pooled_embeds)


def test_a_cast_leaves_the_mask_alone():
    embeds = make_embeds(4, 2).to("cpu", torch.float16)
    assert embeds.text_embeds.dtype == embeds.pooled_embeds.dtype == torch.float16
    assert embeds.text_mask.dtype == torch.int64


def test_importing_the_package_imports_no_model_library():
    code = "import sys, hyvideo_lib.text; sys.exit(bool({'transformers', 'tokenizers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0
