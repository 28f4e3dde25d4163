"""safetensors files written one tensor at a time: the header first, from what is known, then the bytes as they come.

A model of 26 GB is written with the memory of its largest tensor.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..host import Host
from .pieces import Piece
from .read import DTYPES

CODES = {torch_name: code for code, (_, torch_name) in DTYPES.items()}
PIECE = 2**26  # bytes written between two looks at whether to stop


def write_safetensors(path: Path, pieces: Sequence[Piece], metadata: Mapping[str, str], host: Host) -> None:
    """Write the tensors, the widest dtypes first, so that each begins at a multiple of its element size.

    Raises Interrupted, OSError.
    """
    ordered = sorted(pieces, key=lambda tensor: -tensor.dtype.itemsize)
    with path.open("wb") as file:
        file.write(header_bytes(ordered, metadata))
        for done, tensor in enumerate(ordered, 1):
            made = tensor.make().contiguous()
            if made.dtype != tensor.dtype or tuple(made.shape) != tensor.shape:
                raise ValueError(f"{tensor.name} was made as {made.dtype} {list(made.shape)}")
            for start in range(0, made.nbytes, PIECE):
                host.check_interrupt()
                size = min(PIECE, made.nbytes - start)
                file.write((ctypes.c_char * size).from_address(made.data_ptr() + start))
            host.step(done, len(ordered))


def header_bytes(ordered: Sequence[Piece], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON of the header, padded with blanks so that the data begin at a multiple of 8."""
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for tensor in ordered:
        end = position + tensor.num_bytes
        dtype = CODES[str(tensor.dtype).removeprefix("torch.")]
        table[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
