from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from hyvideo_lib.errors import OutputExists, WrongKind
from hyvideo_lib.pipeline import load_latents, save_latents

LATENTS = torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(0))


def test_latents_come_back_with_their_settings(tmp_path):
    settings = {"prompt": 'ü \n "', "seed": 2**64 - 1}
    save_latents(tmp_path / "a.safetensors", LATENTS, settings)
    latents, found = load_latents(tmp_path / "a.safetensors")
    assert torch.equal(latents, LATENTS)
    assert found == settings


def test_a_file_that_is_there_is_not_replaced_unasked(tmp_path):
    save_latents(tmp_path / "a.safetensors", LATENTS, {})
    with pytest.raises(OutputExists):
        save_latents(tmp_path / "a.safetensors", LATENTS * 2, {})
    save_latents(tmp_path / "a.safetensors", LATENTS * 2, {}, overwrite=True)
    assert torch.equal(load_latents(tmp_path / "a.safetensors")[0], LATENTS * 2)


def test_latents_of_comfyui_are_taken(tmp_path):
    save_file({"latent_tensor": LATENTS.half(), "latent_format_version_0": torch.tensor([])}, tmp_path / "a.latent")
    latents, settings = load_latents(tmp_path / "a.latent")
    assert torch.equal(latents, LATENTS.half().float())
    assert settings == {}


@pytest.mark.parametrize("shape", [(2, 16, 2, 4, 6), (16, 2, 4, 6), (1, 16, 0, 4, 6)])
def test_other_tensors_are_refused(tmp_path, shape):
    save_file({"latents": torch.zeros(shape)}, tmp_path / "a.safetensors")
    with pytest.raises(WrongKind, match="latents"):
        load_latents(tmp_path / "a.safetensors")


@pytest.mark.parametrize("text", ["no JSON", "[1]", "[" * 10_000])
def test_unreadable_settings_do_not_cost_the_latents(tmp_path, text):
    save_file({"latents": LATENTS}, tmp_path / "a.safetensors", {"hyvideo.settings": text})
    latents, settings = load_latents(tmp_path / "a.safetensors")
    assert torch.equal(latents, LATENTS)
    assert settings == {}
