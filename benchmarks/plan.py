"""What the planner says a forward takes, against what it takes: peak bytes beside the weights, and their quotient.

Predicted from sizes alone (`pipeline.dry_run`, `memory.estimate`); measured by the allocator's own count, as everywhere
here. Nothing is timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.measure import Side, working_memory
from benchmarks.rows import Options, Row, predicted_row
from benchmarks.transformer import GUIDANCE, LATENTS, MID, QUICK, QUICK_LATENTS, TEXT_TOKENS, build, make_inputs
from benchmarks.vae import CASES, QUICK_CASES, QUICK_CONFIG, Case
from hyvideo_lib.checkpoint.blueprint import build_meta_transformer, build_meta_vae
from hyvideo_lib.geometry import latent_shape
from hyvideo_lib.memory.estimate import text_bytes
from hyvideo_lib.pipeline.dry_run import decode_work, encode_work, transformer_work
from hyvideo_lib.quant.install import install, restore
from hyvideo_lib.text.llm import LlamaEncoderConfig, build_llama
from hyvideo_lib.transformer import HunyuanVideoTransformer, LeanConfig
from hyvideo_lib.vae import CausalVideoVAE, VAEConfig
from hyvideo_lib.video import frames_from_pixels

SIZES = {"1k": LATENTS["1k"], "8k": LATENTS["8k"]}
LEANS = (LeanConfig(), LeanConfig(3))
FP8 = torch.float8_e4m3fn
TEXT = LlamaEncoderConfig(1000, 1024, 3584, num_layers=4, num_heads=8, num_kv_heads=2)
QUICK_TEXT = replace(TEXT, hidden_size=64, intermediate_size=224, num_heads=2, num_kv_heads=1, head_dim=32)
PROMPT_TOKENS = 351
"""The longest prompt in its template."""


def run(options: Options) -> Iterator[Row]:
    yield from _transformer_rows(options)
    yield from _vae_rows(options)
    yield from _text_rows(options)


def _transformer_rows(options: Options) -> Iterator[Row]:
    config, sizes = (replace(QUICK, num_heads=3, hidden_size=384), QUICK_LATENTS) if options.is_quick else (MID, SIZES)
    for dtype in options.dtypes:
        for storage in (dtype, FP8):
            model: HunyuanVideoTransformer | None = None
            for name, size in sizes.items():
                for lean in LEANS if storage == dtype else LEANS[:1]:
                    stored = "" if storage == dtype else ", stored in fp8"
                    groups = f", {lean.head_groups} head groups" if lean.head_groups > 1 else ""
                    case = f"transformer, {name} tokens, {_short(dtype)}{stored}{groups}"
                    if options.wants(case):
                        model = model or (
                            build(config, dtype, options.device)
                            if storage == dtype
                            else _in_fp8(build(config, dtype, options.device), dtype)
                        )
                        inputs = make_inputs(config, size, TEXT_TOKENS, dtype, options.device)
                        said = transformer_work(model, size, TEXT_TOKENS, lean=lean)
                        yield _row(case, said, _forward(model, inputs, lean), options)


def _forward(model: HunyuanVideoTransformer, inputs: dict[str, torch.Tensor], lean: LeanConfig) -> Side:
    return lambda: model(**inputs, guidance=GUIDANCE, lean=lean)


def _in_fp8(model: HunyuanVideoTransformer, dtype: torch.dtype) -> HunyuanVideoTransformer:
    """The same model with its weights kept as from an fp8 file, cast when they are used."""
    state = dict(restore(model.state_dict(), "none", FP8))
    kept = build_meta_transformer(model.config, dtype)
    kept.load_state_dict(install(kept, state, "none"), strict=True, assign=True)
    return kept.requires_grad_(False).eval()


def _vae_rows(options: Options) -> Iterator[Row]:
    config, cases = (QUICK_CONFIG, QUICK_CASES) if options.is_quick else (VAEConfig(), (Case(5, 64), *CASES))
    dtypes = options.dtypes if options.device.type == "cuda" else (torch.float32,)
    for dtype in dtypes:
        vae = CausalVideoVAE(config).to(options.device, dtype).requires_grad_(False).eval()
        sketch = build_meta_vae(config).to(dtype).requires_grad_(False).eval()
        for case in cases:
            for verb in ("decode", "encode"):
                name = f"VAE, {verb} {case.name}, {_short(dtype)}"
                if options.wants(name):
                    work = decode_work if verb == "decode" else encode_work
                    size = case.frames, case.size, case.size
                    said = work(sketch, size, case.tiles, options.device.type == "cpu")
                    yield _row(name, said, _mapping(vae, case, verb), options)


def _mapping(vae: CausalVideoVAE, case: Case, verb: str) -> Side:
    if verb == "decode":
        latents = torch.randn(1, 16, *latent_shape(case.size, case.size, case.frames)).to(vae.quant_conv.weight)
        return lambda: [len(frames_from_pixels(span[0])) for span in vae.decode_spans(latents, case.tiles)]
    video = 2 * torch.rand(1, 3, case.frames, case.size, case.size) - 1
    return lambda: vae.encode(video.clone(), case.tiles).mean


def _text_rows(options: Options) -> Iterator[Row]:
    config = QUICK_TEXT if options.is_quick else TEXT
    for dtype in options.dtypes:
        case = f"text encoder, {PROMPT_TOKENS} tokens, width {config.hidden_size}, {_short(dtype)}"
        if options.wants(case):
            model = build_llama(config, "cpu").to(options.device, dtype).requires_grad_(False)
            ids = torch.arange(PROMPT_TOKENS, device=options.device)[None]
            said = text_bytes(config.hidden_size, config.intermediate_size, PROMPT_TOKENS, dtype.itemsize, False)
            yield _row(case, said, _encoding(model, ids), options)


def _encoding(model: torch.nn.Module, ids: torch.Tensor) -> Side:
    return lambda: model(input_ids=ids, use_cache=False).last_hidden_state


@torch.no_grad()
def _row(case: str, predicted: int, call: Side, options: Options) -> Row:
    return predicted_row("plan", case, predicted, working_memory(call, options.device)[0])


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
