"""How the weights of a file are stored, told from its header: companion tensors, markers, dtypes, metadata.

A wrong guess here is the colourful noise of a scaled fp8 file opened as plain fp8, so a scheme that is not known to be
usable is refused by its name. What the schemes compute is in `quant`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..quant import GGML_FORMATS
from ..quant.comfy_quant import FORMATS as COMFYUI_FORMATS
from .keymaps import COMPANIONS
from .read import Header
from .scale_map import map_beside

FLOATS = frozenset(("float32", "float16", "bfloat16", "float64"))
PLAIN_DTYPES = FLOATS | {"float8_e4m3fn", "float8_e5m2"}
COMFYUI_METADATA = "_quantization_metadata"
MAX_SCHEME_TEXT = 10_000_000  # characters of that entry that are looked at


@dataclass(frozen=True)
class Scheme:
    """One way of storing weights. dtypes: those that weights may have in it. refusal: why it cannot be used at all."""

    title: str
    dtypes: Collection[str] = PLAIN_DTYPES
    refusal: str = ""


SCHEMES: Mapping[str, Scheme] = {
    "none": Scheme("as they are"),
    "fp8_cast": Scheme("cast to fp8, without scales"),
    "fp8_scale": Scheme("fp8 with Tencent's scales"),
    "comfyui_fp8_scaled": Scheme("fp8 with ComfyUI's older scales (scale_weight)"),
    "comfyui_quant": Scheme("ComfyUI's newer scales (weight_scale)", PLAIN_DTYPES | {"int8"}),
    "gguf": Scheme("GGUF", FLOATS | GGML_FORMATS.keys()),
    "comfyui_other": Scheme(
        "a format of ComfyUI unknown here",
        refusal=f"Its weights are in a ComfyUI format unknown here; known: {', '.join(COMFYUI_FORMATS)}.",
    ),
    "nvfp4": Scheme("4-bit floating point (nvfp4)", refusal="Weights in nvfp4 are not supported."),
    "mxfp8": Scheme("fp8 in blocks (mxfp8)", refusal="Weights in mxfp8 are not supported."),
    "bitsandbytes": Scheme(
        "bitsandbytes", refusal="Weights quantised with bitsandbytes (int8, nf4, fp4) are not supported."
    ),
    "svdquant": Scheme("SVDQuant", refusal="Weights quantised with SVDQuant (Nunchaku) are not supported."),
    "gptq": Scheme("GPTQ or AWQ", refusal="Weights quantised with GPTQ or AWQ are not supported."),
    "quanto": Scheme("Quanto", refusal="Weights quantised with Quanto are not supported."),
}

# Ends of names -> scheme. The first that occurs in a file names its scheme.
_ENDS = (
    (".SCB", "bitsandbytes"),
    (".quant_state.bitsandbytes__nf4", "bitsandbytes"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes"),
    (".absmax", "bitsandbytes"),
    (".wscales", "svdquant"),
    (".smooth_factor", "svdquant"),
    (".qzeros", "gptq"),
    (".qweight", "gptq"),
    (".weight._data", "quanto"),
    (".weight_scale_2", "nvfp4"),
    (".comfy_quant", "comfyui_quant"),
    (".weight_scale", "comfyui_quant"),
    (".scale_weight", "comfyui_fp8_scaled"),
    (".fp8_scale", "fp8_scale"),
)
_MARKERS = {"scaled_fp8": "comfyui_fp8_scaled"}


def file_scheme(header: Header) -> str:
    """The name of the scheme of a file's weights, one of SCHEMES. header: any names, with or without a prefix."""
    if header.format == "gguf":
        return "gguf"
    ends = {scheme for name in header.tensors for end, scheme in _ENDS if name.endswith(end)}
    formats = _stated_formats(header.metadata)
    block_scales = {info.dtype for name, info in header.tensors.items() if name.endswith(".weight_scale")}
    if "nvfp4" in formats:
        return "nvfp4"
    if "mxfp8" in formats or "float8_e8m0fnu" in block_scales:
        return "mxfp8"
    if formats - COMFYUI_FORMATS.keys():
        return "comfyui_other"
    for _, scheme in _ENDS:
        if scheme in ends:
            return scheme
    if formats:
        return "comfyui_quant"
    for marker, scheme in _MARKERS.items():
        if any(name.rpartition(".")[2] == marker for name in header.tensors):
            return scheme
    return "fp8_cast" if any(info.dtype.startswith("float8") for info in header.tensors.values()) else "none"


def tensor_scheme(name: str, header: Header) -> str:
    """The scheme of one tensor's storage: that of the companions beside it, else what its dtype says.

    A companion belongs to the scheme of its weight.
    """
    module, _, leaf = name.rpartition(".")
    dtype = header.tensors[name].dtype
    if leaf == "weight" or leaf in COMPANIONS:
        for end, scheme in _ENDS:
            if module + end in header.tensors:
                return scheme
    if header.format == "gguf":
        return "gguf" if dtype not in FLOATS else "none"
    return "fp8_cast" if dtype.startswith("float8") and leaf == "weight" else "none"


def is_companion(name: str, header: Header) -> bool:
    """Whether a tensor is a number beside a matrix of this header that says how the matrix was quantised."""
    module, _, leaf = name.rpartition(".")
    weight = header.shape(f"{module}.weight")
    if leaf not in COMPANIONS or weight is None or len(weight) != 2:
        return False
    return leaf == "comfy_quant" or header.tensors[name].numel <= max(weight[0], 1)


def storage_refusal(scheme: str, accepted: Collection[str], dtypes: Collection[str]) -> str:
    """Why weights stored so cannot be used, and which can; empty if they can.

    accepted: the schemes that this kind's loader knows.
    """
    entry = SCHEMES[scheme]
    if entry.refusal or scheme not in accepted:
        here = f"Weights stored as {entry.title} ({scheme}) are not supported for this kind of file."
        usable = "bf16, fp16, fp8 or GGUF" if "gguf" in accepted else "bf16, fp16 or fp8"
        return f"{entry.refusal or here} Use a {usable} file of the same model."
    strange = sorted(set(dtypes) - set(entry.dtypes))
    if strange:
        return f"Its weights are stored as {', '.join(strange)}; accepted here: {', '.join(sorted(entry.dtypes))}."
    return ""


def storage_notes(scheme: str, header: Header) -> tuple[str, ...]:
    """What a user should know of the storage. header: Tencent's names."""
    weights = Counter(tensor_scheme(name, header) for name in header.tensors if name.endswith(".weight"))
    if scheme == "comfyui_fp8_scaled" and weights["fp8_cast"]:
        return (f"fp8 weights without a scale in a scaled file: {weights['fp8_cast']}. They are taken as they are.",)
    last = header.tensors.get("final_layer.linear.weight")
    if scheme == "fp8_cast" and map_beside(header.path).is_file():
        return ("Its fp8 scales lie beside it, and are used.",)
    if scheme == "fp8_cast" and last is not None and not last.dtype.startswith("float8"):
        return (
            "fp8 without scales, and only inside the blocks, as in Tencent's own fp8 file: if it is that, its scale "
            "map must be converted with it, or the video is colourful noise.",
        )
    return ()


def _stated_formats(metadata: Mapping[str, str]) -> set[str]:
    """The formats that ComfyUI's metadata entry names for its layers; none if there is no such entry or it is odd."""
    text = metadata.get(COMFYUI_METADATA, "")[:MAX_SCHEME_TEXT]
    try:
        layers = json.loads(text)["layers"].values() if text else ()
        return {str(layer["format"]) for layer in layers}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()
