from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hyvideo_lib.errors import InvalidSetting, UnsupportedFile
from hyvideo_lib.text import TEMPLATES, LlamaEncoderConfig, LlamaTextEncoder, load_tokenizer
from hyvideo_lib.text.llm import RotaryAngles

GOLDENS = Path(__file__).parents[2] / "goldens"
IO = load_file(GOLDENS / "te_llama_tiny.io.safetensors")
WEIGHTS = {name: t.float() for name, t in load_file(GOLDENS / "te_llama_tiny.weights.safetensors").items()}
CONFIG = LlamaEncoderConfig(81, 32, 64, num_layers=5, num_heads=4, num_kv_heads=2, head_dim=8)
TEXT_LEN = 16
PROMPTS = (
    "a cat walks on the grass",
    "the quick brown fox jumps over a lazy dog and then the camera zooms to the style of video and light and color and "
    "shape and size",
)


def make_encoder(config: LlamaEncoderConfig = CONFIG, vocabulary: str = "te_llama_tiny.tokenizer.json"):
    encoder = LlamaTextEncoder(config, load_tokenizer(GOLDENS / vocabulary))
    encoder.load_weights({name: WEIGHTS[name] for name in encoder.weight_names()})
    return encoder


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


def assert_close(found: torch.Tensor, golden: torch.Tensor) -> None:
    assert found.shape == golden.shape
    assert (found - golden).abs().max() <= 2e-5 * golden.abs().max()


@pytest.mark.parametrize("name", ["video", "image"])
def test_tokens_are_the_references(encoder, name):
    golden_ids, golden_mask = IO[f"{name}.input_ids"], IO[f"{name}.attention_mask_full"].bool()
    for row, tokens in enumerate(encoder.tokenize(PROMPTS, TEMPLATES[name], TEXT_LEN)):
        assert list(tokens.ids) == golden_ids[row][golden_mask[row]].tolist()
        assert tokens.crop_start == {"video": 149, "image": 54}[name]


@pytest.mark.parametrize("name", ["video", "image"])
def test_states_and_mask_are_the_references(encoder, name):
    golden, golden_mask = IO[f"{name}.hidden_state"], IO[f"{name}.attention_mask"]
    states, mask = encoder.encode(encoder.tokenize(PROMPTS, TEMPLATES[name], TEXT_LEN))
    longest = int(golden_mask.sum(dim=1).max())
    assert torch.equal(mask, golden_mask[:, :longest])
    valid = mask.bool()
    assert_close(states[valid], golden[:, :longest][valid])
    assert not states[~valid].any()


@pytest.mark.parametrize("skip", range(5))
def test_every_depth_is_the_references(skip):
    golden, valid = IO[f"video.hidden_states.{5 - skip}"], IO["video.attention_mask_full"].bool()
    states = make_encoder(replace(CONFIG, skip_layers=skip))(IO["video.input_ids"])
    assert_close(states[valid], golden[valid])


def test_final_norm_is_there_on_request():
    encoder = make_encoder(replace(CONFIG, apply_final_norm=True))
    states, mask = encoder.encode(encoder.tokenize(PROMPTS, TEMPLATES["video"], TEXT_LEN))
    assert_close(states[mask.bool()], IO["video.hidden_state_with_apply_final_norm"][mask.bool()])


def test_two_layers_and_the_norm_are_not_built(encoder):
    assert WEIGHTS.keys() - encoder.weight_names() == {
        name for name in WEIGHTS if name.startswith(("layers.3.", "layers.4.", "norm."))
    }


def test_padding_and_company_do_not_change_a_prompt(encoder):
    together, mask = encoder.encode(encoder.tokenize(PROMPTS))
    for row, prompt in enumerate(PROMPTS):
        alone, alone_mask = encoder.encode(encoder.tokenize([prompt]))
        assert alone_mask.all()
        assert int(mask[row].sum()) == alone.shape[1]
        assert_close(together[row, : alone.shape[1]], alone[0])


def test_order_of_prompts_is_order_of_rows(encoder):
    states, mask = encoder.encode(encoder.tokenize(PROMPTS))
    swapped, swapped_mask = encoder.encode(encoder.tokenize(PROMPTS[::-1]))
    assert torch.equal(mask.flip(0), swapped_mask)
    assert_close(swapped.flip(0), states)


def test_it_is_built_on_the_meta_device_and_takes_the_given_tensors():
    encoder = LlamaTextEncoder(CONFIG, load_tokenizer(GOLDENS / "te_llama_tiny.tokenizer.json"))
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert not list(encoder.buffers())
    given = {name: WEIGHTS[name] for name in encoder.weight_names()}
    encoder.load_weights(given)
    assert all(tensor.data_ptr() == given[name].data_ptr() for name, tensor in encoder.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_rotary_angles_stay_exact_in_a_model_cast_to_16_bit():
    encoder = make_encoder().to(torch.bfloat16).to(torch.float32)
    weights = {name: WEIGHTS[name].bfloat16().float() for name in encoder.weight_names()}
    reference = make_encoder()
    reference.load_weights(weights)
    assert torch.equal(encoder(IO["video.input_ids"]), reference(IO["video.input_ids"]))


def test_states_come_in_the_dtype_of_the_parameters():
    encoder = make_encoder().to(torch.bfloat16)
    states, _ = encoder.encode(encoder.tokenize(["a cat"]))
    exact, _ = make_encoder().encode(encoder.tokenize(["a cat"]))
    assert states.dtype == torch.bfloat16
    assert (states.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_far_positions_turn_by_their_own_angle():
    x, positions = torch.empty(0, dtype=torch.float32), torch.tensor([[0, 1, 350, 100_000]])
    cos, sin = RotaryAngles(8, 500000.0)(x, positions)
    angles = positions.double()[..., None] * 500000.0 ** (-torch.arange(0, 8, 2).double() / 8)
    assert torch.allclose(cos[..., :4].double(), angles.cos(), atol=0.01)
    assert torch.allclose(sin[..., :4].double(), angles.sin(), atol=0.01)
    assert torch.equal(cos[..., :4], cos[..., 4:])
    assert torch.allclose(cos[:, :3, :4].double(), angles[:, :3].cos(), atol=3e-5)


def test_weights_of_another_size_are_refused_by_name():
    encoder = LlamaTextEncoder(CONFIG, load_tokenizer(GOLDENS / "te_llama_tiny.tokenizer.json"))
    given = {name: WEIGHTS[name] for name in encoder.weight_names()}
    shortened = {**given, "embed_tokens.weight": given["embed_tokens.weight"][:40]}
    with pytest.raises(UnsupportedFile, match=r"1 of another shape \(embed_tokens.weight \(40, 32\) for \(81, 32\)\)"):
        encoder.load_weights(shortened)
    with pytest.raises(UnsupportedFile, match="19 not expected"):
        encoder.load_weights(WEIGHTS)
    given.pop("layers.1.mlp.up_proj.weight")
    with pytest.raises(UnsupportedFile, match=r"1 missing \(layers.1.mlp.up_proj.weight\)"):
        encoder.load_weights(given)
    assert all(parameter.is_meta for parameter in encoder.parameters())


def test_a_tokenizer_of_a_larger_model_is_refused():
    config = replace(CONFIG, vocab_size=40)
    encoder = LlamaTextEncoder(config, load_tokenizer(GOLDENS / "te_llama_tiny.tokenizer.json"))
    with pytest.raises(UnsupportedFile, match="40 embeddings"):
        encoder.encode(encoder.tokenize(["a cat"]))


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": 0}, {"num_heads": 3}, {"head_dim": 7}, {"skip_layers": 5}, {"skip_layers": -1}],
    ids=str,
)
def test_impossible_sizes_are_refused(change):
    with pytest.raises(InvalidSetting, match=next(iter(change))):
        replace(CONFIG, **change)
