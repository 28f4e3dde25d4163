"""Broken and lying safetensors files, made from a good one: the same seed makes the same files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import save

Case = tuple[str, bytes]
"""What was done to the file, and the file."""
Entry = dict[str, Any]

SIZES = (0, 1, 2, 7, 8, 2**15, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30)
STRANGE = (None, True, -1, 0.5, 1e400, "1", [], {}, [[]], 10**400, -(2**63))
DTYPES = ("F32", "BF16", "F16", "F8_E4M3", "U8", "I64", "BOOL", "C64", "F8_E8M0", "F4", "f32", "", "X" * 300, "\ud800")
MANY = 200_000


def good_file() -> bytes:
    """A small file of several dtypes, with a scalar, an empty tensor and metadata."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "img_in.proj.weight": torch.randn(4, 3, generator=generator),
        "img_in.proj.bias": torch.randn(4, generator=generator).bfloat16(),
        "eight": torch.randn(8, generator=generator).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(2.5),
        "nothing": torch.zeros(0, 4),
        "ids": torch.arange(3),
    }
    return save(tensors, {"made": "here"})


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a good file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: Any, body: bytes, length: int | None = None) -> bytes:
    """A file of a header (a table, or the bytes of its text) with a true or a false length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def cases(seed: int, count: int, with_huge: bool = True) -> Iterator[Case]:
    """`count` files: a few huge ones, cut at every byte, then mutations chosen at random."""
    rng, good = random.Random(seed), good_file()
    fixed = [("cut", good[:end]) for end in range(len(good))]
    rng.shuffle(fixed)
    fixed = fixed[: count // 2]
    huge = HUGE if with_huge else {}
    for name, make in huge.items():
        yield name, make()
    yield from fixed
    names = list(MUTATIONS)
    for _ in range(count - len(fixed) - len(huge)):
        name = rng.choice(names)
        data = MUTATIONS[name](rng, good)
        if rng.random() < 0.2:  # two faults at once
            data = flip_bits(rng, data)
        yield name, data


# Mutations: each makes another file of a good one


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        if made:
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def flip_header_bits(rng: random.Random, data: bytes) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    return flip_bits(rng, data[:end]) + data[end:]


def lie_about_length(rng: random.Random, data: bytes) -> bytes:
    true = int.from_bytes(data[:8], "little")
    near = [true + step for step in (-9, -8, -1, 1, 8, 9)] + [len(data) - 8, len(data) - 7, len(data)]
    length = rng.choice([*near, *(size for size in SIZES if size < 2**64), 100_000_000, 100_000_001])
    return length.to_bytes(8, "little") + data[8:]


def lie_about_offsets(rng: random.Random, data: bytes) -> bytes:
    header, body = split(data)
    entry = _some_entry(rng, header)
    start, end = entry["data_offsets"]
    entry["data_offsets"] = rng.choice(
        (
            [start + 1, end + 1],
            [start - 1, end - 1],
            [start, end + 1],
            [end, start],
            [start + 2**40, end + 2**40],
            [rng.choice(SIZES), rng.choice(SIZES)],
            [start],
            [start, end, end],
            [rng.choice(STRANGE), end],
            rng.choice(STRANGE),
        )
    )
    return join(header, body)


def overlap(rng: random.Random, data: bytes) -> bytes:
    """Two tensors on the same bytes."""
    header, body = split(data)
    header["twin"] = dict(_some_entry(rng, header))
    return join(header, body)


def lie_about_shape(rng: random.Random, data: bytes) -> bytes:
    header, body = split(data)
    entry = _some_entry(rng, header)
    shape = entry["shape"]
    entry["shape"] = rng.choice(
        (
            [rng.choice(SIZES) for _ in range(rng.randrange(5))],
            [0, *shape],
            [2**32, 2**32],
            [2**63, 2],
            [0] * 64,
            [1] * 17 + shape,
            [rng.choice(STRANGE)],
            rng.choice(STRANGE),
        )
    )
    return join(header, body)


def lie_about_dtype(rng: random.Random, data: bytes) -> bytes:
    header, body = split(data)
    _some_entry(rng, header)["dtype"] = rng.choice((*DTYPES, *STRANGE))
    return join(header, body)


def drop_a_field(rng: random.Random, data: bytes) -> bytes:
    header, body = split(data)
    entry = _some_entry(rng, header)
    del entry[rng.choice(list(entry))]
    return join(header, body)


def replace_an_entry(rng: random.Random, data: bytes) -> bytes:
    header, body = split(data)
    header[rng.choice(list(header))] = rng.choice((*STRANGE, "text", [1, 2], {"a": {"b": {}}}))
    return join(header, body)


def lie_in_metadata(rng: random.Random, data: bytes) -> bytes:
    header, body = split(data)
    header["__metadata__"] = rng.choice((*STRANGE, {"a": 1}, {"a": None}, {"": ""}, {"a": "x" * 100_000}, {"\0": "\0"}))
    return join(header, body)


def repeat_a_key(rng: random.Random, data: bytes) -> bytes:
    header, body = split(data)
    name, entry = rng.choice(list(header.items()))
    text = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}}}"
    return join(text.encode(), body)


def rename(rng: random.Random, data: bytes) -> bytes:
    """A tensor under a name that nobody would give one."""
    header, body = split(data)
    name = rng.choice([name for name in header if name != "__metadata__"])
    new = rng.choice(("", "\0", "a" * 300, "a" * 100_000, "../../x", "\ud800", "\u202e", "__metadata__", ".", "\n" * 9))
    header[new] = header.pop(name)
    return join(header, body)


def break_the_text(rng: random.Random, data: bytes) -> bytes:
    """A header that is no UTF-8, no JSON, or JSON of another shape."""
    length = int.from_bytes(data[:8], "little")
    text, body = data[8 : 8 + length], data[8 + length :]
    spot = rng.randrange(1, len(text))
    new = rng.choice(
        (
            text[:spot] + b"\xff\xfe" + text[spot:],
            text[:spot] + b"\x00" + text[spot:],
            text[:spot],
            text + text,
            b"{" * len(text),
            b"{}",
            b"{ }" + b" " * 64,
            b'{"a":' * 5000,
            b'{"a":[' + b"[" * 20_000 + b"]" * 20_000 + b"]}",
            b'{"a":' + b"9" * 10_000 + b"}",
            b'{"a":NaN,"b":Infinity,"c":-Infinity}',
            text.replace(b'"', b"'"),
            text.decode().encode("utf-16"),
            bytes(rng.randrange(256) for _ in range(64)),
        )
    )
    return join(new, body)


def change_the_size(rng: random.Random, data: bytes) -> bytes:
    return rng.choice(
        (data + bytes(rng.randrange(1, 64)), data[: -rng.randrange(1, 64)], data + data, bytes(len(data)))
    )


def zero_a_span(rng: random.Random, data: bytes) -> bytes:
    """As a download that was never finished leaves it."""
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 8, 64, len(data))))
    return data[:start] + bytes(end - start) + data[end:]


def shuffle_bytes(rng: random.Random, data: bytes) -> bytes:
    parts = [data[i : i + 16] for i in range(0, len(data), 16)]
    rng.shuffle(parts)
    return b"".join(parts)


MUTATIONS: Mapping[str, Callable[[random.Random, bytes], bytes]] = {
    "bits": flip_bits,
    "header bits": flip_header_bits,
    "length": lie_about_length,
    "offsets": lie_about_offsets,
    "overlap": overlap,
    "shape": lie_about_shape,
    "dtype": lie_about_dtype,
    "field": drop_a_field,
    "entry": replace_an_entry,
    "metadata": lie_in_metadata,
    "twice": repeat_a_key,
    "name": rename,
    "text": break_the_text,
    "size": change_the_size,
    "zeros": zero_a_span,
    "shuffled": shuffle_bytes,
}


def _some_entry(rng: random.Random, header: dict[str, Any]) -> Entry:
    entry: Entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    return entry


# Files that are large, or say so


def _many_tensors(count: int) -> bytes:
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return join(("{" + ",".join(f'"t{i}":{entry}' for i in range(count)) + "}").encode(), b"")


def _many_metadata(count: int) -> bytes:
    return join(("{" + '"__metadata__":{' + ",".join(f'"k{i}":""' for i in range(count)) + "}}").encode(), b"")


def _long_metadata(text: bytes) -> bytes:
    return join(b'{"__metadata__":{"history":"' + text + b'"}}', b"")


HUGE: Mapping[str, Callable[[], bytes]] = {
    "200,000 tensors": lambda: _many_tensors(MANY),
    "200,000 lines of metadata": lambda: _many_metadata(MANY),
    "as many tensors as are free": lambda: _many_tensors(2_000),
    "as many lines of metadata as are free": lambda: _many_metadata(19_000),
    "10 MB of opened tables": lambda: join(b'{"a":' * 2_000_000, b""),
    "10 MB of opened lists": lambda: join(b'{"a":' + b"[" * 10_000_000, b""),
    "10 MB of small lists": lambda: join(b'{"a":[' + b"[]," * 3_000_000 + b"0]}", b""),
    "10 MB of small tables": lambda: join(b'{"a":[' + b"{}," * 3_000_000 + b"0]}", b""),
    "a shape of a million": lambda: join(
        {"a": {"dtype": "U8", "shape": [1] * 1_000_000, "data_offsets": [0, 1]}}, b"\0"
    ),
    "a name of 10 MB": lambda: join({"a" * 10_000_000: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"\0"),
    "a number of 10 MB": lambda: join(b'{"a":' + b"9" * 10_000_000 + b"}", b""),
    "20 MB of blanks": lambda: join(b"{" + b" " * 20_000_000 + b"}", b""),
    "20 MB of zeros": lambda: bytes(20_000_000),
    "60 MB of history": lambda: _long_metadata(b'{\\"tag, [of]\\": 1}, ' * 3_000_000),
    "30 MB of text with one wide sign": lambda: _long_metadata(b"x" * 30_000_000 + "\U0001f600".encode()),
    "30 MB of text with one escaped sign": lambda: _long_metadata(b"x" * 30_000_000 + b"\\ud83d\\ude00"),
    "10 MB of lists in metadata": lambda: join(b'{"__metadata__":{"a":[' + b"[]," * 3_000_000 + b"0]}}", b""),
}
