"""Moving weights, with a copy function that really copies though both ends are this CPU."""

from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyvideo_lib.memory import BlockSwap, Offloader, Traffic, module_bytes
from hyvideo_lib.transformer import HunyuanVideoTransformer


class Copier:
    """Counts what it copies; fails on request."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.copied = 0
        self.fail_after = fail_after

    def __call__(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        if self.fail_after is not None:
            self.fail_after -= 1
            if self.fail_after < 0:
                raise torch.OutOfMemoryError("out of memory")
        self.copied += tensor.nbytes
        return tensor.clone()


def make_model(num_double: int = 2, num_single: int = 2) -> HunyuanVideoTransformer:
    config = replace(tiny.TRANSFORMER, num_double_blocks=num_double, num_single_blocks=num_single)
    model = HunyuanVideoTransformer(config)
    tiny.randomise(model, 0)
    return model.requires_grad_(False)


def make_offloader(model: HunyuanVideoTransformer, swap: BlockSwap | None = None, copier: Copier | None = None):
    blocks = [*model.double_blocks, *model.single_blocks]
    return Offloader(model, blocks, len(model.double_blocks), swap, copier or Copier())


def addresses(model: torch.nn.Module) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def run(model: HunyuanVideoTransformer, source: Offloader | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 2, 4, 4, generator=generator)
    text = torch.randn(1, 5, 24, generator=generator)
    pooled = torch.randn(1, 20, generator=generator)
    return model(latents, torch.tensor([500.0]), text, None, pooled, source=source)


def test_everything_leaves_home_and_returns():
    model = make_model()
    home, expected = addresses(model), run(model)
    copier = Copier()
    offloader = make_offloader(model, copier=copier)
    assert offloader.load("cpu") == offloader.num_bytes == module_bytes(model) == copier.copied
    away = addresses(model)
    assert all(away[name] != home[name] for name in home)
    assert torch.equal(run(model), expected)
    offloader.go_home()
    assert addresses(model) == home
    assert offloader.loaded_bytes == 0


@pytest.mark.parametrize("swap", [BlockSwap(1, 1), BlockSwap(2, 2), BlockSwap(0, 1), BlockSwap(99, 99)])
def test_swapped_equals_resident_bit_for_bit(swap):
    model = make_model()
    home, expected = addresses(model), run(model)
    offloader = make_offloader(model, swap)
    offloader.load("cpu")
    assert offloader.num_swapped == min(swap.double_blocks, 2) + min(swap.single_blocks, 2)
    for _ in range(2):
        assert torch.equal(run(model, offloader), expected)
    at_home = {name for name, address in addresses(model).items() if address == home[name]}
    assert {name.split(".")[0] for name in at_home} <= {"double_blocks", "single_blocks"}
    assert len(at_home) == sum(
        1
        for i, block in enumerate([*model.double_blocks, *model.single_blocks])
        for _ in block.state_dict()
        if i in offloader_swapped(swap)
    )


def offloader_swapped(swap: BlockSwap) -> set[int]:
    from hyvideo_lib.memory.block_swap import choose_blocks

    return set(choose_blocks(swap, 2, 2))


def test_a_budget_keeps_blocks_at_home():
    model = make_model()
    expected = run(model)
    offloader = make_offloader(model)
    block = module_bytes(model.single_blocks[0])
    offloader.load("cpu", offloader.num_bytes - block // 2)
    assert offloader.num_swapped == 2  # and there is room for the one whose turn it is
    assert offloader.loaded_bytes + module_bytes(model.double_blocks[0]) <= offloader.num_bytes - block // 2
    assert torch.equal(run(model, offloader), expected)


@given(budget=st.integers(0, 110), wanted=st.integers(1, 110))
@settings(max_examples=40, deadline=None)
def test_what_makes_room_copies_nothing(budget, wanted):
    """Where memory ran out there is none to copy to. Percent of what the module takes."""
    copier = Copier()
    offloader = make_offloader(make_model(num_double=3, num_single=9), copier=copier)
    offloader.load("cpu", budget * offloader.num_bytes // 100)
    before, copied = offloader.loaded_bytes, copier.copied
    asked = wanted * offloader.num_bytes // 100
    freed = offloader.unload(asked)
    assert copier.copied == copied
    assert freed == before - offloader.loaded_bytes
    assert freed >= asked or offloader.num_swapped == 12


def test_blocks_that_never_stay_are_not_counted_as_if_they_did():
    """But for the places through which they come."""
    model = make_model()
    most = module_bytes(model) - sum(module_bytes(block) for block in model.blocks)
    places = 2 * module_bytes(model.double_blocks[0])
    assert make_offloader(model, BlockSwap(99, 99)).num_bytes == most + places


def test_blocks_leave_when_memory_is_asked_for_and_come_back():
    model = make_model()
    offloader = make_offloader(model)
    offloader.load("cpu")
    freed = offloader.unload(1)
    assert freed == module_bytes(model.double_blocks[0]) + module_bytes(model.single_blocks[0])
    assert offloader.num_swapped == 2  # one alone would come back when its turn comes
    assert offloader.load("cpu") == freed
    everything = offloader.unload(10**12)
    assert everything == sum(module_bytes(b) for b in [*model.double_blocks, *model.single_blocks])


def test_running_out_of_memory_leaves_nothing_behind():
    model = make_model()
    home, expected = addresses(model), run(model)
    offloader = make_offloader(model, copier=Copier(fail_after=30))
    with pytest.raises(torch.OutOfMemoryError):
        offloader.load("cpu")
    assert addresses(model) == home
    assert offloader.loaded_bytes == 0
    assert offloader.device is None
    assert torch.equal(run(model), expected)


def test_a_block_goes_home_when_its_run_is_interrupted():
    model = make_model()
    home = addresses(model)
    offloader = make_offloader(model, BlockSwap(2, 2))
    offloader.load("cpu")
    source = offloader.through(model.double_blocks)
    first = next(source)
    assert first.img_mlp.fc1.weight.data_ptr() != home["double_blocks.0.img_mlp.fc1.weight"]
    source.close()
    assert first.img_mlp.fc1.weight.data_ptr() == home["double_blocks.0.img_mlp.fc1.weight"]


def test_a_plain_copy_to_where_it_lies_costs_nothing():
    model = make_model()
    home = addresses(model)
    offloader = Offloader(model)
    offloader.load("cpu")
    assert addresses(model) == home
    assert offloader.loaded_bytes == offloader.num_bytes


def test_every_byte_that_is_copied_is_counted():
    model = make_model()
    copier = Copier()
    offloader = make_offloader(model, BlockSwap(1, 1, prefetch=0), copier)
    assert offloader.traffic == Traffic(0, 0.0)
    offloader.load("cpu")
    assert offloader.traffic == Traffic(copier.copied, 0.0)  # nothing computed that could have waited
    run(model, offloader)
    assert offloader.traffic == Traffic(copier.copied, None)  # two blocks in their turn: nobody knows the wait
    offloader.go_home()
    assert offloader.traffic.moved_bytes == copier.copied


def test_what_is_there_already_counts_as_nothing_moved():
    model = make_model()
    offloader = make_offloader(model, BlockSwap(1, 1), lambda tensor, device: tensor)
    offloader.load("cpu")
    run(model, offloader)
    assert offloader.traffic == Traffic(0, 0.0)
