"""Compiled blocks and pieces against plain ones, how often they are compiled, and what happens where they cannot be."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from tiny import TRANSFORMER, relative_error, tiny_transformer, transformer_inputs
from tiny_lora import make_layers
from torch import Tensor

from hyvideo_lib.errors import InvalidSetting
from hyvideo_lib.lora.adapters import make_adapters
from hyvideo_lib.lora.update import Update
from hyvideo_lib.memory import BlockSwap, Offloader
from hyvideo_lib.quant import install, quantize_fp8, use_product
from hyvideo_lib.transformer import CompileConfig, HunyuanVideoTransformer, LeanConfig, chunks, compiling, pieces
from hyvideo_lib.transformer.compile_config import SCOPES
from hyvideo_lib.transformer.loan import on_loan

TRACED = CompileConfig("eager")
"""Traces and guards as any backend, and makes no kernels: what is counted is the same."""
CPU = torch.device("cpu")
HANDFUL = 12
"""Graphs for three functions: with and without rotation, of one head and of several, of one token and of many."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own parts


@pytest.fixture(params=SCOPES)
def traced(request: pytest.FixtureRequest) -> CompileConfig:
    return replace(TRACED, scope=request.param)


class Counting:
    """Counts the graphs that are compiled, by a backend that runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Tensor]:
        self.graphs += 1
        return module.forward


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    """What the "eager" backend compiles meanwhile."""
    forget_all()
    counting = Counting()
    compile_by(monkeypatch, counting)
    yield counting
    forget_all()


def forget_all() -> None:
    torch._dynamo.reset()
    compiling.compiled_chunks.cache_clear()
    compiling.compiled_pieces.cache_clear()
    compiling._failure.cache_clear()


def compile_by(monkeypatch: pytest.MonkeyPatch, backend: Callable[..., Callable[..., Tensor]]) -> None:
    original, takes = torch.compile, compiling._takes_limit()
    monkeypatch.setattr(compiling, "_takes_limit", lambda: takes)
    monkeypatch.setattr(torch, "compile", lambda fn, **options: original(fn, **{**options, "backend": backend}))


@torch.no_grad()
def both(model: HunyuanVideoTransformer, inputs: dict[str, Tensor], config: CompileConfig, **more) -> float:
    """How far the compiled result is from the plain one."""
    return relative_error(model(**inputs, compiling=config, **more), model(**inputs, **more))


def test_sixty_blocks_and_many_lengths_share_a_handful_of_graphs(count: Counting, traced: CompileConfig) -> None:
    model = tiny_transformer(replace(TRANSFORMER, num_double_blocks=20, num_single_blocks=40))
    assert both(model, transformer_inputs(latent_shape=(3, 4, 6)), traced) <= 1e-5
    first = count.graphs
    assert 0 < first <= HANDFUL
    for shape, text in (((2, 4, 6), 7), ((5, 8, 4), 11), ((7, 4, 8), 5), ((3, 6, 10), 9)):
        assert both(model, transformer_inputs(latent_shape=shape, text_tokens=text), traced) <= 1e-5
    assert count.graphs == first


def test_head_groups_chunks_and_batches_add_few(count: Counting, traced: CompileConfig) -> None:
    model = tiny_transformer()
    for lean in (LeanConfig(), LeanConfig(2, 5), LeanConfig(1, 7)):
        for batch, valid in ((1, (11,)), (2, (11, 4))):
            inputs = transformer_inputs(batch, valid=valid)
            assert both(model, inputs, traced, lean=lean, clean_first_frame=batch == 2) <= 1e-5
    assert count.graphs <= HANDFUL


def in_fp8(plain: HunyuanVideoTransformer) -> HunyuanVideoTransformer:
    """The same model with the blocks' matrices in fp8."""
    state = {}
    for name, tensor in plain.state_dict().items():
        if tensor.ndim == 2 and "blocks." in name:
            state[name], scale = quantize_fp8(tensor)
            state[name.replace(".weight", ".fp8_scale")] = scale.reshape(1)
        else:
            state[name] = tensor
    with torch.device("meta"):
        model = HunyuanVideoTransformer(plain.config)
    model.load_state_dict(install(model, state, "fp8_scale"), strict=True, assign=True)
    return model.requires_grad_(False)


def streamed(model: HunyuanVideoTransformer) -> Offloader:
    """All of its blocks in RAM, copied into two slots in turn."""
    source = Offloader(
        model,
        model.blocks,
        2,
        BlockSwap(2, 2),
        lambda tensor, _: tensor.clone(),
        aside=model.modulations,
        on_loan_fn=on_loan,
    )
    source.load("cpu", 0)
    assert source.num_swapped == 4
    return source


def add_loras(model: HunyuanVideoTransformer) -> None:
    updates = {name: [(Update(0, len(part.up), low_rank=part), 1.0)] for name, part in make_layers().items()}
    for name, adapter in make_adapters(model, updates).items():
        model.get_submodule(name).adapters = (adapter,)


def test_streamed_fp8_weights_ask_for_no_graph_more(count: Counting, traced: CompileConfig) -> None:
    plain, inputs = tiny_transformer().requires_grad_(False), transformer_inputs()
    assert both(plain, inputs, traced) <= 1e-5
    before = count.graphs
    model = in_fp8(plain)
    assert both(model, inputs, traced) <= 1e-5
    assert both(model, inputs, traced, source=streamed(model)) <= 1e-5
    assert count.graphs == before


def test_loras_are_in_the_blocks_for_a_few_graphs_more_and_beside_the_pieces_for_none(
    count: Counting, traced: CompileConfig
) -> None:
    model, inputs = in_fp8(tiny_transformer()), transformer_inputs()
    assert both(model, inputs, traced) <= 1e-5
    before = count.graphs
    add_loras(model)
    assert both(model, inputs, traced) <= 1e-5
    with_loras = count.graphs
    # Queries, keys and values come from factors of two sizes, of image and of text; and twice there is an MLP.
    assert with_loras <= before + (4 + 2 if traced.scope == "blocks" else 0)
    assert both(model, inputs, traced, source=streamed(model)) <= 1e-5
    for shape in ((2, 4, 6), (5, 8, 4)):
        assert both(model, transformer_inputs(latent_shape=shape), traced) <= 1e-5
    assert count.graphs == with_loras


@pytest.mark.parametrize("product", ["int8", "fp8_rows"])
def test_products_in_8_bits_are_in_the_graphs_of_all_lengths(
    count: Counting, traced: CompileConfig, product: str
) -> None:
    config = replace(TRANSFORMER, hidden_size=32, num_double_blocks=3, num_single_blocks=3, rope_axes=(4, 6, 6))
    model = tiny_transformer(config).requires_grad_(False)
    use_product(model, product)
    first = 0
    for shape in ((3, 4, 6), (5, 8, 4), (7, 8, 8)):
        inputs = transformer_inputs(latent_shape=shape, config=config)
        assert both(model, inputs, traced) <= 1e-2  # a token that is rounded the other way
        first = first or count.graphs
    assert count.graphs == first


def test_with_static_shapes_every_length_is_compiled(count: Counting, traced: CompileConfig) -> None:
    model, static = tiny_transformer(), replace(traced, dynamic=False)
    assert both(model, transformer_inputs(latent_shape=(3, 4, 6)), static) <= 1e-5
    first = count.graphs
    assert both(model, transformer_inputs(latent_shape=(2, 4, 6)), static) <= 1e-5
    assert count.graphs > first


def test_with_gradients_nothing_is_compiled(count: Counting, traced: CompileConfig) -> None:
    tiny_transformer()(**transformer_inputs(), compiling=traced)
    assert count.graphs == 0


def test_where_compiling_fails_the_blocks_run_as_they_are_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, traced: CompileConfig
) -> None:
    def broken(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Tensor]:
        raise RuntimeError("Cannot find a working triton installation")

    forget_all()
    compile_by(monkeypatch, broken)
    model, inputs = tiny_transformer(), transformer_inputs(2, valid=(11, 4))
    with torch.no_grad():
        found = model(**inputs, compiling=traced)
        assert torch.equal(found, model(**inputs))
    (record,) = (record for record in caplog.records if record.name == "hyvideo")
    assert "The blocks run uncompiled" in record.message
    assert "Cannot find a working triton installation" in record.message
    assert compiling.why_uncompiled(traced, CPU) in record.message
    forget_all()
    assert compiling.why_uncompiled(traced, CPU) is None


def test_a_system_without_any_compiler_falls_back_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, traced: CompileConfig
) -> None:
    def refuse(fn: Callable[..., Tensor], **options: object) -> Callable[..., Tensor]:
        raise RuntimeError("Windows not yet supported for torch.compile")

    forget_all()
    compiling._takes_limit.cache_clear()  # looks at what stands in its place too, as in an older PyTorch
    monkeypatch.setattr(torch, "compile", refuse)
    model, inputs = tiny_transformer(), transformer_inputs()
    with torch.no_grad():
        assert torch.equal(model(**inputs, compiling=traced), model(**inputs))
    compiling._takes_limit.cache_clear()
    (record,) = (record for record in caplog.records if record.name == "hyvideo")
    assert "Windows not yet supported" in record.message
    forget_all()


@pytest.mark.parametrize("is_old", [False, True])
def test_a_function_may_have_more_forms_than_pytorch_would_allow_others(
    monkeypatch: pytest.MonkeyPatch, count: Counting, is_old: bool
) -> None:
    """Also in a PyTorch that cannot be told so for one function."""
    forget_all()
    if is_old:
        monkeypatch.setattr(compiling, "_takes_limit", lambda: False)
    made = compiling.compiled_pieces(TRACED, CPU)
    kinds = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    with torch.no_grad():
        for one, other in itertools.product(kinds, kinds):
            x, gate = torch.randn(1, 9, 8).to(one), torch.randn(1, 9, 8).to(other)
            assert torch.equal(made.join_gelu(x, gate.clone()), pieces.PLAIN.join_gelu(x, gate.clone()))
    assert count.graphs == 16
    assert compiling.why_uncompiled(TRACED, CPU) is None
    forget_all()


def test_a_compiler_that_refuses_is_not_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, traced: CompileConfig
) -> None:
    """As PyTorch's does for bfloat16 on cards of the RTX 20 series."""

    def refuse(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Tensor]:
        raise RuntimeError("SkipFrame: BF16 is not supported")

    forget_all()
    compile_by(monkeypatch, refuse)
    model, inputs = tiny_transformer(), transformer_inputs()
    with torch.no_grad():
        assert torch.equal(model(**inputs, compiling=traced), model(**inputs))
    (record,) = (record for record in caplog.records if record.name == "hyvideo")
    assert "BF16 is not supported" in record.message
    assert "Triton" not in record.message
    forget_all()


class Failing:
    """A compiler that fails so many times, and counts how often it was asked."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.times, self.asked = error, times, 0

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Tensor]:
        self.asked += 1
        if self.asked <= self.times:
            raise self.error
        return module.forward


@pytest.mark.parametrize(
    ("error", "may_pass", "says_what_is_missing"),
    [
        (OSError(28, "No space left on device"), True, False),
        (RuntimeError("Cannot find a working triton installation"), False, True),
        (RuntimeError("Failed to find C compiler. Please specify via CC environment variable."), False, True),
        (RuntimeError("SkipFrame: BF16 is not supported"), False, False),
    ],
)
def test_what_may_pass_is_tried_again_in_the_next_run_and_the_rest_is_said_again(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    traced: CompileConfig,
    error: Exception,
    may_pass: bool,
    says_what_is_missing: bool,
) -> None:
    forget_all()
    failing = Failing(error, 1)
    compile_by(monkeypatch, failing)
    model, inputs = tiny_transformer(), transformer_inputs()

    def told() -> list[str]:
        found = [record.message for record in caplog.records if record.name == "hyvideo"]
        caplog.clear()
        return found

    compiling.begin_run(traced, CPU)
    assert told() == []
    assert both_equal(model, inputs, traced)
    assert both_equal(model, inputs, traced)
    reason = compiling.why_uncompiled(traced, CPU)
    assert reason is not None
    assert str(error).rstrip(".") in reason
    assert ("Triton on a graphics card" in reason) == says_what_is_missing
    assert told() == [f"The blocks run uncompiled: {reason}."]
    assert failing.asked == 1
    compiling.begin_run(traced, CPU)
    assert told() == ([] if may_pass else [f"The blocks run uncompiled: {reason}."])
    assert both_equal(model, inputs, traced)
    assert compiling.why_uncompiled(traced, CPU) == (None if may_pass else reason)
    assert (failing.asked > 1) == may_pass
    forget_all()


@torch.no_grad()
def both_equal(model: HunyuanVideoTransformer, inputs: dict[str, Tensor], config: CompileConfig) -> bool:
    return relative_error(model(**inputs, compiling=config), model(**inputs)) <= 1e-6


def test_one_device_where_it_fails_says_nothing_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_all()
    compile_by(monkeypatch, Failing(RuntimeError("SkipFrame: BF16 is not supported"), 1))
    with torch.no_grad():
        compiling.compiled_pieces(TRACED, CPU).join_gelu(torch.randn(1, 9, 8), torch.randn(1, 9, 8))
    assert compiling.why_uncompiled(TRACED, CPU)
    assert compiling.why_uncompiled(TRACED, torch.device("meta")) is None
    forget_all()


def test_running_out_of_memory_is_not_taken_for_a_failure_to_compile() -> None:
    assert not issubclass(torch.cuda.OutOfMemoryError, compiling.compile_errors())
    assert not issubclass(MemoryError, compiling.compile_errors())


@pytest.mark.parametrize("shortage", [torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError()])
def test_nor_is_running_out_of_memory_while_it_compiles(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, shortage: Exception
) -> None:
    """The compiler wraps what is raised inside of it; the caller sees the bare error, and may try again."""
    short = [shortage]

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Tensor]:
        if short:
            raise short.pop()
        return module.forward

    forget_all()
    compile_by(monkeypatch, backend)
    made, (gate, mlp) = compiling.compiled_pieces(TRACED, CPU), torch.randn(2, 1, 9, 16)
    with torch.no_grad():
        with pytest.raises(type(shortage)) as raised:
            made.join_gelu(gate, mlp.clone())
        assert raised.value is shortage
        assert compiling.why_uncompiled(TRACED, CPU) is None
        assert torch.equal(made.join_gelu(gate, mlp.clone()), pieces.PLAIN.join_gelu(gate, mlp.clone()))
    assert not [record for record in caplog.records if record.name == "hyvideo"]
    forget_all()


def test_what_the_compiler_itself_says_of_memory_is_a_failure_to_compile() -> None:
    """Such as a C++ compiler that ran out of it."""
    wrapped = compiling.compile_errors()[0]("cc1plus: out of memory")
    assert compiling.shortage_in(wrapped) is None
    inner = MemoryError()
    wrapped.__cause__ = RuntimeError("wrapped")
    wrapped.__cause__.__cause__ = inner
    assert compiling.shortage_in(wrapped) is inner


def test_everything_that_is_compiled_says_what_it_takes() -> None:
    assert set(compiling.ARGUMENTS) == {*vars(pieces.PLAIN), *vars(chunks.AS_THEY_ARE)}


@pytest.mark.parametrize("wrong", [{"backend": "magic"}, {"mode": "reduce-overhead"}, {"scope": "model"}])
def test_unknown_settings_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidSetting, match=f"compile {next(iter(wrong))} is"):
        CompileConfig(**wrong)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_real_kernels_give_the_same_numbers(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    forget_all()
    made, plain = compiling.compiled_pieces(CompileConfig(), CPU), pieces.PLAIN
    x, shift, scale = torch.randn(2, 9, 16), torch.randn(2, 1, 16), torch.randn(2, 1, 16)
    heads, gain, rotation = torch.randn(2, 9, 2, 8), torch.randn(8), torch.randn(9, 4, 2)
    with torch.no_grad():
        for n in (9, 5):
            modulated = [do.modulate(x[:, :n], shift, scale) for do in (made, plain)]
            assert relative_error(*modulated) <= 1e-6
            joined = [do.join_gelu(x[:, :n], x[:, :n].clone()) for do in (made, plain)]
            assert relative_error(*joined) <= 1e-6
            turned = [do.turn_heads(heads[:, :n], gain, rotation[:n]) for do in (made, plain)]
            assert relative_error(*turned) <= 1e-6
    assert compiling.why_uncompiled(CompileConfig(), CPU) is None


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_real_kernels_of_whole_blocks_give_the_same_video(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamed, with LoRAs, a batch, spans, several head groups and chunks: everything that a block may meet."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    forget_all()
    config, model = CompileConfig(), in_fp8(tiny_transformer())
    add_loras(model)
    source = streamed(model)
    for lean in (LeanConfig(), LeanConfig(2, 7)):
        inputs = transformer_inputs(2, valid=(11, 4))
        assert both(model, inputs, config, lean=lean, clean_first_frame=True, source=source) <= 1e-5
    assert compiling.why_uncompiled(config, CPU) is None
