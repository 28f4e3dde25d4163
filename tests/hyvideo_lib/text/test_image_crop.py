from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hyvideo_lib.errors import InvalidTemplate
from hyvideo_lib.text import crop_image_text

IO = load_file(Path(__file__).parents[2] / "goldens" / "te_llama_tiny_i2v_crop.io.safetensors")
NUMBERS = {"crop_start": 162, "image_start": 5, "image_end": 29, "image_len": 24, "double_return_id": 8}


@pytest.mark.parametrize("prompt", ["p0", "p1"])
@pytest.mark.parametrize("interleave", [1, 2, 4, 6])
def test_rows_and_mask_are_the_references(prompt, interleave):
    states, mask = crop_image_text(
        IO[f"{prompt}.llm_hidden_states_skip2"],
        IO[f"{prompt}.input_ids"],
        IO[f"{prompt}.attention_mask_full"],
        interleave=interleave,
        **NUMBERS,
    )
    assert torch.equal(states, IO[f"{prompt}.interleave{interleave}.hidden_state"])
    assert torch.equal(mask, IO[f"{prompt}.interleave{interleave}.attention_mask"])


def test_a_batch_is_its_rows():
    names = ("llm_hidden_states_skip2", "input_ids", "attention_mask_full")
    one, two = ([IO[f"{prompt}.{name}"] for name in names] for prompt in ("p0", "p1"))
    both = [torch.cat(pair) for pair in zip(one, two, strict=True)]
    states, mask = crop_image_text(*both, interleave=4, **NUMBERS)
    for row, single in enumerate((one, two)):
        expected_states, expected_mask = crop_image_text(*single, interleave=4, **NUMBERS)
        assert torch.equal(states[row : row + 1], expected_states)
        assert torch.equal(mask[row : row + 1], expected_mask)


def test_a_prompt_without_the_templates_empty_lines_is_refused():
    with pytest.raises(InvalidTemplate, match="2 empty-line tokens"):
        crop_image_text(
            torch.zeros(1, 10 + 23, 3),
            torch.tensor([[0, 8, 1, 8, 1, 1, 1, 1, 1, 1]]),
            torch.ones(1, 10),
            interleave=1,
            **NUMBERS,
        )
