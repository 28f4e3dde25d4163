"""The modulation memo: the same numbers, computed once, from weights that never stay on the device."""

import pytest
import tiny
import torch
from tiny_lora import Adding

from hyvideo_lib.memory import BlockSwap, Offloader, memo
from hyvideo_lib.transformer import HunyuanVideoTransformer


class Copies:
    """Counts what comes to the device."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        self.bytes += tensor.nbytes
        return tensor.clone()


@pytest.fixture
def model():
    made = HunyuanVideoTransformer(tiny.TRANSFORMER)
    tiny.randomise(made, 0)
    return made.requires_grad_(False)


@torch.no_grad()
def run(model, source=None, timestep=500.0, clean=False):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 2, 4, 4, generator=generator)
    text, pooled = torch.randn(2, 5, 24, generator=generator), torch.randn(2, 20, generator=generator)
    timesteps = torch.tensor([timestep, timestep])
    return model(latents, timesteps, text, None, pooled, source=source, clean_first_frame=clean)


def offload(model, swap=None, copies=None) -> Offloader:
    return Offloader(model, model.blocks, len(model.double_blocks), swap, copies or Copies(), aside=model.modulations)


def modulation_bytes(model) -> int:
    return sum(tensor.nbytes for modulation in model.modulations for tensor in modulation.state_dict().values())


@pytest.mark.parametrize("swap", [None, BlockSwap(1, 1), BlockSwap(2, 2)])
@pytest.mark.parametrize("clean", [False, True])
def test_a_run_with_a_memo_is_bit_equal(model, swap, clean):
    expected = [run(model, timestep=t, clean=clean) for t in (900.0, 500.0)]
    copies = Copies()
    offloader = offload(model, swap, copies)
    offloader.load("cpu")
    for _ in range(2):
        for timestep, wanted in zip((900.0, 500.0), expected, strict=True):
            assert torch.equal(run(model, offloader, timestep, clean), wanted)


def test_modulations_never_stay_and_are_not_copied_again(model):
    copies = Copies()
    offloader = offload(model, copies=copies)
    apart = modulation_bytes(model)
    total = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert offloader.load("cpu") == offloader.num_bytes == total - apart == copies.bytes
    largest = model.double_blocks[0].img_mod.state_dict()
    assert offloader.visit_bytes == sum(tensor.nbytes for tensor in largest.values())
    run(model, offloader, 900.0)
    assert copies.bytes == total
    run(model, offloader, 900.0)
    assert copies.bytes == total
    run(model, offloader, 100.0)  # another noise level
    assert copies.bytes == total + apart


def test_filled_beforehand_each_weight_comes_once_for_all_steps(model):
    copies = Copies()
    offloader = offload(model, copies=copies)
    offloader.load("cpu")
    generator = torch.Generator().manual_seed(1)
    torch.randn(2, 4, 2, 4, 4, generator=generator)
    torch.randn(2, 5, 24, generator=generator)
    pooled = torch.randn(2, 20, generator=generator)
    before = copies.bytes
    with torch.no_grad():
        vecs = [model.condition(torch.tensor([t, t]), pooled, None, None).vec for t in (900.0, 500.0, 100.0)]
    offloader.fill(vecs)
    assert copies.bytes == before + modulation_bytes(model)
    for timestep in (900.0, 500.0, 100.0):
        run(model, offloader, timestep)
    assert copies.bytes == before + modulation_bytes(model)


def test_filling_forgets_nothing_that_it_was_asked_for(model, monkeypatch):
    """Though some of it came first in an earlier run, and is the oldest that is kept."""
    monkeypatch.setattr(memo, "KEPT", 3)
    copies = Copies()
    offloader = offload(model, copies=copies)
    offloader.load("cpu")
    with torch.no_grad():
        vecs = [model.condition(torch.full((2,), t), torch.ones(2, 20), None, None).vec for t in (900.0, 500.0, 100.0)]
        offloader.fill(vecs[:1])
        offloader.fill([model.condition(torch.full((2,), 7.0), torch.ones(2, 20), None, None).vec])
        before = copies.bytes
        for _ in range(2):
            offloader.fill(vecs)
    assert copies.bytes == before + modulation_bytes(model)


def test_a_visit_that_fails_leaves_the_weights_at_home(model):
    home = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    offloader = offload(model)
    offloader.load("cpu")
    with pytest.raises(ZeroDivisionError), offloader.visit(model.modulations[0]):
        raise ZeroDivisionError
    offloader.go_home()
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == home


def test_what_is_kept_is_bounded_and_gone_at_home(model, monkeypatch):
    monkeypatch.setattr(memo, "KEPT", 2)
    offloader = offload(model)
    offloader.load("cpu")
    sizes = []
    for timestep in (900.0, 500.0, 100.0, 900.0):
        run(model, offloader, timestep)
        sizes.append(offloader.memo_bytes)
    assert sizes[0] > 0
    assert sizes[1:] == [2 * sizes[0]] * 3
    offloader.go_home()
    assert offloader.memo_bytes == 0


def test_what_is_forgotten_is_computed_again(model):
    offloader = offload(model)
    offloader.load("cpu")
    expected, held = run(model, offloader), offloader.memo_bytes
    assert offloader.forget() == held > 0
    assert (offloader.memo_bytes, offloader.forget()) == (0, 0)
    assert torch.equal(run(model, offloader), expected)


def test_other_loras_other_vectors(model):
    offloader = offload(model)
    offloader.load("cpu")
    plain = run(model, offloader)
    linear = model.double_blocks[0].img_mod.linear
    linear.adapters = (Adding(lambda x, rows: torch.ones(1)),)
    changed = run(model, offloader)
    assert not torch.equal(changed, plain)
    assert torch.equal(changed, run(model))  # every weight in place again after the pass, as without a memo
    linear.adapters = ()
    assert torch.equal(run(model, offloader), plain)
