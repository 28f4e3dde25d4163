"""Every kind of file that people have, under every prefix, naming scheme and storage that applies, at full size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import checkpoint_headers as headers
import pytest
from checkpoint_headers import GGUF_STORAGES, REFUSED_STORAGES, STORAGES, Entries, prefixed, released

from hyvideo_lib.checkpoint import FileReport, inspect_file

TRANSFORMER_PREFIXES = (
    "",
    "model.",
    "model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "module.",
)
VAE_PREFIXES = ("", "vae.", "first_stage_model.", "model.", "module.")
LLAMA_PREFIXES = ("", "model.", "language_model.model.", "model.language_model.", "text_encoder.", "module.")
CLIP_PREFIXES = ("", "clip_l.", "text_encoder.", "text_encoders.clip_l.transformer.", "cond_stage_model.transformer.")
SCHEMES = ("tencent", "comfy", "diffusers")
LAYOUT = {"tencent": "tencent", "comfy": "comfyui", "diffusers": "diffusers"}
RELEASES = {"t2v": "t2v", "i2v_v1_latent_concat": "i2v_latent_concat", "i2v_v2_token_replace": "t2v"}


@dataclass(frozen=True)
class Case:
    """A synthetic file and what the recogniser must say of it. says: words of the reason; none if it is supported."""

    name: str
    entries: Callable[[], Entries]
    kind: str
    layout: str
    variant: str = ""
    prefix: str = ""
    quantization: str = "none"
    says: str = ""
    is_gguf: bool = False


def transformer(scheme: str, release: str = "t2v") -> Entries:
    return released(f"{scheme}_transformer_{release}")


def patch_name(scheme: str) -> str:
    return "x_embedder.proj.weight" if scheme == "diffusers" else "img_in.proj.weight"


def with_channels(scheme: str, channels: int) -> Entries:
    return {**transformer(scheme), patch_name(scheme): ([3072, channels, 1, 2, 2], "bfloat16")}


def transformers() -> Iterator[Case]:
    for scheme, (release, variant), prefix in itertools.product(SCHEMES, RELEASES.items(), TRANSFORMER_PREFIXES):
        yield Case(
            f"{scheme} {release} {prefix}",
            lambda s=scheme, r=release, p=prefix: prefixed(p, transformer(s, r)),
            "transformer",
            LAYOUT[scheme],
            variant,
            prefix,
        )
    for scheme, (storage, (name, convert)), prefix in itertools.product(
        SCHEMES, STORAGES.items(), ("", "model.diffusion_model.")
    ):
        yield Case(
            f"{scheme} {storage} {prefix}",
            lambda s=scheme, c=convert, p=prefix: prefixed(p, c(transformer(s))),
            "transformer",
            LAYOUT[scheme],
            "t2v",
            prefix,
            name,
        )
    for scheme, (storage, (name, convert)) in itertools.product(SCHEMES, REFUSED_STORAGES.items()):
        yield Case(
            f"{scheme} {storage}",
            lambda s=scheme, c=convert: c(transformer(s)),
            "transformer",
            LAYOUT[scheme],
            "*",
            "",
            name,
            "not supported",
        )
    for scheme, storage in itertools.product(("tencent", "comfy"), GGUF_STORAGES):
        yield Case(
            f"gguf {scheme} {storage}",
            lambda s=scheme, c=GGUF_STORAGES[storage]: c(transformer(s)),
            "transformer",
            LAYOUT[scheme],
            "t2v",
            "",
            "gguf",
            is_gguf=True,
        )
    for scheme, prefix in itertools.product(SCHEMES, ("", "model.model.")):
        yield Case(
            f"{scheme} 32 channels {prefix}",
            lambda s=scheme, p=prefix: prefixed(p, with_channels(s, 32)),
            "transformer",
            LAYOUT[scheme],
            "i2v_concat_no_mask",
            prefix,
        )


def extra(*names: str, shape: tuple[int, ...] = (3072, 3072)) -> Entries:
    return {name: (list(shape), "bfloat16") for name in names}


# A relative -> words of the verdict, tensors that it has beyond HunyuanVideo's and those it lacks, its patch embedding.
HV15 = ("cond_type_embedding.weight", "vision_in.proj.0.weight", "byt5_in.fc1.weight")
HV15_DIFFUSERS = ("cond_type_embed.weight", "image_embedder.norm_in.weight", "context_embedder_2.linear_1.weight")
NO_POOLED = ("vector_in.", "time_text_embed.text_embedder.")
RELATIVES: dict[tuple[str, str], tuple[str, Entries, tuple[str, ...], list[int]]] = {
    **{
        (variant, scheme): (words, extra(*names), ("vector_in.", "time_text_embed."), [2048, channels, 1, 1, 1])
        for scheme, names in (("tencent", HV15), ("comfy", HV15), ("diffusers", HV15_DIFFUSERS))
        for variant, channels, words in (
            ("hunyuanvideo-1.5", 65, "HunyuanVideo 1.5, a different"),
            ("hunyuanvideo-1.5-sr", 98, "super-resolution model of HunyuanVideo 1.5"),
        )
    },
    **{
        ("hunyuanimage-2.1", scheme): ("HunyuanImage 2.1", extra(name), NO_POOLED, [3584, 64, 1, 1])
        for scheme, name in (
            ("tencent", "byt5_in.fc1.weight"),
            ("comfy", "byt5_in.fc1.weight"),
            ("diffusers", "time_guidance_embed.timestep_embedder.linear_1.weight"),
        )
    },
    **{
        ("hunyuanimage-2.1-refiner", scheme): ("refiner of HunyuanImage", {}, NO_POOLED, [3328, 128, 1, 1, 1])
        for scheme in SCHEMES
    },
    **{
        ("avatar", scheme): (
            "HunyuanVideo-Avatar",
            extra("audio_proj.proj1.weight", "motion_exp.mlp.0.weight", "audio_adapter_blocks.0.to_q.weight"),
            (),
            [3072, 16, 1, 2, 2],
        )
        for scheme in ("tencent", "comfy")
    },
    **{
        ("custom_audio", scheme): (
            "audio form of HunyuanCustom",
            extra("audio_proj.proj1.weight", "audio_models.0.to_q.weight"),
            (),
            [3072, 16, 1, 2, 2],
        )
        for scheme in ("tencent", "comfy")
    },
    **{
        ("custom_editing", scheme): (
            "video-editing form of HunyuanCustom",
            extra("bg_proj.weight") | extra("bg_in.proj.weight", shape=(3072, 32, 1, 2, 2)),
            (),
            [3072, 16, 1, 2, 2],
        )
        for scheme in ("tencent", "comfy")
    },
    **{
        ("gamecraft", scheme): (
            "Hunyuan-GameCraft",
            extra("camera_net.encode_first.0.weight", shape=(192, 384, 1, 1))
            | extra("camera_net.final_proj.weight", shape=(16, 96, 1, 1))
            | extra("camera_net.scale", shape=(1,))
            | extra("camera_net.camera_in.proj.weight", shape=(3072, 16, 1, 2, 2)),
            (),
            [3072, 33, 1, 2, 2],
        )
        for scheme in ("tencent", "comfy")
    },
    **{
        ("voyager", scheme): (
            "HunyuanWorld-Voyager",
            extra("condition_in.proj.weight", shape=(3072, channels, 1, 2, 2))
            | extra("context_block1.img_attn_qkv.weight", "context_block2.linear1.weight", "zero_linear1.weight"),
            (),
            [3072, channels, 1, 2, 2],
        )
        for scheme, channels in (("tencent", 16), ("comfy", 33))
    },
    **{
        ("worldplay", scheme): (
            "HY-WorldPlay",
            extra(*HV15, "double_blocks.0.img_attn_prope_proj.weight", shape=(2048, 2048))
            | extra("action_in.mlp.0.weight", shape=(2048, 256)),
            ("vector_in.", "guidance_in."),
            [2048, 65, 1, 1, 1],
        )
        for scheme in ("tencent", "comfy")
    },
    **{
        ("omniweaving", scheme): (
            "OmniWeaving",
            extra(*HV15, "mm_in.linear_2.weight", shape=(2048, 2048))
            | extra("mm_in.linear_1.weight", shape=(2048, 3584)),
            ("vector_in.", "guidance_in."),
            [2048, 65, 1, 1, 1],
        )
        for scheme in ("tencent", "comfy")
    },
    ("framepack", "diffusers"): (
        "FramePack",
        extra("clean_x_embedder.proj.weight", shape=(3072, 16, 1, 2, 2)) | extra("image_projection.up.weight"),
        (),
        [3072, 16, 1, 2, 2],
    ),
}


def relatives() -> Iterator[Case]:
    for ((variant, scheme), (words, more, absent, patch)), prefix in itertools.product(
        RELATIVES.items(), ("", "model.diffusion_model.", "module.")
    ):

        def entries(s: str = scheme, m: Entries = more, a: tuple[str, ...] = absent, p: str = prefix, d: list = patch):
            kept = {name: value for name, value in transformer(s).items() if not name.startswith(a or "?")}
            return prefixed(p, {**kept, **m, patch_name(s): (d, "bfloat16")})

        yield Case(f"{variant} {scheme} {prefix}", entries, "transformer", LAYOUT[scheme], variant, prefix, says=words)


def vaes() -> Iterator[Case]:
    for (file, layout), prefix, dtype in itertools.product(
        (("vae_tencent_diffusers", "tencent"), ("vae_comfy", "comfyui")),
        VAE_PREFIXES,
        ("bfloat16", "float16", "float32"),
    ):
        yield Case(
            f"vae {layout} {prefix} {dtype}",
            lambda f=file, p=prefix, d=dtype: prefixed(p, headers.cast(d)(released(f))),
            "vae",
            layout,
            "",
            prefix,
        )


LLAVA_OLD = extra("vision_tower.vision_model.embeddings.class_embedding", "multi_modal_projector.linear_1.weight")
LLAVA_NEW = extra("model.vision_tower.embeddings.class_embedding", "model.multi_modal_projector.linear_1.weight")


def llama_cpp_entries() -> Entries:
    top = {"embed_tokens": "token_embd", "norm": "output_norm"}
    middle = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    names = {}
    for name, value in released("llama_hf").items():
        module = name.removesuffix(".weight")
        if module in top:
            names[f"{top[module]}.weight"] = value
        else:
            _, index, part = module.split(".", 2)
            names[f"blk.{index}.{middle[part]}.weight"] = value
    return {**names, "output.weight": ([128320, 4096], "float16"), "rope_freqs.weight": ([64], "float32")}


def text_encoders() -> Iterator[Case]:
    for prefix, dtype in itertools.product(LLAMA_PREFIXES, ("float16", "bfloat16")):
        yield Case(
            f"llama {prefix} {dtype}",
            lambda p=prefix, d=dtype: prefixed(p, headers.cast(d)(released("llama_hf"))),
            "llama",
            "huggingface",
            "",
            prefix,
        )
    for prefix, more in (("language_model.model.", LLAVA_OLD), ("model.language_model.", LLAVA_NEW)):
        yield Case(
            f"llava {prefix}",
            lambda p=prefix, m=more: {**prefixed(p, released("llama_hf")), **m},
            "llama",
            "huggingface",
            "llava",
            prefix,
        )
    for file, scheme in (
        ("llava_llama3_comfy_fp16", "none"),
        ("llava_llama3_comfy_fp8_scaled", "comfyui_fp8_scaled"),
    ):
        yield Case(file, lambda f=file: released(f), "llama", "huggingface", "", "model.", scheme)
    for storage in ("e4m3", "comfy quant", "scaled"):
        scheme, convert = STORAGES[storage]
        yield Case(
            f"llama {storage}", lambda c=convert: c(released("llama_hf")), "llama", "huggingface", "", "", scheme
        )
    for storage, convert in GGUF_STORAGES.items():
        yield Case(
            f"llama gguf {storage}",
            lambda c=convert: c(llama_cpp_entries()),
            "llama",
            "llama_cpp",
            "",
            "",
            "gguf",
            is_gguf=True,
        )
    for prefix in CLIP_PREFIXES:
        yield Case(
            f"clip {prefix}", lambda p=prefix: prefixed(p, released("clip_l_text")), "clip", "huggingface", "", prefix
        )
        yield Case(
            f"bare clip {prefix}",
            lambda p=prefix: {
                p + name.removeprefix("text_model."): value for name, value in released("clip_l_text").items()
            },
            "clip",
            "huggingface_bare",
            "",
            prefix,
        )


def some(shape: tuple[int, ...], *names: str) -> Entries:
    return {name: (list(shape), "float16") for name in names}


FLUX = some(
    (4, 4), "double_blocks.0.img_attn.qkv.weight", "img_in.weight", "txt_in.weight", "single_blocks.0.linear1.weight"
)
WAN = some((4, 4), "blocks.0.self_attn.q.weight", "blocks.0.cross_attn.q.weight", "head.modulation")
LTX = some((4, 4), "patchify_proj.weight", "transformer_blocks.0.attn1.to_q.weight", "adaln_single.linear.weight")
HYDIT = some((4, 4), "mlp_t5.0.weight", "blocks.0.attn1.Wqkv.weight", "text_embedding_padding")
T5 = some((4, 4), "encoder.block.0.layer.0.SelfAttention.q.weight")
QWEN = some((4, 4), "embed_tokens.weight", "layers.0.mlp.gate_proj.weight")
# name -> tensors, kind, layout, variant, words of the verdict
STRANGERS: dict[str, tuple[Entries, str, str, str, str]] = {
    "flux": (FLUX, "transformer", "comfyui", "flux", "a Flux transformer"),
    "wan": (WAN, "transformer", "native", "wan", "a Wan transformer"),
    "ltx": (LTX, "transformer", "native", "ltx", "an LTX-Video transformer"),
    "hunyuandit 1.0": (
        HYDIT | some((5632, 3968), "extra_embedder.0.weight"),
        "transformer",
        "native",
        "hunyuandit-1.0",
        "HunyuanDiT 1.0 or 1.1",
    ),
    "hunyuandit 1.2": (
        HYDIT | some((5632, 1024), "extra_embedder.0.weight"),
        "transformer",
        "native",
        "hunyuandit-1.2",
        "HunyuanDiT 1.2",
    ),
    "hunyuandit controlnet": (
        HYDIT | some((4, 4), *(f"after_proj_list.{index}.weight" for index in range(19))),
        "controlnet",
        "native",
        "hunyuandit",
        "ControlNet for HunyuanDiT",
    ),
    "controlnet": (some((4, 4), "controlnet_blocks.0.weight"), "controlnet", "other", "", "This is a ControlNet"),
    "stable diffusion": (
        some((4, 4), "input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight"),
        "transformer",
        "native",
        "stable-diffusion",
        "Stable Diffusion",
    ),
    "opensora vae": (
        some((4, 4), "spatial_vae.module.encoder.conv_in.weight", "temporal_vae.decoder.conv1.conv.weight"),
        "vae",
        "native",
        "opensora-1.2",
        "Open-Sora 1.2",
    ),
    "1.5 vae": (
        some((1024, 32, 3, 3, 3), "decoder.conv_in.conv.weight") | some((4,), "decoder.mid.block_1.norm1.gamma"),
        "vae",
        "native",
        "hunyuanvideo-1.5",
        "HunyuanVideo 1.5",
    ),
    "wan vae": (some((4,), "decoder.middle.0.residual.0.gamma"), "vae", "native", "wan", "a Wan VAE"),
    "image vae": (
        some((128, 4, 3, 3), "decoder.conv_in.weight", "encoder.conv_in.weight"),
        "vae",
        "native|diffusers",
        "image",
        "single images",
    ),
    "t5": (T5, "t5", "huggingface", "", "T5 text encoder"),
    "umt5": (T5 | some((256384, 4096), "shared.weight"), "t5", "huggingface", "umt5", "UMT5"),
    "qwen2": (
        QWEN | some((4,), "layers.0.self_attn.q_proj.bias"),
        "text",
        "huggingface",
        "qwen2",
        "a Qwen 2 text encoder",
    ),
    "gemma": (QWEN | some((4,), "layers.0.pre_feedforward_layernorm.weight"), "text", "huggingface", "gemma2", "Gemma"),
    "clip-g": (
        some((49408, 1280), "text_model.embeddings.token_embedding.weight")
        | some((5120, 1280), "text_model.encoder.layers.0.mlp.fc1.weight"),
        "clip",
        "huggingface",
        "clip-g",
        "CLIP-G, 1280 wide",
    ),
    "clip-h": (
        some((49408, 1024), "text_model.embeddings.token_embedding.weight")
        | some((4096, 1024), "text_model.encoder.layers.0.mlp.fc1.weight"),
        "clip",
        "huggingface",
        "clip-h",
        "CLIP-H, 1024 wide",
    ),
    "openai clip": (
        some((4, 4), "transformer.resblocks.0.attn.in_proj_weight", "token_embedding.weight"),
        "clip",
        "openai",
        "",
        "OpenAI's naming",
    ),
    "vision": (
        some((4, 4), "vision_model.embeddings.class_embedding", "vision_model.encoder.layers.0.mlp.fc1.weight"),
        "vision",
        "huggingface",
        "",
        "an image encoder",
    ),
    "scale map": (
        {name: ([1], "float32") for name in ("double_blocks.0.img_attn_qkv", "single_blocks.0.linear1")},
        "scale_map",
        "tencent",
        "",
        "scales of Tencent's fp8",
    ),
    "unknown": (some((4, 4), "some.weight"), "unknown", "", "", "nothing known here"),
}
# Which of the strangers occur under which other prefixes.
STRANGE_PREFIXES = {
    **dict.fromkeys(("flux", "wan", "ltx"), ("model.diffusion_model.", "diffusion_model.", "model.")),
    **dict.fromkeys(("hunyuandit 1.0", "hunyuandit 1.2"), ("module.", "model.")),
    **dict.fromkeys(("1.5 vae", "wan vae", "image vae"), ("vae.", "first_stage_model.")),
    "qwen2": ("model.", "model.language_model."),
    "t5": ("text_encoder.",),
}


def strangers() -> Iterator[Case]:
    for name, (entries, kind, layout, variant, words) in STRANGERS.items():
        for prefix in ("", *STRANGE_PREFIXES.get(name, ())):
            yield Case(
                f"{name} {prefix}",
                lambda e=entries, p=prefix: prefixed(p, e),
                kind,
                layout,
                variant,
                prefix,
                says=words,
            )


CASES = [*transformers(), *relatives(), *vaes(), *text_encoders(), *strangers()]


def inspect(case: Case, folder: Path) -> FileReport:
    if case.is_gguf:
        architecture = "llama" if case.kind == "llama" else "hyvid"
        return inspect_file(
            headers.write_gguf(folder / "model.gguf", case.entries(), {"general.architecture": architecture})
        )
    return inspect_file(headers.write_safetensors(folder / "model.safetensors", case.entries()))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.strip())
def test_a_file_is_recognised(case: Case, tmp_path: Path) -> None:
    report = inspect(case, tmp_path)
    variant = report.variant if case.variant == "*" else case.variant
    assert (report.kind, report.layout, report.variant, report.prefix) == (
        case.kind,
        case.layout,
        variant,
        case.prefix,
    )
    assert report.quantization == case.quantization
    assert report.supported == (not case.says), report.reason
    assert case.says in report.reason
    if report.supported:
        assert (report.missing, report.unexpected, report.wrong_shapes) == ((), (), ())
        assert report.config is not None


def test_there_are_many_different_headers(capsys: pytest.CaptureFixture[str]) -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 200
    with capsys.disabled():
        print(f"\n{len(CASES)} synthetic headers of models")
