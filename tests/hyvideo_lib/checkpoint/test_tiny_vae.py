"""Files of the tiny VAE for previews (TAEHV): known, loaded, converted, and told from others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hyvideo_lib.checkpoint import inspect_file, load_any_vae, load_vae
from hyvideo_lib.checkpoint.convert import convert_file
from hyvideo_lib.errors import UnsupportedFile
from hyvideo_lib.vae import CausalVideoVAE, TinyVAE, TinyVAEConfig

CONFIG = TinyVAEConfig((8, 6, 4, 4))
LATENTS = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
ENCODER = {"encoder.0.weight": torch.zeros(4, 3, 3, 3), "encoder.2.conv.weight": torch.zeros(4, 8, 1, 1)}
"""Of the file's other half, which is not used."""


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {**TinyVAE(CONFIG).state_dict(), **ENCODER}


def expected() -> torch.Tensor:
    vae = TinyVAE(CONFIG)
    vae.load_state_dict({name: tensor for name, tensor in weights().items() if name.startswith("decoder.")})
    return vae.decode(LATENTS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(weights(), tmp_path / "taehv.safetensors")
    return tmp_path / "taehv.safetensors"


def test_the_file_is_known_and_said_to_be_for_previews(path):
    report = inspect_file(path)
    assert (report.kind, report.variant, report.supported) == ("vae", "taehv", True)
    assert "decodes previews" in report.notes[0]
    assert "taew2_1" in report.notes[0]
    assert report.config == {"channels": (8, 6, 4, 4), "latent_channels": 16, "scaling": 0.476986}


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
def test_it_is_loaded_frozen_under_any_prefix(tmp_path, prefix):
    save_file({f"{prefix}{name}": tensor for name, tensor in weights().items()}, tmp_path / "a.safetensors")
    vae = load_any_vae(tmp_path / "a.safetensors")
    assert isinstance(vae, TinyVAE)
    assert vae.config == CONFIG
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    assert torch.equal(vae.decode(LATENTS), expected())


def test_weights_in_16_bits_compute_in_what_is_asked_for(tmp_path):
    save_file({name: tensor.half() for name, tensor in weights().items()}, tmp_path / "a.safetensors")
    assert load_any_vae(tmp_path / "a.safetensors").decode(LATENTS).dtype == torch.float32
    found = load_any_vae(tmp_path / "a.safetensors", torch.bfloat16).decode(LATENTS)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected()).abs().mean() < 0.05


def test_who_needs_the_real_vae_is_told(path):
    with pytest.raises(UnsupportedFile, match="only decodes previews"):
        load_vae(path)


def test_the_real_one_is_loaded_by_the_same_function(tiny_files):
    assert isinstance(load_any_vae(tiny_files.vae), CausalVideoVAE)


def test_a_missing_tensor_is_named(tmp_path):
    tensors = weights()
    del tensors["decoder.16.conv.2.bias"]
    save_file(tensors, tmp_path / "a.safetensors")
    assert "decoder.16.conv.2.bias" in inspect_file(tmp_path / "a.safetensors").reason


def test_the_released_pickle_is_converted(tmp_path):
    torch.save(weights(), tmp_path / "taehv.pth")
    convert_file(tmp_path / "taehv.pth", tmp_path / "taehv.safetensors")
    assert torch.equal(load_any_vae(tmp_path / "taehv.safetensors").decode(LATENTS), expected())
