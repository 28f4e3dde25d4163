"""What travels: frozen, and short when it is printed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from graph import run


@pytest.fixture
def wires(pack, model, text_encoders, vae, embeds):
    options = pack.nodes.options
    values = [run(node)[0] for node in (options.Rope, options.Guidance, options.BlockSwapNode)]
    return [model, text_encoders, vae, embeds, *values, run(pack.nodes.text.PromptTemplateNode)[0]]


def test_what_travels_cannot_be_changed(wires):
    for value in wires:
        name = next(iter(vars(value)))
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)


def test_handles_print_short_and_without_paths_and_tensors(wires):
    """ComfyUI prints a failed node's inputs to whoever sent the prompt."""
    for value in wires[:-1]:
        shown = repr(value)
        assert len(shown) < 120, shown
        assert not any(word in shown for word in ("/", "\\", "tensor", "safetensors", "object at")), shown
    assert "tensor" not in repr(wires[-1])


def test_handles_say_what_they_are(model, text_encoders, vae, embeds):
    assert repr(model) == "HYV_MODEL(t2v, fp8_scale, computes in float32, attention auto)"
    assert repr(text_encoders).startswith("HYV_TEXT(")
    assert repr(vae) == "HYV_VAE(16 channels, float32)"
    assert repr(embeds).startswith("HYV_EMBEDS([")
