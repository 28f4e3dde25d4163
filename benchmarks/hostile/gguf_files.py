"""Broken and lying GGUF files: a good one is written piece by piece, and any piece may lie."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from benchmarks.hostile.safetensors_files import (
    MANY,
    SIZES,
    Case,
    change_the_size,
    flip_bits,
    shuffle_bytes,
    zero_a_span,
)

STRING, ARRAY = 8, 9
F32, F16, Q8_0 = 0, 1, 8
BYTES = {F32: lambda count: 4 * count, F16: lambda count: 2 * count, Q8_0: lambda count: count // 32 * 34}


def text(value: str | bytes, length: int | None = None) -> bytes:
    """A string of the format, with a true or a false length."""
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return struct.pack("<Q", (len(data) if length is None else length) % 2**64) + data


def array(kind: int, count: int, body: bytes) -> bytes:
    return struct.pack("<IQ", kind, count % 2**64) + body


@dataclass(frozen=True)
class Tensor:
    """One line of the table; None takes what is true."""

    name: bytes
    dims: tuple[int, ...]
    kind: int
    offset: int | None = None
    num_dims: int | None = None


@dataclass(frozen=True)
class Parts:
    """Everything in a GGUF file. Counts that are None are true."""

    tensors: tuple[Tensor, ...]
    entries: tuple[tuple[bytes, int, bytes], ...]  # key (with its length), type, value
    magic: bytes = b"GGUF"
    version: int = 3
    num_tensors: int | None = None
    num_entries: int | None = None
    alignment: int = 32
    data: bytes | None = None

    def encode(self) -> bytes:
        counts = (
            len(self.tensors) if self.num_tensors is None else self.num_tensors,
            len(self.entries) if self.num_entries is None else self.num_entries,
        )
        made = bytearray(self.magic + struct.pack("<I", self.version % 2**32))
        made += struct.pack("<QQ", *(count % 2**64 for count in counts))
        for key, kind, value in self.entries:
            made += key + struct.pack("<I", kind % 2**32) + value
        body = bytearray()
        for tensor in self.tensors:
            offset = len(body) if tensor.offset is None else tensor.offset
            dims = b"".join(struct.pack("<Q", dim % 2**64) for dim in tensor.dims)
            count = len(tensor.dims) if tensor.num_dims is None else tensor.num_dims
            made += tensor.name + struct.pack("<I", count % 2**32) + dims
            made += struct.pack("<IQ", tensor.kind % 2**32, offset % 2**64)
            if tensor.offset is None:
                numel = 1
                for dim in tensor.dims:
                    numel *= dim
                size = BYTES.get(tensor.kind, BYTES[F32])(numel) if numel < 2**20 else 0
                body += bytes(i % 251 for i in range(size)) + bytes(-size % self.alignment)
        made += bytes(-len(made) % self.alignment)
        return bytes(made + (body if self.data is None else self.data))


def good_parts() -> Parts:
    """A small file: three storages, metadata of several types, an array of texts and one of numbers."""
    return Parts(
        tensors=(
            Tensor(text("img_in.proj.weight"), (8, 4), F32),
            Tensor(text("double_blocks.0.img_mlp.fc1.weight"), (32, 3), Q8_0),
            Tensor(text("img_in.proj.bias"), (4,), F16),
        ),
        entries=(
            (text("general.architecture"), STRING, text("hyvid")),
            (text("general.file_type"), 4, struct.pack("<I", 7)),
            (text("general.alignment"), 4, struct.pack("<I", 32)),
            (text("tokens"), ARRAY, array(STRING, 3, text("a") + text("bc") + text("def"))),
            (text("sizes"), ARRAY, array(5, 4, struct.pack("<4i", 1, 2, 3, 4))),
            (text("is"), 7, b"\1"),
        ),
    )


def cases(seed: int, count: int, with_huge: bool = True) -> Iterator[Case]:
    """`count` files: huge ones, cut at every byte, then mutations chosen at random."""
    rng, parts = random.Random(seed), good_parts()
    good = parts.encode()
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
        data = MUTATIONS[name](rng, parts)
        if rng.random() < 0.2:
            data = flip_bits(rng, data)
        yield name, data


# Mutations


def _on_bytes(change: Callable[[random.Random, bytes], bytes]) -> Callable[[random.Random, Parts], bytes]:
    return lambda rng, parts: change(rng, parts.encode())


def _size(rng: random.Random) -> int:
    return rng.choice((*SIZES, -1, 3, 4, 5, 33, 2**16, 2**20))


def flip_early_bits(rng: random.Random, parts: Parts) -> bytes:
    data = parts.encode()
    return flip_bits(rng, data[:400]) + data[400:]


def lie_in_counts(rng: random.Random, parts: Parts) -> bytes:
    return replace(parts, **{rng.choice(("num_tensors", "num_entries")): _size(rng)}).encode()


def lie_in_version(rng: random.Random, parts: Parts) -> bytes:
    change = rng.choice(
        ({"version": rng.choice((0, 1, 2, 4, 2**24, 3 << 24))}, {"magic": rng.choice((b"FUGG", b"GGML"))})
    )
    return replace(parts, **change).encode()


def lie_in_a_tensor(rng: random.Random, parts: Parts) -> bytes:
    index = rng.randrange(len(parts.tensors))
    tensor = parts.tensors[index]
    change = rng.choice(
        (
            {"offset": _size(rng)},
            {"offset": rng.randrange(512)},
            {"num_dims": rng.choice((0, 1, 2, 3, 4, 5, 16, 17, 2**16, 2**32 - 1))},
            {"dims": tuple(_size(rng) for _ in range(rng.randrange(6)))},
            {"dims": (0, *tensor.dims)},
            {"dims": (2**32, 2**32)},
            {"dims": (31, 3)},
            {"kind": rng.choice((4, 5, 8, 9, 12, 24, 31, 39, 99, 2**31))},
            {"name": text(tensor.name[8:], _size(rng))},
            {"name": text(rng.choice(("", "\0", "a" * 65, "a" * 100_000, "\ud800", "\x1b[2J", "../x")))},
            {"name": text(b"\xff\xfe")},
            {"name": parts.tensors[index - 1].name},
        )
    )
    tensors = list(parts.tensors)
    tensors[index] = replace(tensor, **change)
    return replace(parts, tensors=tuple(tensors), data=rng.choice((None, None, bytes(64), bytes(416)))).encode()


def lie_in_metadata(rng: random.Random, parts: Parts) -> bytes:
    index = rng.randrange(len(parts.entries))
    key, kind, value = parts.entries[index]
    nested = array(ARRAY, 1, b"") * rng.choice((2, 100, 10_000))
    new = rng.choice(
        (
            (text(key[8:], _size(rng)), kind, value),
            (text(rng.choice((b"", b"\xff", b"\0", b"k" * 70_000, b"\x1b[2J"))), kind, value),
            (key, rng.choice((*range(14), 255, 2**31)), value),
            (key, STRING, text("x", _size(rng))),
            (key, STRING, text(b"\xff\xfe\0")),
            (key, ARRAY, array(rng.choice((*range(14), 99)), _size(rng), value)),
            (key, ARRAY, array(STRING, 2, text("a") + text("b", _size(rng)))),
            (key, ARRAY, nested + array(0, 1, b"\0")),
            (text("general.alignment"), 4, struct.pack("<I", rng.choice((0, 1, 3, 7, 33, 64, 2**31)))),
            (text("general.alignment"), STRING, text("32")),
            (text("general.architecture"), 4, struct.pack("<I", 1)),
            (text("split.count"), 2, struct.pack("<H", 9)),
            (text("comfy.gguf.orig_shape.img_in.proj.weight"), ARRAY, array(5, 2, struct.pack("<2i", 7, -1))),
            (text("comfy.gguf.orig_shape.img_in.proj.weight"), ARRAY, array(5, 3, struct.pack("<3i", 2, 4, 4))),
            (parts.entries[index - 1][0], kind, value),
        )
    )
    entries = list(parts.entries)
    entries[index] = new
    return replace(parts, entries=tuple(entries)).encode()


def lie_in_alignment(rng: random.Random, parts: Parts) -> bytes:
    return replace(parts, alignment=rng.choice((1, 8, 16, 64, 4096))).encode()


MUTATIONS: Mapping[str, Callable[[random.Random, Parts], bytes]] = {
    "bits": _on_bytes(flip_bits),
    "early bits": flip_early_bits,
    "counts": lie_in_counts,
    "version": lie_in_version,
    "tensor": lie_in_a_tensor,
    "tensor again": lie_in_a_tensor,
    "metadata": lie_in_metadata,
    "metadata again": lie_in_metadata,
    "alignment": lie_in_alignment,
    "size": _on_bytes(change_the_size),
    "zeros": _on_bytes(zero_a_span),
    "shuffled": _on_bytes(shuffle_bytes),
}


# Files that are large, or say so


def _tensors(count: int) -> tuple[Tensor, ...]:
    return tuple(Tensor(text(f"t{i}"), (0,), F32, offset=0) for i in range(count))


def _entries(count: int) -> tuple[tuple[bytes, int, bytes], ...]:
    return tuple((text(f"k{i}"), 0, b"\0") for i in range(count))


HUGE: Mapping[str, Callable[[], bytes]] = {
    "200,000 tensors": lambda: Parts(_tensors(MANY), ()).encode(),
    "200,000 lines of metadata": lambda: Parts((), _entries(MANY)).encode(),
    "19,000 of both": lambda: Parts(_tensors(19_000), _entries(19_000)).encode(),
    "as many of both as are free": lambda: Parts(_tensors(900), _entries(900)).encode(),
    "an array of a million texts": lambda: Parts(
        (), ((text("a"), ARRAY, array(STRING, 1_000_000, text("") * 1_000_000)),)
    ).encode(),
    "an array of four million texts": lambda: Parts(
        (), ((text("a"), ARRAY, array(STRING, 4_000_000, text("") * 4_000_000)),)
    ).encode(),
    "an array of ten million bytes": lambda: Parts(
        (), ((text("a"), ARRAY, array(0, 10_000_000, bytes(10_000_000))),)
    ).encode(),
    "a text of ten million bytes": lambda: Parts((), ((text("a"), STRING, text("x" * 10_000_000)),)).encode(),
    "a million opened arrays": lambda: Parts((), ((text("a"), ARRAY, array(ARRAY, 1, b"") * 1_000_000),)).encode(),
    "a billion empty arrays": lambda: Parts(
        (), ((text("a"), ARRAY, array(ARRAY, 2**40, array(0, 0, b"") * 500_000)),)
    ).encode(),
}
