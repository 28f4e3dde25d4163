from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator

import pytest
import torch
from tiny import (
    TRANSFORMER,
    golden,
    golden_transformer,
    layout,
    manifest,
    relative_error,
    tiny_transformer,
    transformer_inputs,
)
from torch import Tensor, nn

from hyvideo_lib.attention import api as attention
from hyvideo_lib.errors import Interrupted, InvalidSize
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.transformer import HunyuanVideoTransformer, RopeSettings, TransformerConfig, ops
from hyvideo_lib.transformer.model import trim_text

CASES = [case for case in manifest().values() if case["kind"] == "dit"]
RELEASED = TransformerConfig(16, 16, 3072, 24, 20, 40)
GOLDEN_BAR, SAME_MATHS = 2e-5, 1e-6
UNGUIDED = dataclasses.replace(TRANSFORMER, has_guidance=False)


@pytest.fixture(params=["plain", "lean"])
def _path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both forms of the blocks: with gradients the plain ones run, without them the lean ones."""
    with torch.set_grad_enabled(request.param == "plain"):
        yield


both_paths = pytest.mark.usefixtures("_path")


def without(inputs: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in inputs.items() if name not in names}


def pick(inputs: dict[str, Tensor], items: list[int]) -> dict[str, Tensor]:
    """The batch items named, in that order."""
    return {name: tensor[items] for name, tensor in inputs.items()}


# Against the recorded reference


def run_golden(case: dict, model: HunyuanVideoTransformer, call: int) -> Tensor:
    io = golden(f"{case['name']}.io")
    recorded = io.get("in.guidance")
    return model(
        io["in.x"],
        io[f"in.t.{call}"],
        io["in.text_states"],
        io["in.text_mask"],
        io["in.text_states_2"],
        guidance=None if recorded is None else recorded.double() / 1000,
        clean_first_frame=case["config"]["i2v_condition_type"] == "token_replace",
    )


@both_paths
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_every_recorded_call_gives_the_recorded_velocity(case: dict) -> None:
    io, model = golden(f"{case['name']}.io"), golden_transformer(case)
    calls = [int(name.removeprefix("out.")) for name in io if name.startswith("out.")]
    assert calls
    for call in calls:
        assert relative_error(run_golden(case, model, call).detach(), io[f"out.{call}"]) <= GOLDEN_BAR


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_every_recorded_activation_is_reproduced(case: dict) -> None:
    io, model = golden(f"{case['name']}.io"), golden_transformer(case)
    stages: dict[str, list[Tensor]] = {}

    def listen(name: str, module: nn.Module) -> None:
        def store(_: nn.Module, __: tuple, output: Tensor | tuple[Tensor, Tensor]) -> None:
            parts = {name: output} if isinstance(output, Tensor) else dict(zip((f"{name}.img", f"{name}.txt"), output))  # noqa: B905
            for key, value in parts.items():
                stages.setdefault(key, []).append(value.detach())

        module.register_forward_hook(store)

    for name in ("img_in", "txt_in", "time_in", "vector_in", "guidance_in"):
        if hasattr(model, name):
            listen(name, getattr(model, name))
    for name, blocks in (("double", model.double_blocks), ("single", model.single_blocks)):
        listen(f"{name}0", blocks[0])
        listen(f"{name}_last", blocks[-1])
    run_golden(case, model, 0)
    if "act.time_in_token_replace" in io:  # the second call of the same layer, for the first frame
        stages["time_in"], stages["time_in_token_replace"] = stages["time_in"][:1], stages["time_in"][1:]

    recorded = {name.removeprefix("act."): tensor for name, tensor in io.items() if name.startswith("act.")}
    assert set(recorded) == set(stages)
    num_img, mask = io["act.img_in"].shape[1], io["in.text_mask"].bool()
    for name, expected in recorded.items():
        [found] = stages[name]
        if name == "txt_in" or name.endswith(".txt"):
            rows = mask  # what padded rows hold is nobody's business, and ours are trimmed
        elif name.startswith("single"):
            rows = torch.cat([torch.ones(len(mask), num_img, dtype=torch.bool), mask], dim=1)
        else:
            rows = torch.ones(expected.shape[:2], dtype=torch.bool)
        assert relative_error(found[rows[:, : found.shape[1]]], expected[rows]) <= GOLDEN_BAR, name


# Padding and batches


@both_paths
@pytest.mark.parametrize("garbage", [1e4, float("inf"), float("nan")])
def test_padding_text_never_changes_the_velocity(garbage: float) -> None:
    model, inputs = tiny_transformer(), transformer_inputs(text_tokens=13, valid=(9,))
    velocity = model(**inputs)
    inputs["text_embeds"][:, 9:] = garbage
    assert torch.equal(model(**inputs), velocity)
    for padded in (9, 10, 13, 40):
        text = torch.nn.functional.pad(inputs["text_embeds"][:, :9], (0, 0, 0, padded - 9), value=-7.0)
        mask = (torch.arange(padded) < 9)[None]
        assert torch.equal(model(**{**inputs, "text_embeds": text, "text_mask": mask}), velocity)
    text = inputs["text_embeds"][:, :9]
    assert torch.equal(model(**{**inputs, "text_embeds": text, "text_mask": None}), velocity)


@both_paths
@pytest.mark.parametrize("garbage", [1e4, float("inf"), float("nan")])
@pytest.mark.parametrize("per_item", [False, True], ids=["masked", "item by item"])
def test_padding_of_the_shorter_prompt_never_changes_a_batch(
    per_item: bool, garbage: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "PER_ITEM_TOKENS", 0 if per_item else 1 << 30)
    model, inputs = tiny_transformer(), transformer_inputs(2, text_tokens=13, valid=(11, 4))
    velocity = model(**inputs)
    inputs["text_embeds"][0, 11:] = garbage
    inputs["text_embeds"][1, 4:] = garbage
    assert torch.equal(model(**inputs), velocity)


@both_paths
@pytest.mark.parametrize("per_item", [False, True], ids=["masked", "item by item"])
@pytest.mark.parametrize("clean_first_frame", [False, True])
def test_a_batch_of_unequal_prompts_equals_each_prompt_alone(
    per_item: bool, clean_first_frame: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "PER_ITEM_TOKENS", 0 if per_item else 1 << 30)
    model, inputs = tiny_transformer(), transformer_inputs(3, valid=(4, 11, 1))
    guidance = torch.tensor([6.0, 1.0, 3.5])
    batch = model(**inputs, guidance=guidance, clean_first_frame=clean_first_frame).detach()
    for item in range(3):
        alone = model(**pick(inputs, [item]), guidance=guidance[[item]], clean_first_frame=clean_first_frame).detach()
        assert relative_error(batch[[item]], alone) <= SAME_MATHS


@both_paths
def test_swapped_batch_order_gives_swapped_output() -> None:
    model, inputs = tiny_transformer(), transformer_inputs(2, valid=(4, 11))
    swapped = model(**pick(inputs, [1, 0])).detach()
    assert relative_error(swapped, model(**inputs).detach()[[1, 0]]) <= SAME_MATHS


@pytest.mark.parametrize(
    ("mask", "kept", "lengths"),
    [
        ([[1, 1, 1, 0, 0]], 3, None),
        ([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0]], 2, None),
        ([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0]], 4, [4, 1]),
        ([[1, 1, 1, 1, 1]], 5, None),
    ],
)
def test_text_is_trimmed_to_the_longest_prompt(mask: list[list[int]], kept: int, lengths: list[int] | None) -> None:
    embeds, found_mask, found_lengths = trim_text(torch.zeros(len(mask), 5, 3), torch.tensor(mask))
    assert embeds.shape[1] == kept
    assert found_lengths == lengths
    assert (found_mask is None) is (lengths is None)


@both_paths
def test_a_mask_with_gaps_is_refused() -> None:
    inputs = transformer_inputs(text_tokens=4)
    inputs["text_mask"][0, 1] = 0
    with pytest.raises(ValueError, match="text_mask must be 1 for the first tokens"):
        tiny_transformer()(**inputs)


# Inputs


@pytest.mark.parametrize("shape", [(3, 5, 6), (3, 4, 7)])
def test_an_odd_latent_size_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidSize, match=f"Latents of {shape[1]} x {shape[2]} .*multiples of 16"):
        tiny_transformer()(**transformer_inputs(latent_shape=shape))


def test_velocity_has_the_output_channels_and_the_shape_of_the_latents() -> None:
    config = dataclasses.replace(TRANSFORMER, in_channels=9)
    inputs = transformer_inputs(2, latent_shape=(2, 6, 4), config=config)
    assert tiny_transformer(config)(**inputs).shape == (2, 4, 2, 6, 4)


@both_paths
def test_unpatchify_undoes_the_order_of_the_patches() -> None:
    model = tiny_transformer()
    video = torch.arange(4 * 2 * 4 * 6.0).view(1, 4, 2, 4, 6)
    tokens = torch.stack(
        [video[0, :, t, h : h + 2, w : w + 2].flatten() for t in range(2) for h in (0, 2) for w in (0, 2, 4)]
    )
    assert torch.equal(model.unpatchify(tokens[None], (2, 2, 3)), video)


@both_paths
def test_guidance_is_a_number_or_one_per_item_and_six_if_not_given() -> None:
    model, inputs = tiny_transformer(), transformer_inputs(2)
    velocity = model(**inputs, guidance=6.0)
    assert torch.equal(model(**inputs), velocity)
    assert torch.equal(model(**inputs, guidance=torch.tensor([6.0, 6.0])), velocity)
    other = model(**inputs, guidance=torch.tensor([6.0, 3.0]))
    assert torch.equal(other[0], velocity[0])
    assert not torch.equal(other[1], velocity[1])


def test_a_model_without_guidance_ignores_it() -> None:
    model, inputs = tiny_transformer(UNGUIDED), transformer_inputs()
    assert not any(name.startswith("guidance_in") for name in model.state_dict())
    assert torch.equal(model(**inputs, guidance=3.0), model(**inputs))


@pytest.mark.parametrize(
    ("scale", "dtype", "embedded"),
    [
        (6.0, torch.float32, 6000),
        (6.016, torch.float32, 6016),
        (1.0, torch.bfloat16, 1000),
        (6.0, torch.bfloat16, 6016),
        (7.0, torch.bfloat16, 7008),
        (8.0, torch.bfloat16, 8000),
        (10.0, torch.bfloat16, 9984),
        (6.1, torch.bfloat16, 6080),  # 6.1 is 6.09375 in bfloat16, and 6093.75 then lies between 6080 and 6112
    ],
)
def test_guidance_is_scaled_in_the_compute_dtype_like_the_reference(
    scale: float, dtype: torch.dtype, embedded: float
) -> None:
    model = tiny_transformer(compute_dtype=dtype)
    seen: list[Tensor] = []
    model.guidance_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(**transformer_inputs(2), guidance=scale)
    model(**transformer_inputs(2), guidance=torch.tensor([scale, scale]))
    for values in seen:
        assert values.dtype == torch.float32
        assert values.tolist() == [embedded, embedded]


@both_paths
def test_timesteps_are_not_rounded() -> None:
    model, inputs = tiny_transformer(), transformer_inputs()
    near = {**inputs, "timesteps": inputs["timesteps"] + 0.25}
    assert relative_error(model(**near).detach(), model(**inputs).detach()) > 1e-5


# The clean first frame


def test_the_clean_first_frame_is_conditioned_on_time_zero_without_guidance() -> None:
    model, inputs = tiny_transformer(), transformer_inputs(2)
    grid = (3, 2, 3)
    found = model.condition(inputs["timesteps"], inputs["pooled_embeds"], 6.0, grid)
    pooled = model.vector_in(inputs["pooled_embeds"])
    assert relative_error(found.first_vec, model.time_in(torch.zeros(2), torch.float32) + pooled) <= 1e-6
    guided = model.time_in(inputs["timesteps"], torch.float32) + pooled
    guided = guided + model.guidance_in(torch.full((2,), 6000.0), torch.float32)
    assert relative_error(found.vec, guided) <= 1e-6
    assert found.num_first == 6
    assert model.condition(inputs["timesteps"], inputs["pooled_embeds"], 6.0, None).first_vec is None


@both_paths
def test_at_time_zero_without_guidance_a_clean_first_frame_is_nothing_special() -> None:
    model, inputs = tiny_transformer(UNGUIDED), transformer_inputs()
    still = {**inputs, "timesteps": torch.zeros(1)}
    assert relative_error(model(**still, clean_first_frame=True).detach(), model(**still).detach()) <= SAME_MATHS
    assert relative_error(model(**inputs, clean_first_frame=True).detach(), model(**inputs).detach()) > 1e-3


@both_paths
def test_a_clean_first_frame_may_be_the_only_one() -> None:
    model, inputs = tiny_transformer(), transformer_inputs(latent_shape=(1, 4, 6))
    assert model(**inputs, clean_first_frame=True).isfinite().all()


# Positions


@both_paths
@pytest.mark.parametrize(("latent_frames", "changes"), [(3, False), (49, True)])
def test_extrapolation_reaches_the_blocks_of_long_clips_only(latent_frames: int, changes: bool) -> None:
    config = dataclasses.replace(TRANSFORMER, rope_axes=(16, 4, 4))
    model, inputs = tiny_transformer(config), transformer_inputs(latent_shape=(latent_frames, 2, 2))
    longer = model(**inputs, rope=RopeSettings(extrapolate=True))
    assert torch.equal(longer, model(**inputs)) is not changes


# Weights


def test_gradients_reach_every_parameter() -> None:
    model, inputs = tiny_transformer(), transformer_inputs(2, valid=(11, 4))
    model(**inputs, clean_first_frame=True).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # The last double block's text still feeds the single blocks; no parameter is without effect.
        assert parameter.grad.abs().max() > 0, name


@both_paths
@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.bfloat16], ids=str)
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
def test_weights_at_rest_in_fewer_bits_equal_weights_cast_beforehand(
    storage: torch.dtype, compute: torch.dtype
) -> None:
    stored = tiny_transformer(compute_dtype=compute).to(storage)
    cast = tiny_transformer(compute_dtype=compute)
    cast.load_state_dict({name: tensor.to(compute) for name, tensor in stored.state_dict().items()}, assign=True)
    inputs = transformer_inputs(2, valid=(11, 4))
    velocity = stored(**inputs, clean_first_frame=True)
    assert velocity.dtype == compute
    assert velocity.isfinite().all()
    assert torch.equal(velocity, cast(**inputs, clean_first_frame=True))
    assert {tensor.dtype for tensor in stored.state_dict().values()} == {storage}


@both_paths
def test_bfloat16_stays_near_float32() -> None:
    inputs = transformer_inputs(2, valid=(11, 4))
    rounding = tiny_transformer(compute_dtype=torch.bfloat16)
    # 8.0, since 8000 is a number in bfloat16 too, and 6000 is not
    exact, rounded = tiny_transformer()(**inputs, guidance=8.0), rounding(**inputs, guidance=8.0)
    assert rounded.dtype == torch.bfloat16
    assert 0 < relative_error(rounded.float().detach(), exact.detach()) < 0.05


def test_a_model_built_without_memory_takes_its_weights_by_assignment() -> None:
    weights = tiny_transformer().state_dict()
    with torch.device("meta"):
        model = HunyuanVideoTransformer(TRANSFORMER)
    model.load_state_dict(weights, strict=True, assign=True)
    assert not list(model.named_buffers())
    assert all(parameter.data_ptr() == weights[name].data_ptr() for name, parameter in model.named_parameters())
    inputs = transformer_inputs()
    assert torch.equal(model(**inputs), tiny_transformer()(**inputs))


@pytest.mark.parametrize(
    ("name", "config", "parameters"),
    [
        ("tencent_transformer_t2v", RELEASED, 12_821_012_544),
        (
            "tencent_transformer_i2v_v1_latent_concat",
            dataclasses.replace(RELEASED, in_channels=33, has_guidance=False),
            12_810_991_680,
        ),
    ],
)
def test_the_released_checkpoints_fit_key_by_key(name: str, config: TransformerConfig, parameters: int) -> None:
    with torch.device("meta"):
        model = HunyuanVideoTransformer(config)
    assert {key: list(tensor.shape) for key, tensor in model.state_dict().items()} == layout(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_every_layer_with_a_matrix_comes_from_the_namespace_given() -> None:
    class HostLinear(ops.Linear):
        pass

    class HostConv3d(ops.Conv3d):
        pass

    model = tiny_transformer(ops=types.SimpleNamespace(Linear=HostLinear, Conv3d=HostConv3d))
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv3d)}
    assert kinds == {HostLinear, HostConv3d}
    inputs = transformer_inputs()
    with torch.no_grad():
        assert torch.equal(model(**inputs), tiny_transformer()(**inputs))


# Interruption


class Stopped(Exception):  # noqa: N818
    """What another host may raise: nothing of ours."""


class CountingHost(HeadlessHost):
    def __init__(self, stop_at: int = 0) -> None:
        super().__init__()
        self.checks, self.stop_at = 0, stop_at

    def check_interrupt(self) -> None:
        super().check_interrupt()
        self.checks += 1
        if self.checks == self.stop_at:
            raise Stopped


@both_paths
def test_the_host_is_asked_before_every_block() -> None:
    host = CountingHost()
    tiny_transformer()(**transformer_inputs(), host=host)
    assert host.checks == TRANSFORMER.num_double_blocks + TRANSFORMER.num_single_blocks


@both_paths
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_what_the_host_raises_passes_through_and_the_model_still_works(at: int) -> None:
    model, inputs = tiny_transformer(), transformer_inputs()
    before = model(**inputs)
    with pytest.raises(Stopped):
        model(**inputs, host=CountingHost(at))
    assert torch.equal(model(**inputs), before)


def test_a_cancelled_host_stops_the_model() -> None:
    host = HeadlessHost()
    host.cancel()
    with pytest.raises(Interrupted):
        tiny_transformer()(**transformer_inputs(), host=host)
