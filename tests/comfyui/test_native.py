"""ComfyUI's own loaders beside ours, at the released model's widths: the same latents, frames and encoded prompts.

The files are made here: random weights where they matter, holes in a sparse file where they do not. The language model
has layers of zeros, so that what it says of a token is the token's embedding; tokens, template, crop and layer are what
is compared.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from comfy_server import PACK, Client, Server, node
from PIL import Image
from safetensors.torch import load_file, save_file

from hyvideo_lib.checkpoint.keymaps import their_names, undo_operation
from hyvideo_lib.demo import assets
from hyvideo_lib.text import build_llama3_tokenizer
from hyvideo_lib.transformer import HunyuanVideoTransformer, TransformerConfig
from hyvideo_lib.vae import CausalVideoVAE, VAEConfig

NEEDED_GIB = 14
PROMPT = "A cat walks on the grass, realistic style."
LLM_WIDTH, LLM_INNER, LLM_LAYERS, LLM_KV, VOCAB = 4096, 14336, 32, 1024, 128320
WIDTH_OF = {"F8_E4M3": 1, "F16": 2, "F32": 4}


def free_gib() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """A server with files of the released widths under the names of the workflow for native text encoders."""
    if free_gib() < NEEDED_GIB:
        pytest.skip(f"the released widths need {NEEDED_GIB} GiB of free memory")
    base = tmp_path_factory.mktemp("native")
    models = {kind: base / "models" / kind for kind in ("text_encoders", "vae", "diffusion_models")}
    for folder in models.values():
        folder.mkdir(parents=True)
    torch.manual_seed(0)
    write_llm(models["text_encoders"] / "llava_llama3_fp8_scaled.safetensors")
    write_clip(models["text_encoders"] / "clip_l.safetensors")
    write_vae(models["vae"] / "wide_vae.safetensors")
    write_transformer(models["diffusion_models"] / "hunyuan_video_720_cfgdistill_fp8_e4m3fn.safetensors")
    shutil.copy(assets.VAE, models["vae"] / "hunyuan_video_vae_bf16.safetensors")
    (base / "input").mkdir()
    Image.effect_noise((8, 8), 120).resize((64, 64), Image.Resampling.BICUBIC).convert("RGB").save(
        base / "input" / "picture.png"
    )
    with Server(base) as server:
        yield server
    shutil.rmtree(base)


@pytest.fixture
def page(native):
    client = Client(native)
    yield client
    client.close()


def write_llm(path: Path) -> None:
    """llava_llama3 in ComfyUI's scaled fp8: layers of zeros (holes in the file), random embeddings."""
    linears = {
        "self_attn.q_proj": (LLM_WIDTH, LLM_WIDTH),
        "self_attn.k_proj": (LLM_KV, LLM_WIDTH),
        "self_attn.v_proj": (LLM_KV, LLM_WIDTH),
        "self_attn.o_proj": (LLM_WIDTH, LLM_WIDTH),
        "mlp.gate_proj": (LLM_INNER, LLM_WIDTH),
        "mlp.up_proj": (LLM_INNER, LLM_WIDTH),
        "mlp.down_proj": (LLM_WIDTH, LLM_INNER),
    }
    entries: dict[str, tuple[tuple[int, ...], str]] = {}
    for index in range(LLM_LAYERS):
        for name, shape in linears.items():
            entries[f"model.layers.{index}.{name}.weight"] = shape, "F8_E4M3"
            entries[f"model.layers.{index}.{name}.scale_weight"] = (), "F32"
        for name in ("input_layernorm", "post_attention_layernorm"):
            entries[f"model.layers.{index}.{name}.weight"] = (LLM_WIDTH,), "F16"
    entries["model.norm.weight"] = (LLM_WIDTH,), "F16"
    entries["lm_head.weight"] = (VOCAB, LLM_WIDTH), "F16"
    entries["model.embed_tokens.weight"] = (VOCAB, LLM_WIDTH), "F16"
    entries["scaled_fp8"] = (0,), "F8_E4M3"
    header, position = {}, 0
    for name, (shape, dtype) in entries.items():
        end = position + math.prod(shape) * WIDTH_OF[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for name, entry in header.items():
            file.seek(start + entry["data_offsets"][0])
            if name.endswith("scale_weight"):
                file.write(torch.ones(1).numpy().tobytes())
            elif "norm" in name:
                file.write(torch.ones(LLM_WIDTH, dtype=torch.float16).numpy().tobytes())
            elif "embed_tokens" in name:
                for _ in range(0, VOCAB, 1280):
                    file.write(torch.randn(1280, LLM_WIDTH).half().numpy().tobytes())
        file.truncate(start + position)


def write_clip(path: Path) -> None:
    """CLIP-L's text model, random, in 16 bits."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
    )
    state = CLIPTextModel(config).half().state_dict()
    prefix = "" if any(name.startswith("text_model.") for name in state) else "text_model."
    save_file({prefix + name: tensor for name, tensor in state.items() if "position_ids" not in name}, path)


def write_vae(path: Path) -> None:
    """The VAE at its true widths, random, under ComfyUI's names, which both loaders read."""
    vae = CausalVideoVAE(VAEConfig())
    found = {}
    for name, tensor in vae.state_dict().items():
        (source,) = their_names("vae", "comfyui", name)
        found[source.name] = undo_operation(source.operation, tensor).contiguous()
    save_file(found, path)


def write_transformer(path: Path) -> None:
    """A small transformer that reads the released text encoders, random."""
    config = TransformerConfig(16, 16, 256, 2, 1, 1)
    save_file(HunyuanVideoTransformer(config).state_dict(), path)


# The VAE


def clip_of_five_frames() -> dict:
    """A picture, five times: frames that both sides encode."""
    return {
        "one": node("LoadImage", image="picture.png"),
        "picture": node("RepeatImageBatch", image=["one", 0], amount=5),
        "ours": node("HyvLoadVAE", file="wide_vae.safetensors", dtype="float32"),
        "theirs": node("VAELoader", vae_name="wide_vae.safetensors"),
        "encode_ours": node(
            "HyvEncodeVideo",
            vae=["ours", 0],
            frames=["picture", 0],
            tiles="none",
            tile_size=256,
            tile_frames=64,
            sampled=False,
            seed=0,
        ),
        "encode_theirs": node("VAEEncode", vae=["theirs", 0], pixels=["picture", 0]),
    }


def decoded(kind: str, latents: str) -> dict:
    if kind == "theirs":
        return node("VAEDecode", vae=["theirs", 0], samples=[latents, 0])
    return node("HyvDecode", vae=["ours", 0], latents=[latents, 0], tiles="none", tile_size=256, tile_frames=64)


def test_latents_mean_the_same_to_both_vaes(native, page):
    prompt = clip_of_five_frames()
    for side in ("ours", "theirs"):
        prompt[f"keep_{side}"] = node("SaveLatent", samples=[f"encode_{side}", 0], filename_prefix=f"latent_{side}")
    assert page.run(prompt).status == "success"
    ours, theirs = (
        load_file(next((native.base / "output").glob(f"latent_{side}*")))["latent_tensor"]
        for side in ("ours", "theirs")
    )
    assert ours.shape == theirs.shape == (1, 16, 2, 8, 8)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_either_vae_decodes_what_the_other_encoded(native, page):
    prompt = clip_of_five_frames()
    for by in ("ours", "theirs"):
        for of in ("ours", "theirs"):
            prompt[f"decode_{by}_{of}"] = decoded(by, f"encode_{of}")
            prompt[f"keep_{by}_{of}"] = node("SaveImage", images=[f"decode_{by}_{of}", 0], filename_prefix=f"{by}_{of}")
    assert page.run(prompt).status == "success"

    def frames(name: str) -> torch.Tensor:
        files = sorted((native.base / "output").glob(f"{name}_*.png"))
        assert len(files) == 5
        return torch.stack([torch.tensor(list(Image.open(file).tobytes())) for file in files])

    wanted = frames("ours_ours")
    assert wanted.float().std() > 1
    for name in ("ours_theirs", "theirs_ours", "theirs_theirs"):
        assert (frames(name) - wanted).abs().max() <= 1, name


# Text encoders


@pytest.fixture(scope="module")
def has_native_tokenizer():
    """Some copies of ComfyUI lack the tokenizer of its language model, and transformers 5 reads it wrong."""
    folder = Path(os.environ["COMFYUI_PATH"]) / "comfy" / "text_encoders" / "llama_tokenizer"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"this ComfyUI has no tokenizer.json in {folder.name}: build_llama3_tokenizer().save(...) makes it")
    code = "import transformers; print(transformers.__version__)"
    version = subprocess.run([os.environ["COMFYUI_PYTHON"], "-c", code], capture_output=True, text=True).stdout
    if not version.startswith("4."):
        pytest.skip(
            f"with transformers {version.strip()} ComfyUI's own tokenizer loses the spaces: install one below 5"
        )


def test_native_text_encoders_reach_our_sampler(native, page, has_native_tokenizer):
    """The workflow with the native encoders, to the end; our encoders say the same of the same files."""
    prompt = json.loads((PACK / "workflows" / "api" / "720p_native_text_encoders.json").read_text())
    changes = {
        "HyvEmptyLatents": {"width": 64, "height": 64, "frames": 17},
        "HyvSampler": {"steps": 2},
        "CLIPTextEncode": {"text": PROMPT},
    }
    for entry in prompt.values():
        entry["inputs"] |= changes.get(entry["class_type"], {})
    bridge = next(key for key, entry in prompt.items() if entry["class_type"] == "HyvEmbedsFromConditioning")
    prompt["keep"] = node("HyvSaveEmbeds", embeds=[bridge, 0], filename_prefix="native")
    outcome = page.run(prompt)
    assert outcome.status == "success", outcome.error
    assert outcome.files

    build_llama3_tokenizer().save(str(native.base / "models" / "text_encoders" / "tokenizer.json"))
    shutil.copytree(
        Path(os.environ["COMFYUI_PATH"]) / "comfy" / "sd1_tokenizer",
        native.base / "models" / "text_encoders" / "sd1_tokenizer",
    )
    ours = {
        "texts": node(
            "HyvLoadTextEncoders",
            llm="llava_llama3_fp8_scaled.safetensors",
            clip="clip_l.safetensors",
            llm_tokenizer="tokenizer.json",
            clip_tokenizer="sd1_tokenizer",
            storage="auto",
            device="auto",
        ),
        "embeds": node(
            "HyvEncodePrompt", text_encoders=["texts", 0], prompt=PROMPT, negative_prompt="", template="video"
        ),
        "keep": node("HyvSaveEmbeds", embeds=["embeds", 0], filename_prefix="ours"),
    }
    assert page.run(ours).status == "success"
    found, wanted = (
        load_file(next((native.base / "output").glob(f"{name}*.embeds.safetensors"))) for name in ("ours", "native")
    )
    tokens = int(wanted["positive.text_mask"].sum())
    assert int(found["positive.text_mask"].sum()) == tokens
    near, far = (table["positive.text_embeds"][0, :tokens].float() for table in (found, wanted))
    assert (near - far).abs().max() <= 1e-2 * far.abs().max()
    pooled, native_pooled = (table["positive.pooled_embeds"].float() for table in (found, wanted))
    assert (pooled - native_pooled).abs().max() <= 2e-2 * native_pooled.abs().max()
