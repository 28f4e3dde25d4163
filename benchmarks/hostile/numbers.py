"""NaN and infinity put into every stage of the demo's run: each must be found where it arises, and said."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.hostile.figures import Figure, Scale
from hyvideo_lib.demo import assets
from hyvideo_lib.errors import HyvError, NonFiniteOutput
from hyvideo_lib.host import HeadlessHost
from hyvideo_lib.pipeline import Clock, Files, GenerateRequest, PixelStage, Precision, generate

FILES = Files(assets.TRANSFORMER, assets.VAE, assets.LLM, assets.CLIP)
REQUEST = GenerateRequest("a red circle moving left on a black background", width=32, height=32, frames=5, steps=3)
NAN, INF = math.nan, math.inf
TEXT, POOLED, STEP, PIXELS, GIVEN, ENCODED = (
    r"^The language model's text_embeds .*text encoders in bfloat16",
    r"^CLIP's pooled_embeds .*text encoders in bfloat16",
    r"^Step {step} of 3 \(sigma .* the latents, in video 1 of 1; .*bfloat16 or float32.*LoRA",
    r"^The decoded pixels .*VAE compute in float32",
    r"^The latents to decode .*make them anew",
    r"^The encoded latents .*VAE compute in float32",
)
"""How the message must begin and what it must advise, by where the number arises."""


@dataclass(frozen=True)
class Injection:
    """A weight of one of the demo's files that becomes NaN or infinite, and where that must be noticed."""

    role: str
    tensor: str
    number: float
    message: str


INJECTIONS = (
    Injection("llm", "embed_tokens.weight", NAN, TEXT),
    Injection("llm", "layers.0.mlp.down_proj.weight", INF, TEXT),
    Injection("llm", "layers.1.self_attn.v_proj.weight", NAN, TEXT),
    Injection("clip", "text_model.embeddings.position_embedding.weight", NAN, POOLED),
    Injection("clip", "text_model.encoder.layers.0.mlp.fc2.bias", INF, POOLED),
    Injection("clip", "text_model.final_layer_norm.weight", -INF, POOLED),
    Injection("transformer", "img_in.proj.weight", NAN, STEP.format(step=1)),
    Injection("transformer", "double_blocks.0.img_attn_qkv.weight", NAN, STEP.format(step=1)),
    Injection("transformer", "double_blocks.0.img_mlp.fc2.bias", INF, STEP.format(step=1)),
    Injection("transformer", "single_blocks.0.linear1.bias", INF, STEP.format(step=1)),
    Injection("transformer", "time_in.mlp.0.weight", NAN, STEP.format(step=1)),
    Injection("transformer", "final_layer.linear.bias", -INF, STEP.format(step=1)),
    Injection("vae", "post_quant_conv.weight", NAN, PIXELS),
    Injection("vae", "decoder.mid_block.attentions.0.to_v.weight", INF, PIXELS),
    Injection("vae", "decoder.conv_out.conv.bias", NAN, PIXELS),
)


def poison(source: Path, tensor: str, number: float, target: Path) -> Path:
    """A copy of a model file with one number of one tensor replaced."""
    with safe_open(source, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        metadata = file.metadata()
    poisoned = tensors[tensor].float().contiguous()
    poisoned.view(-1)[0] = number
    if tensor.endswith(("embed_tokens.weight", "position_embedding.weight")):
        poisoned.view(-1)[:] = number  # whichever token is used
    tensors[tensor] = poisoned.to(tensors[tensor].dtype)
    save_file(tensors, target, metadata)
    return target


def notice(run: Callable[[], object], message: str) -> str | None:
    """What is wrong: nothing was noticed, or it was said in other words."""
    try:
        run()
    except NonFiniteOutput as error:
        return None if re.search(message, str(error)) else f"said: {error}"
    except HyvError as error:
        return f"noticed as {error.code}: {error}"
    return "not noticed"


def inject(case: Injection, folder: Path) -> str | None:
    path = poison(getattr(FILES, case.role), case.tensor, case.number, folder / f"{case.role}.safetensors")
    beside = {f"{role}_tokenizer": getattr(FILES, role).with_name(f"{role}.tokenizer.json") for role in ("llm", "clip")}
    files = replace(FILES, **{case.role: path}, **beside)
    try:
        return notice(lambda: generate(REQUEST, files), case.message)
    finally:
        path.unlink()


def given_latents(number: float) -> Callable[[], object]:
    """A run that begins with latents of which one number is broken: found at its first step."""
    start = torch.zeros(1, 16, 2, 4, 4)
    start[0, 3, 1, 2, 2] = number
    return lambda: generate(replace(REQUEST, strength=0.7), FILES, start=start)


def pixel_stage(work: Callable[[PixelStage, Clock], object], vae: Path = FILES.vae, dtype: str = "auto") -> None:
    host = HeadlessHost()
    clock = Clock(host)
    with closing(PixelStage(vae, Precision(vae=dtype), host, clock)) as stage:
        work(stage, clock)


def decode_broken(stage: PixelStage, clock: Clock) -> object:
    return stage.decode(torch.full((1, 16, 2, 4, 4), INF), None, clock)


def decode_huge(stage: PixelStage, clock: Clock) -> object:
    return stage.decode(torch.full((1, 16, 2, 4, 4), 6e4), None, clock)


def encode_black(stage: PixelStage, clock: Clock) -> object:
    return stage.encode(torch.zeros(5, 32, 32, 3, dtype=torch.uint8), None, clock)


def run(scale: Scale) -> Iterator[Figure]:
    """20 injections; none may pass, and none be found at the wrong place."""
    figure = Figure("numbers", "NaN and infinity found at their stage, with advice")
    for case in INJECTIONS[: scale.count(len(INJECTIONS))]:
        problem = inject(case, scale.folder)
        figure.add(problem and f"{case.number} in {case.role} {case.tensor}: {problem}")
    if scale.share >= 1:
        encoder = poison(FILES.vae, "encoder.conv_in.conv.weight", NAN, scale.folder / "encoder.safetensors")
        others: dict[str, tuple[Callable[[], object], str]] = {
            "NaN in given latents": (given_latents(NAN), r"^Step 1 of \d"),
            "infinity in given latents": (given_latents(INF), r"^Step 1 of \d"),
            "latents to decode": (lambda: pixel_stage(decode_broken), GIVEN),
            "float16 that overflows": (lambda: pixel_stage(decode_huge, dtype="float16"), PIXELS),
            "the encoder": (lambda: pixel_stage(encode_black, encoder), ENCODED),
        }
        for name, (work, message) in others.items():
            problem = notice(work, message)
            figure.add(problem and f"{name}: {problem}")
        encoder.unlink()
    yield figure
    clean = Figure("numbers", "control: the same run without an injection passes")
    clean.add(None if torch.isfinite(generate(REQUEST, FILES).latents).all() else "not finite")
    yield clean
