"""`inspect` and the loaders give one answer: no header "can be used" and is refused, and none the other way round.

Files that load, in every layout, are changed a little and at random; whatever becomes of them, both must agree. What
the numbers decide (NaN, a scale of 0) is not the header's affair.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import checkpoint_headers as headers
import pytest
import torch
from checkpoint_headers import Entries, released
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import golden
from torch import Tensor

from hyvideo_lib.checkpoint import inspect_file, load_any_vae, load_text_encoder, load_transformer
from hyvideo_lib.errors import HyvError
from hyvideo_lib.lora.read import RELEASED, read_lora
from hyvideo_lib.vae import TinyVAE, TinyVAEConfig
from tests.hyvideo_lib.checkpoint import text_files
from tests.hyvideo_lib.checkpoint.layouts import TRANSFORMER_LAYOUTS, VAE_LAYOUTS
from tests.hyvideo_lib.checkpoint.test_recogniser import CASES, Case

Tensors = dict[str, Tensor]
Change = Callable[[Tensors, dict[str, str], random.Random], None]

SIZES: dict[str, dict[str, Any]] = {
    "transformer": {"rope_axes": [4, 10, 10]},
    "vae": {"norm_groups": 4},
    **text_files.SIZES,
    "lora": {},
}
LOADERS: dict[str, Callable[[Path], object]] = {
    "transformer": lambda path: load_transformer(path, device="meta"),
    "vae": load_any_vae,
    "llama": lambda path: load_text_encoder(path, text_files.LLAMA_TOKENIZER),
    "clip": lambda path: load_text_encoder(path, text_files.clip_tokenizer()),
    "lora": lambda path: read_lora(path, RELEASED),
}


def tiny_vae() -> Tensors:
    torch.manual_seed(0)
    return dict(TinyVAE(TinyVAEConfig((8, 6, 4, 4))).state_dict())


LORA_MODULES = {
    "tencent": {
        "double_blocks.0.img_attn_qkv": (9216, 3072),
        "double_blocks.3.txt_mlp.fc2": (3072, 12288),
        "single_blocks.5.linear1": (21504, 3072),
        "final_layer.adaLN_modulation.1": (6144, 3072),
        "txt_in.input_embedder": (3072, 4096),
        "img_in.proj": (3072, 64),
    },
    "comfyui": {"double_blocks.0.img_attn.qkv": (9216, 3072), "double_blocks.1.img_mod.lin": (18432, 3072)},
    "diffusers": {
        "transformer_blocks.0.attn.to_q": (3072, 3072),
        "transformer_blocks.0.ff.net.0.proj": (12288, 3072),
        "single_transformer_blocks.7.proj_out": (3072, 15360),
    },
}


def lora(prefix: str, names: str, ends: tuple[str, str], has_alpha: bool = False) -> Tensors:
    tensors: Tensors = {}
    for module, (rows, columns) in LORA_MODULES[names].items():
        path = prefix + (module.replace(".", "_") if prefix.endswith("_") else module)
        tensors |= {path + ends[0]: torch.ones(2, columns), path + ends[1]: torch.ones(rows, 2)}
        tensors |= {f"{path}.alpha": torch.tensor(2.0)} if has_alpha else {}
    return tensors


KOHYA, PEFT = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")
DIFFERENCES = {
    "diffusion_model.single_blocks.0.linear2.diff": torch.ones(3072, 15360, dtype=torch.float16),
    "diffusion_model.single_blocks.0.linear2.diff_b": torch.ones(3072),
}
LOKR = {
    f"lora_unet_double_blocks_0_img_attn_qkv.{end}": torch.ones(shape)
    for end, shape in {"lokr_w1": (96, 48), "lokr_w2_a": (96, 2), "lokr_w2_b": (2, 64), "alpha": ()}.items()
}
DORA = {
    f"transformer.transformer_blocks.1.attn.to_v.{end}": torch.ones(shape)
    for end, shape in {
        "lora_A.default.weight": (2, 3072),
        "lora_B.default.weight": (3072, 2),
        "lora_magnitude_vector.default.weight": (3072,),
    }.items()
}
OFT = {
    "transformer.single_transformer_blocks.0.proj_out.oft_R.weight": torch.zeros(480, 496),
    "lora_unet_single_blocks_3_linear2.oft_blocks": torch.zeros(96, 32, 32),
    "diffusion_model.double_blocks.0.img_attn.norm.query_norm.w_norm": torch.ones(128),
}
SOURCES: dict[str, tuple[str, Callable[[], Mapping[str, Tensor]]]] = {
    **{
        f"transformer {name}": ("transformer", lambda change=change: change(golden("dit_tiny_t2v.weights")))
        for name, change in TRANSFORMER_LAYOUTS.items()
    },
    **{
        f"vae {name}": ("vae", lambda change=change: change(golden("vae_tiny.weights")))
        for name, change in VAE_LAYOUTS.items()
    },
    "vae tiny": ("vae", tiny_vae),
    **{
        f"{kind} {name}": (kind, lambda kind=kind, change=change: change(text_files.weights_of(kind)))
        for kind in ("llama", "clip")
        for name, change in (
            ("plain", dict),
            ("fp8", text_files.fp8_cast),
            ("scaled", text_files.comfyui_scaled),
            ("quant", text_files.comfyui_quant),
        )
    },
    "clip bare": ("clip", lambda: text_files.without_text_model(text_files.weights_of("clip"))),
    "lora kohya": ("lora", lambda: lora("lora_unet_", "tencent", KOHYA, has_alpha=True)),
    "lora comfyui": ("lora", lambda: lora("diffusion_model.", "comfyui", PEFT)),
    "lora diffusers": ("lora", lambda: lora("transformer.", "diffusers", PEFT)),
    "lora bare": ("lora", lambda: lora("", "tencent", KOHYA)),
    "lora differences": ("lora", lambda: DIFFERENCES),
    "lora of LoKr": ("lora", lambda: LOKR),
    "lora of DoRA": ("lora", lambda: DORA),
    "lora of OFT": ("lora", lambda: OFT),
}


@cache
def source(name: str) -> tuple[str, Tensors]:
    kind, make = SOURCES[name]
    return kind, dict(make())


# Changes to a file. They draw what they need from `chance`.


def drop(tensors: Tensors, metadata: dict[str, str], chance: random.Random) -> None:
    del tensors[chance.choice(sorted(tensors))]


def rename(tensors: Tensors, metadata: dict[str, str], chance: random.Random) -> None:
    name = chance.choice(sorted(tensors))
    other = chance.choice(
        [f"{name}x", f"x.{name}", name.replace(".0.", ".1."), name.replace("weight", "bias"), name.replace(".", "_")]
    )
    tensors[other] = tensors.pop(name)


def swap(tensors: Tensors, metadata: dict[str, str], chance: random.Random) -> None:
    first, second = chance.choice(sorted(tensors)), chance.choice(sorted(tensors))
    tensors[first], tensors[second] = tensors[second], tensors[first]


def reshape(tensors: Tensors, metadata: dict[str, str], chance: random.Random) -> None:
    name = chance.choice(sorted(tensors))
    shape = list(tensors[name].shape)
    change = chance.randrange(5)
    if change == 0:
        shape = [*shape, 1]
    elif change == 1:
        shape = [1, *shape]
    elif shape and change == 2:
        shape[chance.randrange(len(shape))] += chance.choice((-1, 1, 2))
    elif shape and change == 3:
        shape[chance.randrange(len(shape))] = 0
    else:
        shape = shape[::-1]
    tensors[name] = torch.ones([max(size, 0) for size in shape], dtype=torch.float32).to(tensors[name].dtype)


DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int8",
    "uint8",
    "int32",
    "int64",
    "bool",
]


def retype(tensors: Tensors, metadata: dict[str, str], chance: random.Random) -> None:
    dtype = getattr(torch, chance.choice(DTYPES))
    names = sorted(tensors) if chance.random() < 0.3 else [chance.choice(sorted(tensors))]
    for name in names:
        tensors[name] = torch.ones(tensors[name].shape).to(dtype)


STORED_BESIDE = ("SCB", "absmax", "qweight", "wscales", "scale_weight", "weight_scale", "weight_scale_2", "input_scale")
COMPANIONS = (*STORED_BESIDE, "fp8_scale", "scale_input", "alpha", "lokr_w1", "dora_scale", "diff", "set_weight")


def accompany(tensors: Tensors, metadata: dict[str, str], chance: random.Random) -> None:
    stem = chance.choice(sorted(tensors)).rpartition(".")[0]
    shape = chance.choice([(), (1,), (1, 1), (2,), (48,), (0,)])
    tensors[f"{stem}.{chance.choice(COMPANIONS)}"] = torch.ones(shape)


STRANGERS = (
    "scaled_fp8",
    "global_step",
    "lora_unet_te_x.lora_down.weight",
    "text_model.lora_A.weight",
    "double_blocks.0.img_attn_qkv.lora_A.weight",
    "model.extra.weight",
    "layers.0.self_attn.rotary_emb.inv_freq",
    "camera_net.scale",
    "clean_x_embedder.proj.lora_A.weight",
)


def add(tensors: Tensors, metadata: dict[str, str], chance: random.Random) -> None:
    tensors[chance.choice(STRANGERS)] = torch.ones(chance.choice([(), (1,), (2, 2)]))


ENTRIES = (
    ("hyvideo.config", "{"),
    ("hyvideo.config", "[]"),
    ("hyvideo.config", '{"rope_axes": [1, 2]}'),
    ("hyvideo.config", '{"norm_groups": 3, "head_dim": 5, "num_heads": 7}'),
    ("modelspec.architecture", "flux-1-dev/lora"),
    ("ss_base_model_version", "framepack"),
    ("ss_base_model_version", "hunyuan_video_1_5"),
    ("_quantization_metadata", '{"layers": {}}'),
    ("_quantization_metadata", '{"layers": {"a": {"format": "nvfp4"}}}'),
    ("_quantization_metadata", '{"layers": {"a": {"format": "strange"}}}'),
)


def state(tensors: Tensors, metadata: dict[str, str], chance: random.Random) -> None:
    key, value = chance.choice(ENTRIES)
    metadata[key] = value


CHANGES: dict[str, Change] = {
    change.__name__: change for change in (drop, rename, swap, reshape, retype, accompany, add, state)
}


def save(tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata)


def both_answers(path: Path, kind: str) -> tuple[str, str]:
    """Why `inspect` refuses the file as one of this kind, and why the loader does; empty where they do not."""
    try:
        report = inspect_file(path)
        said = report.reason if report.kind == kind else f"It is {report.kind}. {report.reason}"
    except HyvError as error:
        said = str(error)
    try:
        LOADERS[kind](path)
    except HyvError as error:
        return said, str(error)
    return said, ""


@pytest.mark.parametrize("name", SOURCES)
def test_the_files_load_before_anything_is_changed(name: str, tmp_path: Path) -> None:
    kind, tensors = source(name)
    path = tmp_path / "model.safetensors"
    save(tensors, path, {"hyvideo.config": json.dumps(SIZES[kind])})
    assert both_answers(path, kind) == ("", "")


@settings(max_examples=200)
@given(
    name=st.sampled_from(sorted(SOURCES)),
    changes=st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=3),
    seed=st.integers(0, 10_000),
)
def test_a_changed_file_gets_one_answer(
    name: str, changes: list[str], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind, original = source(name)
    tensors, chance = dict(original), random.Random(seed)
    metadata = {"hyvideo.config": json.dumps(SIZES[kind])}
    for change in changes:
        if tensors:
            CHANGES[change](tensors, metadata, chance)
    path = tmp_path_factory.mktemp("changed") / "model.safetensors"
    save(tensors, path, metadata)
    said, refused = both_answers(path, kind)
    assert bool(said) == bool(refused), (said, refused)


RELEASES = [
    *(
        (f"{scheme}_transformer_{release}", "transformer")
        for scheme in ("tencent", "comfy")
        for release in ("t2v", "i2v_v1_latent_concat")
    ),
    ("diffusers_transformer_t2v", "transformer"),
    ("kijai_transformer_t2v_fp8_e4m3fn", "transformer"),
    ("vae_tencent_diffusers", "vae"),
    ("vae_comfy", "vae"),
]


@pytest.mark.parametrize(("name", "kind"), RELEASES)
@pytest.mark.parametrize(
    "extra", ["", "camera_net.scale", "condition_in.proj.bias", "mm_in.linear_1.bias", "image_projection.up.bias"]
)
def test_a_released_header_gets_one_answer(name: str, kind: str, extra: str, tmp_path: Path) -> None:
    """At full size over a sparse file; and with a tensor more, which another model of the family has."""
    entries: Entries = released(name) | ({extra: ([1], "bfloat16")} if extra else {})
    said, refused = both_answers(headers.write_safetensors(tmp_path / "model.safetensors", entries), kind)
    assert bool(said) == bool(refused) == bool(extra), (said, refused)


REFUSED = [case for case in CASES if case.says and not case.prefix]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name.strip())
def test_what_the_recogniser_refuses_no_loader_takes(case: Case, tmp_path: Path) -> None:
    path = headers.write_safetensors(tmp_path / "model.safetensors", case.entries())
    for load in LOADERS.values():
        with pytest.raises(HyvError):
            load(path)
