"""How the weights of a file are stored, told from its header: companion tensors, markers, dtypes, metadata.

A wrong guess here is the colourful noise of a scaled fp8 file opened as plain fp8, so a scheme that is not known to be
usable is refused by its name. What the schemes compute is in `quant`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..quant import GGML_FORMATS
from ..quant.comfy_quant import FORMATS as COMFYUI_FORMATS
from .descriptions import stated_formats
from .keymaps import COMPANIONS
from .read import Header, TensorInfo
from .scale_map import map_beside

FLOATS = frozenset(("float32", "float16", "bfloat16", "float64"))
BYTES = ("uint8", "int8")
PLAIN_DTYPES = FLOATS | {"float8_e4m3fn", "float8_e5m2"}


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
    "mxfp4": Scheme("4-bit floating point in blocks (mxfp4)", refusal="Weights in mxfp4 are not supported."),
    "mxfp8": Scheme("fp8 in blocks (mxfp8)", refusal="Weights in mxfp8 are not supported."),
    "fp8_blockwise": Scheme(
        "fp8 with scales of blocks", refusal="Weights in fp8 blockwise, with a scale for each block, are not supported."
    ),
    "int8_blockwise": Scheme(
        "int8 with scales of blocks",
        refusal="Weights in int8 blockwise, with a scale for each block, are not supported.",
    ),
    "w4a4": Scheme("4-bit integers (w4a4)", refusal="Weights in w4a4 (int4, convrot_w4a4) are not supported."),
    "w4a8": Scheme("4-bit integers (w4a8)", refusal="Weights in w4a8 (int4, asym_w4a8_int8) are not supported."),
    "int4": Scheme("4-bit integers (int4)", refusal="Weights in int4 (or another packed format) are not supported."),
    "bitsandbytes": Scheme(
        "bitsandbytes", refusal="Weights quantised with bitsandbytes (int8, nf4, fp4) are not supported."
    ),
    "svdquant": Scheme("SVDQuant", refusal="Weights quantised with SVDQuant (Nunchaku, w4a4) are not supported."),
    "gptq": Scheme("GPTQ or AWQ", refusal="Weights quantised with GPTQ or AWQ are not supported."),
    "quanto": Scheme("Quanto", refusal="Weights quantised with Quanto are not supported."),
    "hqq": Scheme("HQQ", refusal="Weights quantised with HQQ are not supported."),
    "torchao": Scheme("torchao", refusal="Weights quantised with torchao are not supported."),
    "sdnq": Scheme("SDNQ", refusal="Weights quantised with SDNQ are not supported."),
    "eetq": Scheme("EETQ", refusal="Weights quantised with EETQ are not supported."),
}

# Ends of names -> scheme. The first that occurs in a file names its scheme.
_ENDS = (
    (".SCB", "bitsandbytes"),
    (".quant_state.bitsandbytes__nf4", "bitsandbytes"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes"),
    (".absmax", "bitsandbytes"),
    (".wscales", "svdquant"),
    (".smooth_factor", "svdquant"),
    (".weight_smooth_factor", "svdquant"),
    (".weight_proj_down", "svdquant"),
    (".qzeros", "gptq"),
    (".qweight", "gptq"),
    (".weight_zeros", "gptq"),
    (".weight._data", "quanto"),
    (".W_q", "hqq"),
    ("._weight_qdata", "torchao"),
    (".svd_up", "sdnq"),
    (".zero_point", "sdnq"),
    (".weight_s_rel", "w4a8"),
    (".weight_s_channel", "w4a8"),
    (".weight_scale_2", "nvfp4"),
    (".weight_global_scale", "nvfp4"),
    (".weight_scale_inv", "fp8_blockwise"),
    (".weight_scales", "eetq"),
    (".comfy_quant", "comfyui_quant"),
    (".weight_scale", "comfyui_quant"),
    (".scale_weight", "comfyui_fp8_scaled"),
    (".fp8_scale", "fp8_scale"),
)
_MARKERS = {"scaled_fp8": "comfyui_fp8_scaled"}
_SCALES = (".weight_scale", ".scale_weight", ".fp8_scale")
_PACKED = ".weight_packed"

# What ComfyUI's files, and those of tools that write them, call a format that is not read here -> scheme.
_STATED = {
    "nvfp4": "nvfp4",
    "mxfp8": "mxfp8",
    "hybrid_mxfp8": "mxfp8",
    "mxfp4": "mxfp4",
    "convrot_w4a4": "w4a4",
    "asym_w4a8_int8": "w4a8",
    "svdquant_w4a4": "svdquant",
    "awq_w4a16": "gptq",
    "int4_tensorwise": "int4",
    "float8_e4m3fn_blockwise": "fp8_blockwise",
    "float8_e4m3fn_block3d": "fp8_blockwise",
    "int8_blockwise": "int8_blockwise",
    "bnb_nf4": "bitsandbytes",
    "bnb_fp4": "bitsandbytes",
    "bnb_af4": "bitsandbytes",
}


def file_scheme(header: Header) -> str:
    """The name of the scheme of a file's weights, one of SCHEMES. header: any names, with or without a prefix.

    What is refused goes first: one layer of it is enough.
    """
    if header.format == "gguf":
        return "gguf"
    formats = stated_formats(header)
    for name, scheme in _STATED.items():
        if name in formats:
            return scheme
    if formats - COMFYUI_FORMATS.keys():
        return "comfyui_other"
    ends = {scheme for name in header.tensors for end, scheme in _ENDS if name.endswith(end)}
    refused = next((scheme for _, scheme in _ENDS if scheme in ends and SCHEMES[scheme].refusal), "")
    refused = refused or _block_scheme(header)
    if refused:
        return refused
    for _, scheme in _ENDS:
        if scheme in ends:
            return scheme
    if formats:
        return "comfyui_quant"
    for marker, scheme in _MARKERS.items():
        if any(name.rpartition(".")[2] == marker for name in header.tensors):
            return scheme
    return "fp8_cast" if any(info.dtype.startswith("float8") for info in header.tensors.values()) else "none"


def _block_scheme(header: Header) -> str:
    """The scheme that a scale's dtype or shape tells, where its name is one that other schemes have; else empty."""
    for name, scale in header.tensors.items():
        end = next((end for end in _SCALES if name.endswith(end)), "")
        if not end:
            continue
        layer = name.removesuffix(end)
        packed = header.tensors.get(layer + _PACKED)
        weight = packed or header.tensors.get(f"{layer}.weight")
        found = _scheme_of(weight, scale) if weight else ""
        if found or packed:
            return found or "int4"
    return "int4" if any(name.endswith(_PACKED) for name in header.tensors) else ""


def _scheme_of(weight: TensorInfo, scale: TensorInfo) -> str:
    """The scheme of a weight with one scale for each of its blocks; empty for other scales."""
    is_fp8 = weight.dtype.startswith("float8")
    if not is_fp8 and weight.dtype not in BYTES:
        return ""
    if scale.dtype in ("float8_e8m0fnu", "uint8"):  # exponents, sometimes as bytes
        numbers = 2 * weight.numel / max(scale.numel, 1)  # of a block, two in a byte; scales may be filled up
        return "mxfp8" if is_fp8 else "nvfp4" if numbers <= 16 else "mxfp4"
    if scale.dtype == "float8_e4m3fn" and not is_fp8:
        return "nvfp4"
    is_grid = len(scale.shape) > 1 and scale.numel > 1 and scale.shape != (*weight.shape[:1], 1)
    if not is_grid or not scale.dtype.startswith(("float", "bfloat")):
        return ""
    return "fp8_blockwise" if is_fp8 else "int8_blockwise" if weight.dtype == "int8" else "int4"


def packed_refusal(header: Header, needed: Mapping[str, tuple[int, ...]]) -> str:
    """The refusal of bytes in rows of half (4 bits) or three quarters (6 bits) of the width that is needed, or ""."""
    packed = [
        name
        for name, shape in needed.items()
        if (info := header.tensors.get(name)) is not None
        and info.dtype in BYTES
        and shape
        and info.shape in [(*shape[:-1], shape[-1] * quarters // 4) for quarters in (2, 3)]
    ]
    if not packed:
        return ""
    some = ", ".join(packed[:3])
    return (
        f"Weights with two numbers in a byte (int4, fp4) are not supported: {some}. Use a bf16, fp16, fp8 or GGUF file "
        "of the same model."
    )


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
