"""Loading: files to handles. Weights stay where the file is mapped until a model runs."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..hyvideo_lib.attention import attention_names, register
from ..hyvideo_lib.demo import assets
from ..hyvideo_lib.errors import InvalidSetting, UnsupportedFile, WrongKind
from ..hyvideo_lib.pipeline import DTYPES, Precision
from ..hyvideo_lib.pipeline.precision import DENSE, MATMULS
from . import comfy_host
from .files import (
    DEMO,
    FOUND,
    TEXT_KINDS,
    TRANSFORMER_KINDS,
    VAE_KINDS,
    check_file,
    find_tokenizer,
    fingerprint,
    fingerprint_tokenizer,
    list_choices,
    resolve,
)
from .node import CATEGORY, check_inputs, names_its_errors
from .sockets import HYV_BLOCK_SWAP, HYV_COMPILE, HYV_MODEL, HYV_TEXT, HYV_VAE, TextHandle, TransformerHandle, VAEHandle

if TYPE_CHECKING:
    from ..hyvideo_lib.checkpoint import FileReport
    from ..hyvideo_lib.memory import BlockSwap
    from ..hyvideo_lib.transformer import CompileConfig

logger = logging.getLogger(__name__)

AS_STORED = "as in the file"
STORAGE = {AS_STORED: None, **{name: name for name in DTYPES}}
VARIANTS = {"auto": None, "text to video": "t2v"}
register(comfy_host.ATTENTION)


def choose_matmul(fp8_matmul: bool, matmul: str) -> str:
    """The products that both widgets ask for; the first is older and says less. Raises InvalidSetting."""
    if fp8_matmul and matmul not in (DENSE, "fp8"):
        raise InvalidSetting(f"fp8_matmul is on, but matmul is {matmul}. Switch fp8_matmul off.")
    return "fp8" if fp8_matmul else matmul


def check_variant(path: Path, variant: str) -> FileReport:
    """The report on a transformer's file. Raises what the recogniser raises, and UnsupportedFile for other variants."""
    wanted = VARIANTS[variant]
    report = check_file("transformer", path, wanted)
    if report.variant != (wanted or "t2v"):
        raise UnsupportedFile(
            f"{path.name} is no text-to-video transformer: {' '.join(report.notes)} Choose one that takes as many "
            "latent channels as it gives; image to video is not built yet."
        )
    return report


class LoadTransformer(io.ComfyNode):
    """HyvLoadTransformer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvLoadTransformer",
            display_name="HunyuanVideo Load Transformer",
            category=f"{CATEGORY}/load",
            description="Loads a HunyuanVideo transformer (.safetensors or GGUF). What the file is, is read from its "
            "contents.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=list_choices(*TRANSFORMER_KINDS),
                    default=DEMO,
                    tooltip="A file in models/diffusion_models. hyvideo-demo is the small model that comes with the "
                    "pack: it draws coloured shapes, on any computer, in seconds.",
                ),
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default="auto",
                    tooltip="Which model of the family the file is. Both choices take text to video alone, which is "
                    "what runs so far. A token-replace image-to-video file looks the same and makes poor videos.",
                ),
                io.Combo.Input(
                    "storage",
                    options=list(STORAGE),
                    default=AS_STORED,
                    tooltip="What the weights rest in. As in the file costs no time and no RAM. float8_e4m3fn halves "
                    "the memory of a 16-bit file, with a small loss of detail.",
                ),
                io.Combo.Input(
                    "compute_dtype",
                    options=["auto", "bfloat16", "float16", "float32"],
                    default="auto",
                    tooltip="What is multiplied in. auto: bfloat16 on a graphics card, float32 on a CPU. float16 can "
                    "overflow in this model; float32 doubles memory and time.",
                ),
                io.Combo.Input(
                    "attention",
                    options=attention_names(),
                    default="auto",
                    tooltip="Which attention kernel. auto takes the fastest exact one that works here; sdpa is "
                    "PyTorch's own. sage and comfy_kitchen multiply in 8 bits: faster, with a small loss of detail. "
                    "comfyui is what ComfyUI itself uses.",
                ),
                io.Boolean.Input(
                    "fp8_matmul",
                    default=False,
                    optional=True,
                    tooltip="Multiply fp8 weights in fp8: for RTX 40 series, H100 and newer, with a small loss of "
                    "detail. The same as matmul fp8.",
                ),
                HYV_BLOCK_SWAP.Input(
                    "block_swap",
                    optional=True,
                    tooltip="Keeps blocks in RAM while others compute, so that less of the card's memory is needed. "
                    "Without it ComfyUI's memory manager decides.",
                ),
                HYV_COMPILE.Input(
                    "compile",
                    optional=True,
                    tooltip="From Compile: faster steps after a slow first one. Without it nothing is compiled.",
                ),
                io.Combo.Input(
                    "matmul",
                    options=list(MATMULS),
                    default=DENSE,
                    optional=True,
                    tooltip="How the blocks multiply. dense: in compute_dtype, as the model is defined. 8 bits lose a "
                    "little detail and can be faster; time it on your card. int8: RTX 30 series and newer, CPUs. fp8: "
                    "fp8 weights on RTX 40 series and newer. fp8_rows: H100, and RTX 40 series with a recent PyTorch.",
                ),
            ],
            outputs=[HYV_MODEL.Output("model", display_name="model", tooltip="For the sampler.")],
        )

    @classmethod
    def validate_inputs(
        cls,
        file: str,
        variant: str = "auto",
        storage: str = AS_STORED,
        compute_dtype: str = "auto",
        attention: str = "auto",
        fp8_matmul: bool = False,
        matmul: str = DENSE,
    ) -> bool | str:
        values = {
            "file": file,
            "variant": variant,
            "storage": storage,
            "compute_dtype": compute_dtype,
            "attention": attention,
            "fp8_matmul": fp8_matmul,
            "matmul": matmul,
        }

        def check() -> object:
            choose_matmul(fp8_matmul, matmul)
            return check_variant(resolve(file, assets.TRANSFORMER, *TRANSFORMER_KINDS), variant)

        return check_inputs(cls, values, check)

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: object) -> str:
        return fingerprint(file, assets.TRANSFORMER, *TRANSFORMER_KINDS)

    @classmethod
    @names_its_errors
    def execute(
        cls,
        file: str,
        variant: str = "auto",
        storage: str = AS_STORED,
        compute_dtype: str = "auto",
        attention: str = "auto",
        fp8_matmul: bool = False,
        block_swap: BlockSwap | None = None,
        compile: CompileConfig | None = None,
        matmul: str = DENSE,
    ) -> io.NodeOutput:
        from ..hyvideo_lib.checkpoint import load_transformer
        from ..hyvideo_lib.checkpoint.variants import name_contradiction
        from ..hyvideo_lib.pipeline import SettledRuns, offload_transformer

        path = resolve(file, assets.TRANSFORMER, *TRANSFORMER_KINDS)
        report = check_variant(path, variant)
        contradiction = name_contradiction(path.name, report.variant, (report.variant,))
        if contradiction:
            logger.warning("%s: %s", path.name, contradiction)
        device = comfy_host.compute_device()
        precision = Precision(
            compute_dtype, STORAGE[storage], matmul=choose_matmul(fp8_matmul, matmul), attention=attention
        )
        precision.check_device(device, report)
        model = load_transformer(
            path,
            precision.storage_dtype,
            precision.transformer_dtype(device),
            product=precision.product,
        )
        offloader = offload_transformer(model, block_swap)
        managed = comfy_host.manage(offloader, device)
        settled = SettledRuns()
        return io.NodeOutput(
            TransformerHandle(path.name, report, model, offloader, managed, attention, settled, compiling=compile)
        )


class LoadTextEncoders(io.ComfyNode):
    """HyvLoadTextEncoders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvLoadTextEncoders",
            display_name="HunyuanVideo Load Text Encoders",
            category=f"{CATEGORY}/load",
            description="Loads the language model (the Llama part of llava-llama-3-8b) and CLIP-L's text encoder.",
            inputs=[
                io.Combo.Input(
                    "llm",
                    options=list_choices(*TEXT_KINDS),
                    default=DEMO,
                    tooltip="The language model in models/text_encoders (or clip, or LLM): a .safetensors or GGUF "
                    "file, or the first part of one in parts.",
                ),
                io.Combo.Input(
                    "clip",
                    options=list_choices(*TEXT_KINDS),
                    default=DEMO,
                    tooltip="CLIP-L's text encoder, a file in the same folders.",
                ),
                io.String.Input(
                    "llm_tokenizer",
                    default=FOUND,
                    tooltip="Where the language model's tokenizer.json is: the name of a file or folder in the same "
                    "folders. As it stands it is looked for beside and inside the file, in ComfyUI itself, and for "
                    "Llama-3 in the package llama-models.",
                ),
                io.String.Input(
                    "clip_tokenizer",
                    default=FOUND,
                    tooltip="Where CLIP's tokenizer.json is, as above.",
                ),
                io.Combo.Input(
                    "storage",
                    options=["auto", "bfloat16", "float16", "float32"],
                    default="auto",
                    tooltip="What the encoders rest and compute in. auto leaves them as the file has them, computes "
                    "8-bit ones in bfloat16, and costs no extra RAM.",
                ),
                io.Combo.Input(
                    "device",
                    options=["auto", "gpu", "cpu"],
                    default="auto",
                    tooltip="Where prompts are encoded. auto is ComfyUI's choice. cpu takes none of the card's memory "
                    "and some seconds a prompt.",
                ),
            ],
            outputs=[HYV_TEXT.Output("text_encoders", display_name="text_encoders", tooltip="For Encode Prompt.")],
        )

    @classmethod
    def validate_inputs(
        cls,
        llm: str,
        clip: str,
        llm_tokenizer: str = FOUND,
        clip_tokenizer: str = FOUND,
        storage: str = "auto",
        device: str = "auto",
    ) -> bool | str:
        def check() -> None:
            check_file("llm", resolve(llm, assets.LLM, *TEXT_KINDS))
            check_file("clip", resolve(clip, assets.CLIP, *TEXT_KINDS))
            find_tokenizer(llm_tokenizer)
            find_tokenizer(clip_tokenizer)

        values = {"llm": llm, "clip": clip, "storage": storage, "device": device}
        known = {**values, "llm_tokenizer": llm_tokenizer, "clip_tokenizer": clip_tokenizer}
        return check_inputs(cls, known, check)

    @classmethod
    def fingerprint_inputs(
        cls, llm: str, clip: str, llm_tokenizer: str = FOUND, clip_tokenizer: str = FOUND, **_: object
    ) -> str:
        files = fingerprint(llm, assets.LLM, *TEXT_KINDS) + fingerprint(clip, assets.CLIP, *TEXT_KINDS)
        return files + fingerprint_tokenizer(llm_tokenizer) + fingerprint_tokenizer(clip_tokenizer)

    @classmethod
    @names_its_errors
    def execute(
        cls,
        llm: str,
        clip: str,
        llm_tokenizer: str = FOUND,
        clip_tokenizer: str = FOUND,
        storage: str = "auto",
        device: str = "auto",
    ) -> io.NodeOutput:
        from ..hyvideo_lib.checkpoint import load_text_encoder
        from ..hyvideo_lib.pipeline import offload_text_encoder
        from ..hyvideo_lib.text import ClipTextEncoder, LlamaTextEncoder

        paths = resolve(llm, assets.LLM, *TEXT_KINDS), resolve(clip, assets.CLIP, *TEXT_KINDS)
        reports = check_file("llm", paths[0]), check_file("clip", paths[1])
        dtype = Precision(text=storage).text_dtype
        load = partial(
            load_text_encoder,
            storage_dtype=dtype,
            compute_dtype=dtype,
            tokenizer_places=comfy_host.native_tokenizers(),
        )
        language = load(paths[0], find_tokenizer(llm_tokenizer), kind="llama")
        pooled = load(paths[1], find_tokenizer(clip_tokenizer), kind="clip")
        if not isinstance(language, LlamaTextEncoder) or not isinstance(pooled, ClipTextEncoder):
            raise WrongKind("The files of the language model and of the CLIP encoder are interchanged. Swap them.")
        place = comfy_host.text_device(device)
        managed = tuple(comfy_host.manage(offload_text_encoder(encoder), place) for encoder in (language, pooled))
        names = paths[0].name, paths[1].name
        return io.NodeOutput(TextHandle(names, reports, language, pooled, managed))


class LoadVAE(io.ComfyNode):
    """HyvLoadVAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvLoadVAE",
            display_name="HunyuanVideo Load VAE",
            category=f"{CATEGORY}/load",
            description="Loads HunyuanVideo's causal 3D VAE, which turns latents into frames and back.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=list_choices(*VAE_KINDS),
                    default=DEMO,
                    tooltip="A file in models/vae, or in models/vae_approx: a tiny VAE (TAEHV) decodes previews and "
                    "encodes nothing. hyvideo-demo belongs to the demo transformer.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", "float16", "bfloat16", "float32"],
                    default="auto",
                    tooltip="What it computes in. auto: float16 on a CUDA card, as the reference, and float32 "
                    "elsewhere. Take float32 if frames come out black; it doubles memory and time.",
                ),
            ],
            outputs=[HYV_VAE.Output("vae", display_name="vae", tooltip="For Decode and Encode Video.")],
        )

    @classmethod
    def validate_inputs(cls, file: str, dtype: str = "auto") -> bool | str:
        return check_inputs(
            cls,
            {"file": file, "dtype": dtype},
            lambda: check_file("vae", resolve(file, assets.VAE, *VAE_KINDS)),
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: object) -> str:
        return fingerprint(file, assets.VAE, *VAE_KINDS)

    @classmethod
    @names_its_errors
    def execute(cls, file: str, dtype: str = "auto") -> io.NodeOutput:
        from ..hyvideo_lib.checkpoint import load_any_vae
        from ..hyvideo_lib.memory import Offloader

        path = resolve(file, assets.VAE, *VAE_KINDS)
        report = check_file("vae", path)
        for note in report.notes:
            logger.info("%s: %s", path.name, note)
        device = comfy_host.vae_device()
        vae = load_any_vae(path, compute_dtype=Precision(vae=dtype).vae_dtype(device))
        return io.NodeOutput(VAEHandle(path.name, report, vae, comfy_host.manage(Offloader(vae), device)))


NODES = (LoadTransformer, LoadTextEncoders, LoadVAE)
