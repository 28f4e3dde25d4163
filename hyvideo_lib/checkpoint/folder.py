"""Checkpoints in several files: a folder with shards, as diffusers and Hugging Face write them, read as one header.

Any way to name the whole is taken: the folder, its index, or one of the shards. What the folder's config.json says of
sizes that tensors cannot tell goes into the metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ..errors import FileMissing, FileUnreadable, UnsupportedFile
from .read import Header, TensorInfo, map_tensors, read_header
from .sizes import METADATA_KEY

SUFFIX, PICKLE_SUFFIX = ".safetensors", ".bin"
INDEX_ENDING = ".index.json"
INDEX_SUFFIX, PICKLE_INDEX = SUFFIX + INDEX_ENDING, PICKLE_SUFFIX + INDEX_ENDING
NO_WEIGHTS = re.compile(r"(?:training_args|optimizer|scheduler|random_states.*|rng_state.*)\.bin", re.DOTALL)
"""Pickles that stand beside weights in training programs' folders."""
MAX_SHARDS = 1000
MAX_JSON_BYTES = 32_000_000
SHARD = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.bin)", re.DOTALL)

# What config.json calls, by its _class_name, the sizes that the tensors do not tell.
CONFIG_KEYS: Mapping[str, Mapping[str, str]] = {
    "HunyuanVideoTransformer3DModel": {"rope_axes_dim": "rope_axes", "rope_theta": "rope_theta"},
    "AutoencoderKLHunyuanVideo": {"norm_num_groups": "norm_groups", "scaling_factor": "scaling"},
}


@dataclass(frozen=True)
class ShardedHeader(Header):
    """The header of all shards together. `path` is the folder; offsets are those in each tensor's own shard."""

    shards: tuple[Header, ...] = ()


def open_header(path: str | Path) -> Header:
    """The header of a file, or of the whole checkpoint that a folder, an index or a shard belongs to.

    Raises as `read_header`, and FileMissing for absent shards, UnsupportedFile for a folder that holds several models.
    """
    path = Path(path)
    try:
        is_folder, is_index = path.is_dir(), path.name.endswith(INDEX_SUFFIX)
    except (OSError, ValueError):
        is_folder = is_index = False  # `read_header` says what is wrong with the name
    if is_folder:
        return _open_folder(path)
    if is_index:
        return _join(path.parent, _files_of_index(path, SUFFIX))
    if path.name.endswith(PICKLE_INDEX) and path.is_file():
        raise _in_pickles(path, _files_of_index(path, PICKLE_SUFFIX))
    shard = SHARD.fullmatch(path.name)
    if shard and shard["suffix"] == SUFFIX and path.exists():
        return _join(path.parent, _shard_names(path.parent, shard))
    return read_header(path)


def map_header(header: Header) -> dict[str, Tensor]:
    """All tensors of a header under its names, as views of the mapped file or files. Raises as `map_tensors`."""
    if not isinstance(header, ShardedHeader):
        return map_tensors(header)
    tensors: dict[str, Tensor] = {}
    for shard in header.shards:
        mine = {name: info for name, info in header.tensors.items() if shard.tensors.get(info.name) is info}
        tensors |= map_tensors(replace(shard, tensors=mine))
    return tensors


def _open_folder(folder: Path) -> Header:
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise FileUnreadable(f"The folder {folder} cannot be read: {error.strerror or error}.") from error
    if "model_index.json" in names:
        raise UnsupportedFile(
            f"{folder} holds a whole pipeline. Give one of the folders in it: transformer, vae or text_encoder."
        )
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    files = [name for name in names if name.endswith(SUFFIX)]
    wholes = {_stem(name) for name in files}
    if len(indices) == 1:
        return _join(folder, _files_of_index(folder / indices[0], SUFFIX))
    if len(wholes) > 1 or len(indices) > 1:
        raise UnsupportedFile(f"{folder} holds several models ({', '.join(sorted(wholes)[:10])}). Name one file of it.")
    if not files:
        _, pickles = find_pickles(folder)
        if pickles:
            raise _in_pickles(folder, [path.name for path in pickles])
        raise FileMissing(f"{folder} holds no .safetensors file. Give the folder or the file that has the weights.")
    shard = SHARD.fullmatch(files[0])
    return _join(folder, _shard_names(folder, shard) if shard else files)


def find_pickles(path: Path) -> tuple[Path | None, tuple[Path, ...]]:
    """The folder and the pickles (.bin) of a checkpoint that is kept in them: of a folder without safetensors files, of
    an index, or of one part. None and nothing for whatever else.

    Raises FileMissing for absent parts, FileUnreadable, and UnsupportedFile for a folder that holds several models.
    """
    try:
        if path.is_dir():
            names = _pickles_of_folder(path)
            return path, tuple(path / name for name in names)
        shard = SHARD.fullmatch(path.name)
        is_part, is_index = shard is not None and shard["suffix"] == PICKLE_SUFFIX, path.name.endswith(PICKLE_INDEX)
        if not (is_part or is_index) or not path.is_file():
            return None, ()
    except (OSError, ValueError):
        return None, ()  # `read_header` says what is wrong with the name
    folder = path.parent
    names = _files_of_index(path, PICKLE_SUFFIX) if is_index or shard is None else _shard_names(folder, shard)
    return folder, tuple(folder / name for name in names)


def _pickles_of_folder(folder: Path) -> list[str]:
    """Names of the parts, or of the one pickle, in a folder that has no safetensors file."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if any(name.endswith(SUFFIX) for name in names) or "model_index.json" in names:
        return []
    indices = [name for name in names if name.endswith(PICKLE_INDEX)]
    if len(indices) == 1:
        return _files_of_index(folder / indices[0], PICKLE_SUFFIX)
    files = [name for name in names if name.endswith(PICKLE_SUFFIX) and not NO_WEIGHTS.fullmatch(name)]
    if len({_stem(name) for name in files}) > 1:
        raise UnsupportedFile(f"{folder} holds several models ({', '.join(files[:10])}). Name one file of it.")
    shard = SHARD.fullmatch(files[0]) if files else None
    return _shard_names(folder, shard) if shard else files


def _in_pickles(path: Path, names: list[str]) -> UnsupportedFile:
    more = ", ..." if len(names) > 3 else ""
    return UnsupportedFile(
        f"{path} keeps its weights in {len(names)} pickle{'s' * (len(names) > 1)} ({', '.join(names[:3])}{more}). "
        f"Pickles can run code and are never opened here. Make a safetensors file of all: `hyvideo convert {path.name} "
        "NEW.safetensors`."
    )


def _stem(name: str) -> str:
    shard = SHARD.fullmatch(name)
    return shard["stem"] if shard else name


def _shard_names(folder: Path, shard: re.Match[str]) -> list[str]:
    """The names of all shards of a set, of which one is known."""
    count = int(shard["count"])
    if not 1 <= count <= MAX_SHARDS:
        raise FileUnreadable(f"{shard[0]} says that it is one of {count} parts; 1 to {MAX_SHARDS} are accepted.")
    names = [f"{shard['stem']}-{part:05}-of-{count:05}{shard['suffix']}" for part in range(1, count + 1)]
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise FileMissing(
            f"{folder} lacks {len(missing)} of the {count} parts of {shard['stem']}: {', '.join(missing[:10])}. "
            "Download them into the same folder."
        )
    return names


def _files_of_index(index: Path, suffix: str) -> list[str]:
    """The files that an index names, which must stand beside it and end so."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise FileUnreadable(f"{index.name} names no files (it has no weight_map). Download it again.")
    names = sorted(set(table.values()))
    for name in names:
        if re.search(r"[/\\:\x00]", name) or not name.endswith(suffix):
            raise FileUnreadable(f"{index.name} names {name[:80]!r}, which is no {suffix} file beside it.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise FileMissing(
            f"{index.parent} lacks {len(missing)} of the {len(names)} files that {index.name} names: "
            f"{', '.join(missing[:10])}. Download them into the same folder."
        )
    if len(names) > MAX_SHARDS:
        raise FileUnreadable(f"{index.name} names {len(names)} files; at most {MAX_SHARDS} are accepted.")
    return names


def _join(folder: Path, names: list[str]) -> Header:
    shards = tuple(read_header(folder / name) for name in names)
    tensors: dict[str, TensorInfo] = {}
    metadata = sizes_of_config(folder)
    for shard in shards:
        twice = tensors.keys() & shard.tensors.keys()
        if twice:
            raise FileUnreadable(f"{shard.path.name} repeats {min(twice)!r} of another part. Download the parts again.")
        tensors.update(shard.tensors)
        metadata = {**shard.metadata, **metadata}
    size = sum(shard.file_size for shard in shards)
    notes = tuple(dict.fromkeys(note for shard in shards for note in shard.notes))
    return ShardedHeader(
        folder, MappingProxyType(tensors), MappingProxyType(metadata), size, notes=notes, shards=shards
    )


def sizes_of_config(folder: Path) -> dict[str, str]:
    """Metadata from the config.json of a folder; empty if there is none, or none that is known."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    config = read_json(path)
    keys = CONFIG_KEYS.get(str(config.get("_class_name")), {})
    sizes = {ours: config[theirs] for theirs, ours in keys.items() if theirs in config}
    return {METADATA_KEY: json.dumps(sizes)} if sizes else {}


def read_json(path: Path) -> dict[str, Any]:
    """A table in JSON. Raises FileMissing, FileUnreadable."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise FileUnreadable(f"{path.name} has more than {MAX_JSON_BYTES} bytes, which no such file has.")
        table = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise FileMissing(f"There is no file {str(path)!r}. Check the name and the folder.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise FileUnreadable(f"{path.name} cannot be read as JSON: {error}. Download it again.") from error
    if not isinstance(table, dict):
        raise FileUnreadable(f"{path.name} is not a table. Download it again.")
    return table
