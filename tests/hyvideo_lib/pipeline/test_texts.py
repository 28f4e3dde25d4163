"""Text encoders whose layers come one by one, with a copy function that really copies though both ends are this CPU."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from hyvideo_lib.checkpoint import load_text_encoder
from hyvideo_lib.demo import assets
from hyvideo_lib.errors import Interrupted
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.memory import Offloader
from hyvideo_lib.pipeline import (
    Clock,
    Files,
    GenerateRequest,
    Precision,
    TextStage,
    bringing_layers,
    offload_text_encoder,
)
from hyvideo_lib.sampling import GuidanceConfig
from hyvideo_lib.text import TEMPLATES, encode_prompt

PROMPTS = ["a red circle moving left on a black background", ""]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoders():
    return load_text_encoder(assets.LLM), load_text_encoder(assets.CLIP)


def streaming(llm, can_stream: bool, copy_fn=lambda tensor, device: tensor.clone()) -> Offloader:
    """As `offload_text_encoder` makes it, on a device that is this CPU and yet away from home."""
    return Offloader(llm, llm.blocks, copy_fn=copy_fn, can_stream_fn=lambda device: can_stream, keep_pinned=False)


def addresses(module: nn.Module) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("can_stream", [False, True])
def test_layers_that_come_one_by_one_give_the_same_bits(encoders, can_stream):
    llm, clip = encoders
    home, expected = addresses(llm), encode_prompt(PROMPTS, llm, clip)
    offloader = streaming(llm, can_stream)
    offloader.load(CPU, budget=0)
    assert offloader.num_swapped == len(llm.blocks) > 0
    for _ in range(2):
        with bringing_layers([offload_text_encoder(clip), offloader], lambda: None):
            found = encode_prompt(PROMPTS, llm, clip)
        assert torch.equal(found.text_embeds, expected.text_embeds)
        assert torch.equal(found.pooled_embeds, expected.pooled_embeds)
    offloader.go_home()
    assert addresses(llm) == home
    assert torch.equal(encode_prompt(PROMPTS, llm, clip).text_embeds, expected.text_embeds)


def test_a_layer_is_away_only_while_it_computes(encoders):
    llm, clip = encoders
    home = addresses(llm)
    offloader = streaming(llm, can_stream=False)
    offloader.load(CPU, budget=0)
    away: list[set[str]] = []
    watch = llm.blocks[1].register_forward_hook(
        lambda *_: away.append({name for name, address in addresses(llm).items() if address != home[name]})
    )
    with bringing_layers([offloader], lambda: None):
        encode_prompt(PROMPTS, llm, clip)
    watch.remove()
    assert {name for name in away[0] if ".layers." in name} == {name for name in home if ".layers.1." in name}
    assert {name for name, address in addresses(llm).items() if address != home[name]} == {
        name for name in home if ".layers." not in name
    }
    offloader.go_home()


@pytest.mark.parametrize(("can_stream", "swapped"), [(False, 2), (True, 3)])
def test_no_more_layers_stay_at_home_than_must(encoders, can_stream, swapped):
    """One of the demo's three fits beside the one whose turn it is; with streaming there are two slots, and no room."""
    llm, clip = encoders
    expected = encode_prompt(PROMPTS, llm, clip).text_embeds
    offloader = streaming(llm, can_stream)
    layer = sum(tensor.nbytes for tensor in llm.blocks[0].state_dict().values())
    offloader.load(CPU, offloader.num_bytes - layer // 2)
    assert offloader.num_swapped == swapped
    assert offloader.loaded_bytes <= offloader.num_bytes - layer // 2
    with bringing_layers([offloader], lambda: None):
        assert torch.equal(encode_prompt(PROMPTS, llm, clip).text_embeds, expected)
    offloader.go_home()


@pytest.mark.parametrize("when", [1, 2, 3])
@pytest.mark.parametrize("can_stream", [False, True])
def test_cancelled_between_layers_it_leaves_no_trace(encoders, when, can_stream):
    llm, clip = encoders
    home, expected = addresses(llm), encode_prompt(PROMPTS, llm, clip).text_embeds
    offloader = streaming(llm, can_stream)
    offloader.load(CPU, budget=0)
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == when:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted), bringing_layers([offloader], check):
        encode_prompt(PROMPTS, llm, clip)
    assert asked == when
    with bringing_layers([offloader], lambda: None):
        assert torch.equal(encode_prompt(PROMPTS, llm, clip).text_embeds, expected)
    offloader.go_home()
    assert addresses(llm) == home


def test_memory_that_runs_out_in_a_layer_is_given_back(encoders):
    llm, clip = encoders
    home, copies = addresses(llm), []

    def copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        if len(copies) == 7:
            raise torch.OutOfMemoryError("out of memory")
        away = tensor.clone()
        copies.append(weakref.ref(away))
        return away

    offloader = streaming(llm, can_stream=False, copy_fn=copy)
    offloader.load(CPU, budget=0)
    with pytest.raises(torch.OutOfMemoryError), bringing_layers([offloader], lambda: None):
        encode_prompt(PROMPTS, llm, clip)
    offloader.go_home()
    gc.collect()
    assert addresses(llm) == home
    assert len(copies) == 7
    assert not any(ref() is not None for ref in copies)


def test_nothing_is_left_of_the_hooks(encoders):
    llm, _ = encoders
    with bringing_layers([streaming(llm, can_stream=False)], lambda: None):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llm.modules())


def test_streamed_layers_are_not_pinned_for_good(encoders):
    llm, _ = encoders
    offloader = streaming(llm, can_stream=True)
    offloader.load(CPU, budget=0)
    assert all(host.pinned is None for host in offloader._hosts.values())
    assert len(offloader._hosts) == len(llm.blocks)
    offloader.go_home()


def test_the_same_words_are_encoded_once(tiny_files):
    files, host = Files(**vars(tiny_files)), HeadlessHost()
    stage = TextStage(files, Precision(), host, clock := Clock(host))
    passes: list[int] = []
    stage._encoders[0].register_forward_hook(lambda *_: passes.append(1))
    request = GenerateRequest("a red circle", negative_prompt="", guidance=GuidanceConfig(cfg_scale=2.0))
    first = stage(request, clock)
    assert len(passes) == 2
    again = stage(replace(request, prompt="a blue square"), clock)
    assert len(passes) == 3
    assert again.negative is first.negative
    assert stage(request, clock).positive is first.positive
    stage(replace(request, template=TEMPLATES["image"]), clock)
    assert len(passes) == 5
    stage.close()
