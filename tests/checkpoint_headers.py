"""Headers of model files at full size over sparse files: naming schemes, prefixes and storages from tables."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

LAYOUTS = Path(__file__).parent / "goldens" / "layouts"
Entries = dict[str, tuple[list[int], str]]
Metadata = Mapping[str, str]

CODES = {
    "bfloat16": ("BF16", 2),
    "float16": ("F16", 2),
    "float32": ("F32", 4),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "float8_e8m0fnu": ("F8_E8M0", 1),
    "uint8": ("U8", 1),
    "int8": ("I8", 1),
    "int32": ("I32", 4),
    "int64": ("I64", 8),
}
FORMATS = {"int8": "int8_tensorwise", "uint8": "nvfp4"}  # dtype of a weight -> what ComfyUI calls it
GGML = {  # name -> (number of the type, numbers in a block, bytes of a block)
    "float32": (0, 1, 4),
    "float16": (1, 1, 2),
    "q4_0": (2, 32, 18),
    "q4_1": (3, 32, 20),
    "q5_0": (6, 32, 22),
    "q5_1": (7, 32, 24),
    "q8_0": (8, 32, 34),
    "q2_k": (10, 256, 84),
    "q3_k": (11, 256, 110),
    "q4_k": (12, 256, 144),
    "q5_k": (13, 256, 176),
    "q6_k": (14, 256, 210),
    "iq4_nl": (20, 32, 18),
    "iq4_xs": (23, 256, 136),
    "bfloat16": (30, 1, 2),
}


@cache
def _recorded(name: str) -> dict[str, Any]:
    return json.loads((LAYOUTS / f"{name}.json").read_text())


def released(name: str, key: str = "entries") -> Entries:
    """All tensors of a recorded layout; `{0..19}` in a name stands for each of these indices."""
    entries: Entries = {}
    for pattern, (shape, dtype) in _recorded(name)[key].items():
        entries |= {each: ([7] if "N" in shape else shape, dtype.split()[0]) for each in expand(pattern)}
    return entries


def expand(pattern: str) -> list[str]:
    """A recorded name with each of its indices."""
    span = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not span:
        return [pattern]
    return [pattern.replace(span[0], str(index)) for index in range(int(span[1]), int(span[2]) + 1)]


def prefixed(prefix: str, entries: Entries) -> Entries:
    return {prefix + name: value for name, value in entries.items()}


def write_safetensors(path: Path, entries: Entries, metadata: Metadata | None = None) -> Path:
    """A file of these tensors, all zeros but for what ComfyUI's describe, without using disk."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    descriptions: dict[int, bytes] = {}
    position = 0
    for tensor, (shape, dtype) in entries.items():
        code, width = CODES[dtype]
        end = position + math.prod(shape) * width
        header[tensor] = {"dtype": code, "shape": list(shape), "data_offsets": [position, end]}
        if tensor.endswith(".comfy_quant"):
            weight = entries.get(tensor.replace("comfy_quant", "weight"), ([], ""))[1]
            descriptions[position] = json.dumps({"format": FORMATS.get(weight, weight)}).encode().ljust(end - position)
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
        for start, description in descriptions.items():
            file.seek(8 + len(text) + start)
            file.write(description)
    return path


def write_gguf(path: Path, entries: Entries, metadata: Metadata | None = None) -> Path:
    """A GGUF file of these tensors, all zeros. Shapes of more than four dimensions are kept as ComfyUI's files do."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    pairs = [text(key) + struct.pack("<I", 8) + text(value) for key, value in (metadata or {}).items()]
    infos, position = [], 0
    for name, (shape, dtype) in entries.items():
        number, block, num_bytes = GGML[dtype]
        stored = shape
        if len(shape) > 4:
            stored = [shape[0], math.prod(shape[1:])]
            array = struct.pack("<IIQ", 9, 5, len(shape)) + struct.pack(f"<{len(shape)}i", *shape)
            pairs.append(text(f"comfy.gguf.orig_shape.{name}") + array)
        dims = struct.pack(f"<I{len(stored)}Q", len(stored), *reversed(stored))
        infos.append(text(name) + dims + struct.pack("<IQ", number, position))
        position += math.prod(shape) // block * num_bytes
        position += -position % 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs)) + b"".join(pairs) + b"".join(infos)
    head += bytes(-len(head) % 32)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + position)
    return path


# Storages: the entries of a 16-bit file as another file would have them. Names are without prefix.


def cast(dtype: str) -> Callable[[Entries], Entries]:
    """All tensors in one dtype."""
    return lambda entries: {name: (shape, dtype) for name, (shape, _) in entries.items()}


def is_block_matrix(name: str, shape: list[int]) -> bool:
    in_block = re.match(r"(?:double_blocks|single_blocks|(?:single_)?transformer_blocks|layers|blk)\.", name)
    return bool(in_block) and name.endswith("weight") and len(shape) == 2


def quantised(dtype: str, companions: Mapping[str, tuple[list[int], str]]) -> Callable[[Entries], Entries]:
    """Matrices in blocks in `dtype`, each with companions beside it: ending -> shape and dtype."""

    def convert(entries: Entries) -> Entries:
        converted: Entries = {}
        for name, (shape, old) in entries.items():
            if not is_block_matrix(name, shape):
                converted[name] = (shape, old)
                continue
            converted[name] = (shape, dtype)
            converted |= {name.removesuffix("weight") + end: value for end, value in companions.items()}
        return converted

    return convert


def with_marker(convert: Callable[[Entries], Entries], numel: int) -> Callable[[Entries], Entries]:
    """ComfyUI's older marker of a scaled file."""
    return lambda entries: {**convert(entries), "scaled_fp8": ([numel], "float8_e4m3fn")}


def block_format(dtype: str) -> Callable[[Entries], Entries]:
    """Matrices in a GGUF block format; everything small in float32."""
    return lambda entries: {
        name: (shape, dtype if is_block_matrix(name, shape) else "float32" if len(shape) != 2 else "float16")
        for name, (shape, _) in entries.items()
    }


NUMBER: tuple[list[int], str] = ([], "float32")
E4M3, E5M2 = "float8_e4m3fn", "float8_e5m2"
QUANT_JSON = ([32], "uint8")
STORAGES: dict[str, tuple[str, Callable[[Entries], Entries]]] = {  # name -> (its scheme, the conversion)
    "bf16": ("none", cast("bfloat16")),
    "fp16": ("none", cast("float16")),
    "fp32": ("none", cast("float32")),
    "e4m3": ("fp8_cast", quantised(E4M3, {})),
    "e5m2": ("fp8_cast", quantised(E5M2, {})),
    "tencent fp8": ("fp8_scale", quantised(E4M3, {"fp8_scale": ([1], "float32")})),
    "scaled": ("comfyui_fp8_scaled", with_marker(quantised(E4M3, {"scale_weight": NUMBER}), 0)),
    "scaled, in and out": (
        "comfyui_fp8_scaled",
        with_marker(quantised(E4M3, {"scale_weight": ([1], "float32"), "scale_input": NUMBER}), 2),
    ),
    "comfy quant": (
        "comfyui_quant",
        quantised(E4M3, {"weight_scale": NUMBER, "input_scale": NUMBER, "comfy_quant": QUANT_JSON}),
    ),
    "comfy quant e5m2": ("comfyui_quant", quantised(E5M2, {"weight_scale": NUMBER, "comfy_quant": QUANT_JSON})),
    "comfy int8": ("comfyui_quant", quantised("int8", {"weight_scale": NUMBER, "comfy_quant": QUANT_JSON})),
}
REFUSED_STORAGES: dict[str, tuple[str, Callable[[Entries], Entries]]] = {
    "nvfp4": (
        "nvfp4",
        quantised("uint8", {"weight_scale": ([64], E4M3), "weight_scale_2": NUMBER, "comfy_quant": QUANT_JSON}),
    ),
    "mxfp8": ("mxfp8", quantised(E4M3, {"weight_scale": ([64], "float8_e8m0fnu"), "comfy_quant": QUANT_JSON})),
    "bnb int8": ("bitsandbytes", quantised("int8", {"SCB": ([8], "float32")})),
    "bnb nf4": (
        "bitsandbytes",
        quantised("uint8", {"weight.absmax": ([8], "uint8"), "weight.quant_state.bitsandbytes__nf4": ([90], "uint8")}),
    ),
    "svdquant": ("svdquant", quantised("int8", {"qweight": ([8], "int8"), "wscales": ([8], "float16")})),
    "gptq": ("gptq", quantised("int32", {"qweight": ([8], "int32"), "qzeros": ([8], "int32")})),
}
GGUF_STORAGES = {name: block_format(name) for name in GGML if name != "float32"}
