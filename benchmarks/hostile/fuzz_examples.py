"""What the fuzzers feed: files and headers that are nearly right, from hypothesis."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import strategies as st

from benchmarks.hostile import gguf_files, safetensors_files
from hyvideo_lib.checkpoint.header import Header, TensorInfo

NAMES = st.text(max_size=20) | st.sampled_from(
    [*"abc", "__metadata__", "img_in.proj.weight", "double_blocks.0.img_attn_qkv.weight", "decoder.conv_in.conv.weight"]
)
NUMBERS = st.integers(-2, 40) | st.sampled_from(safetensors_files.SIZES) | st.floats() | st.booleans() | st.none()
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(safetensors_files.DTYPES) | st.text(max_size=4) | st.none(),
        "shape": st.lists(NUMBERS, max_size=5) | NUMBERS,
        "data_offsets": st.lists(NUMBERS, max_size=3) | NUMBERS,
        "more": st.none(),
    },
)
JSON = st.recursive(
    NUMBERS | st.text(max_size=10), lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=10
)


@st.composite
def safetensors_bytes(draw: st.DrawFn) -> bytes:
    """A header of anything, or one that nearly fits its data."""
    kind = draw(st.sampled_from(("bytes", "json", "entries", "fitting")))
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    body = draw(st.binary(max_size=64))
    if kind == "json":
        return safetensors_files.join(draw(st.dictionaries(NAMES, JSON, max_size=4)), body)
    if kind == "entries":
        header = draw(st.dictionaries(NAMES, ENTRIES, max_size=4))
        return safetensors_files.join(header, body, draw(st.none() | st.integers(0, 400)))
    header, position = {}, 0
    for name in draw(st.lists(NAMES, max_size=4, unique=True)):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = 1
        for length in shape:
            size *= length
        header[name] = {"dtype": "U8", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    return safetensors_files.join(header, bytes(position) + draw(st.binary(max_size=1)))


@st.composite
def gguf_bytes(draw: st.DrawFn) -> bytes:
    """Parts in order with lies in them, or bytes behind the magic."""
    if draw(st.booleans()):
        return b"GGUF\x03\0\0\0" + draw(st.binary(max_size=200))
    dims = st.lists(st.integers(0, 64) | st.sampled_from(safetensors_files.SIZES), max_size=5).map(tuple)
    texts = st.builds(gguf_files.text, NAMES | st.binary(max_size=9), st.none() | st.integers(0, 40))
    tensors = st.builds(
        gguf_files.Tensor,
        name=texts,
        dims=dims,
        kind=st.integers(0, 41),
        offset=st.none() | st.integers(0, 300) | st.sampled_from(safetensors_files.SIZES),
        num_dims=st.none() | st.integers(0, 17),
    )
    arrays = st.builds(gguf_files.array, st.integers(0, 13), st.integers(0, 9), st.binary(max_size=40))
    entries = st.tuples(texts, st.integers(0, 13), st.binary(max_size=20) | texts | arrays)
    parts = st.builds(
        gguf_files.Parts,
        tensors=st.lists(tensors, max_size=3).map(tuple),
        entries=st.lists(entries, max_size=4).map(tuple),
        num_tensors=st.none() | st.integers(0, 4),
        num_entries=st.none() | st.integers(0, 5),
        alignment=st.sampled_from((1, 8, 32, 64)),
    )
    return draw(parts).encode()


@st.composite
def mp4_bytes(draw: st.DrawFn) -> bytes:
    """Boxes in boxes, towards the comment that holds the settings, with sizes that may lie."""

    def box(kind: bytes, body: bytes) -> bytes:
        size = draw(st.sampled_from((None, None, None, None, 0, 1, 7, 8, 9, 2**31, 2**32 - 1)))
        if draw(st.integers(0, 9)) == 0:  # a long box
            long = len(body) + 16 if size is None else draw(st.sampled_from((0, 15, 16, 2**63, 2**64 - 1)))
            return b"\0\0\0\1" + kind + long.to_bytes(8, "big") + body
        return (len(body) + 8 if size is None else size).to_bytes(4, "big") + kind + body

    texts = st.binary(max_size=30) | JSON.map(lambda value: json.dumps(value).encode())
    texts |= st.dictionaries(st.just("hyvideo") | NAMES, JSON, max_size=3).map(lambda value: json.dumps(value).encode())
    body = draw(texts)
    for kind, skipped in ((b"data", 8), (b"\xa9cmt", 0), (b"ilst", 0), (b"meta", 4), (b"udta", 0), (b"moov", 0)):
        if draw(st.integers(0, 19)):
            body = box(kind, bytes(skipped) + body)
        if draw(st.integers(0, 9)) == 0:
            body = box(draw(st.binary(min_size=4, max_size=4)), draw(st.binary(max_size=9))) + body
    return box(b"ftyp", b"isom") + body + draw(st.binary(max_size=9))


SUFFIXES = (
    *(".lora_down.weight", ".lora_up.weight", ".alpha", ".lora_A.weight", ".lora_B.weight", ".diff", ".diff_b"),
    *(".lora_A.default.weight", ".lora.down.weight", ".lora.up.weight", ".dora_scale", ".hada_w1_a", ".lokr_w1", ""),
)


@st.composite
def lora_headers(draw: st.DrawFn) -> Header:
    """Headers of tensors that are named about as LoRAs name theirs, with shapes that may fit nothing."""
    modules = st.sampled_from(
        ("double_blocks.0.img_attn_qkv", "single_blocks.1.linear1", "img_in.proj", "final_layer.linear", "a.b", "", ".")
    )
    stems = st.tuples(
        st.sampled_from(("", "lora_unet_", "transformer.", "diffusion_model.", "transformer_blocks.0.attn.to_q", "x")),
        modules | modules.map(lambda name: name.replace(".", "_")) | st.text(max_size=8),
    ).map("".join)
    suffixes = st.sampled_from(SUFFIXES)
    shapes = st.lists(st.integers(0, 64) | st.sampled_from((256, 768, 3072)), max_size=5).map(tuple)
    dtypes = st.sampled_from(("float32", "bfloat16", "float8_e4m3fn", "int64", "bool"))
    names = draw(st.lists(st.tuples(stems, suffixes).map("".join), max_size=8, unique=True))
    tensors = {name: TensorInfo(name, draw(dtypes), draw(shapes), 0, 0) for name in names}
    metadata = draw(st.dictionaries(NAMES, st.text(max_size=10), max_size=2))
    return Header(Path("fuzzed.safetensors"), tensors, metadata, 1000)
