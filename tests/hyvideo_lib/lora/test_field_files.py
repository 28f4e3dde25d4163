"""LoRA files in the forms that people have (tests/goldens/field), each against weights that are merged here by hand.

Nothing of the library reads the files here: names, alphas and formulas are written out. The files are for a transformer
of the demo's sizes, whose own weights do not matter.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from tiny import GOLDENS
from torch import Tensor

from hyvideo_lib.checkpoint import inspect_file
from hyvideo_lib.checkpoint.blueprint import build_meta_transformer
from hyvideo_lib.checkpoint.folder import open_header
from hyvideo_lib.checkpoint.sizes import transformer_config_from_header
from hyvideo_lib.demo import assets
from hyvideo_lib.lora import LoraUse, attach, find_lora, read_lora
from hyvideo_lib.transformer import HunyuanVideoTransformer

FIELD = GOLDENS / "field"
HIDDEN = 256
State = dict[str, Tensor]


def product(tensors: State, name: str, scale: float = 1.0, down: str = "lora_A", up: str = "lora_B") -> Tensor:
    return scale * tensors[f"{name}.{up}.weight"].float() @ tensors[f"{name}.{down}.weight"].float()


def four_layers(state: State, tensors: State, prefix: str, **options: float | str) -> None:
    """A LoRA on two layers of a double and two of a single block, in Tencent's names."""
    for layer in ("double_blocks.0.img_attn_qkv", "double_blocks.0.img_attn_proj", *SINGLE):
        state[f"{layer}.weight"] += product(tensors, prefix + layer, **options)


SINGLE = ("single_blocks.1.linear1", "single_blocks.1.linear2")


def diffusers(state: State, tensors: State, scale: float) -> None:
    """Parts of fused layers, in diffusers' names."""

    def delta(name: str) -> Tensor:
        return product(tensors, f"transformer.{name}", scale)

    for part, name in enumerate(("to_q", "to_k", "to_v")):
        rows = slice(part * HIDDEN, (part + 1) * HIDDEN)
        state["double_blocks.0.img_attn_qkv.weight"][rows] += delta(f"transformer_blocks.0.attn.{name}")
        state["single_blocks.1.linear1.weight"][rows] += delta(f"single_transformer_blocks.1.attn.{name}")
    state["double_blocks.0.img_attn_proj.weight"] += delta("transformer_blocks.0.attn.to_out.0")
    state["single_blocks.1.linear1.weight"][3 * HIDDEN :] += delta("single_transformer_blocks.1.proj_mlp")
    state["single_blocks.1.linear2.weight"] += delta("single_transformer_blocks.1.proj_out")


def regex_pattern(state: State, tensors: State) -> None:
    """alpha 16 of rank 16, but 4 where the pattern fits, which is everywhere."""
    for block in (0, 3):
        name = f"transformer.single_transformer_blocks.{block}.proj_out"
        state[f"single_blocks.{block}.linear2.weight"] += product(tensors, name, 4 / 16)


def half_flattened(state: State, tensors: State) -> None:
    for layer in ("double_blocks.0.img_attn_qkv", "double_blocks.0.img_attn_proj", *SINGLE):
        name = f"lora_unet_{layer}"
        scale = float(tensors[f"{name}.alpha"]) / 8
        state[f"{layer}.weight"] += product(tensors, name, scale, "lora_down", "lora_up")


def named_adapter(state: State, tensors: State) -> None:
    bare = {name.replace(".default_0", ""): tensor for name, tensor in tensors.items()}
    four_layers(state, bare, "transformer.")


def norms_and_biases(state: State, tensors: State) -> None:
    names = {
        "double_blocks.0.img_attn_qkv": "double_blocks.0.img_attn.qkv",
        "double_blocks.0.img_attn_proj": "double_blocks.0.img_attn.proj",
        **{name: name for name in SINGLE},
    }
    for ours, theirs in names.items():
        state[f"{ours}.weight"] += product(tensors, f"diffusion_model.{theirs}", 1.0, "lora_down", "lora_up")
    for stream in ("img", "txt"):
        for ours, theirs in (("q", "query"), ("k", "key")):
            name = f"diffusion_model.double_blocks.0.{stream}_attn.norm.{theirs}_norm.diff"
            state[f"double_blocks.0.{stream}_attn_{ours}_norm.weight"] += tensors[name]
    for block in (0, 1):
        norm = f"txt_in.individual_token_refiner.blocks.{block}.norm1"
        state[f"{norm}.weight"] += tensors[f"diffusion_model.{norm}.diff"]
        state[f"{norm}.bias"] += tensors[f"diffusion_model.{norm}.diff_b"]


def lokr(state: State, tensors: State) -> None:
    """Two whole matrices: alpha does not count."""
    for layer in ("double_blocks.0.img_attn_qkv", "double_blocks.0.img_attn_proj", *SINGLE):
        name = f"lora_unet_{layer.replace('.', '_')}"
        state[f"{layer}.weight"] += torch.kron(tensors[f"{name}.lokr_w1"], tensors[f"{name}.lokr_w2"])


FILES: dict[str, Callable[[State, State], None]] = {
    "A2_meta_plain_alpha.safetensors": lambda state, tensors: diffusers(state, tensors, 2 / 8),
    "A6_peft_folder": lambda state, tensors: four_layers(state, tensors, "base_model.model.", scale=32 / 8),
    "A7_fastvideo": lambda state, tensors: diffusers(state, tensors, 32 / 8),
    "M2_lokr_musubi.safetensors": lokr,
    "N1_comfy_extract_norm_diffs.safetensors": norms_and_biases,
    "P11_lora_unet_dots.safetensors": half_flattened,
    "P1_transformer_base_model_model.safetensors": lambda state, tensors: four_layers(
        state, tensors, "transformer.base_model.model."
    ),
    "P3_module.safetensors": lambda state, tensors: four_layers(state, tensors, "module."),
    "P7b_adapter_default_0.safetensors": named_adapter,
    "R3_regex_pattern.safetensors": regex_pattern,
}


def test_every_file_is_tried() -> None:
    assert {path.name for path in FIELD.iterdir()} == set(FILES)


@pytest.fixture(scope="module")
def model() -> HunyuanVideoTransformer:
    """Of the demo's sizes, with random weights."""
    config = transformer_config_from_header(open_header(assets.TRANSFORMER))
    generator = torch.Generator().manual_seed(0)
    made = build_meta_transformer(config).to_empty(device="cpu").requires_grad_(False)
    for name, parameter in made.named_parameters():
        size = 1.0 if name.endswith("norm.weight") else parameter.shape[-1] ** -0.5
        parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return made


def velocity(model: HunyuanVideoTransformer) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    config = model.config

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    with torch.no_grad():
        latents, text = draw(1, config.in_channels, 2, 8, 8), draw(1, 12, config.text_dim)
        return model(latents, torch.tensor([700.0]), text, None, draw(1, config.pooled_dim), guidance=2.0)


@pytest.mark.parametrize("file", FILES)
def test_a_file_acts_as_its_weights_merged_by_hand(model: HunyuanVideoTransformer, file: str) -> None:
    path = FIELD / file
    use = LoraUse(read_lora(path, model.config))
    assert use.warnings() == {}
    assert inspect_file(find_lora(path)).supported
    plain = velocity(model)
    with attach(model, [use]):
        found = velocity(model)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in kept.items()}
    FILES[file](state, load_file(find_lora(path)))
    try:
        model.load_state_dict(state)
        expected = velocity(model)
    finally:
        model.load_state_dict(kept)
    assert (found - expected).norm() <= 1e-3 * (expected - plain).norm()
