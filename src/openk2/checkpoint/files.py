"""What lies in a checkpoint folder: configs, and which file holds which tensor. Reads headers, never weights."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openk2.config import ModelConfig
from openk2.errors import CheckpointError, ConfigError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def load_config(folder: str | Path) -> ModelConfig:
    """The architecture in `folder`/config.json.

    Raises CheckpointError when there is no such folder or file, or it is not JSON; ConfigError when it describes a
    model that cannot be honoured.
    """
    path = _folder(folder) / "config.json"
    try:
        return ModelConfig.from_hf(_read_json(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", param=error.param) from error


def load_generation_config(folder: str | Path) -> dict[str, Any]:
    """`folder`/generation_config.json, or {} where there is none. Raises CheckpointError when it is not JSON."""
    path = _folder(folder) / "generation_config.json"
    return _read_json(path) if path.is_file() else {}


def _folder(folder: str | Path) -> Path:
    path = Path(folder)
    if not path.is_dir():
        what = "is a file, not a checkpoint folder" if path.exists() else "no such checkpoint folder"
        raise CheckpointError(f"{path}: {what}", param=str(path))
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: no {path.name} in this folder", param=str(path)) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})", param=str(path)) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object", param=str(path))
    return value


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """`safe_open` on the CPU, whose own errors become one CheckpointError that names the file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: weight file is missing", param=str(path))
    try:
        with safe_open(path, framework="pt", device="cpu") as shard:
            yield shard
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: truncated, or not a safetensors file ({error}); fetch it again", param=str(path)
        ) from None


def read_tensors(path: Path, names: Container[str]) -> Iterator[tuple[str, Tensor]]:
    """Those of `names` that a weight file holds, in the order in which they lie there.

    Read, where `open_shard` maps: of a mapping, what has been touched counts as this process's memory. Raises
    CheckpointError for a file that is missing or cut short.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = {name: entry for name, entry in json.loads(file.read(length)).items() if name in names}
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                begin, end = entry["data_offsets"]
                data = torch.empty(end - begin, dtype=torch.uint8)
                file.seek(8 + length + begin)
                if file.readinto(data.numpy().data) != end - begin:
                    raise ValueError(f"{name} is cut short")
                yield name, data.view(STORED_DTYPES[entry["dtype"]]).view(entry["shape"])
    except (OSError, ValueError, struct.error) as error:
        raise CheckpointError(
            f"{path}: truncated, or not a safetensors file ({error}); fetch it again", param=str(path)
        ) from None


@dataclass(frozen=True)
class StoredTensor:
    shape: tuple[int, ...]
    dtype: str
    """safetensors' spelling: BF16, F32, F8_E4M3, I32 ..."""

    @property
    def bytes(self) -> int:
        """Of a tensor in one of STORED_DTYPES."""
        return math.prod(self.shape) * STORED_DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Checkpoint:
    """Every tensor of a checkpoint folder, by the file that holds it."""

    folder: Path
    shards: Mapping[Path, Mapping[str, StoredTensor]]

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """Read the index and every weight file's header.

        Shard names come from the index alone: their pattern differs between releases. Raises CheckpointError naming
        the file (and tensor) that is missing or truncated.
        """
        root = _folder(folder)
        if (root / INDEX_FILE).is_file():
            by_file = _read_index(root / INDEX_FILE)
        else:
            single = root / SINGLE_FILE
            found = [single] if single.is_file() else sorted(root.glob("*.safetensors"))
            if len(found) != 1:
                what = f"{len(found)} weight files but no {INDEX_FILE}" if found else "no safetensors weights"
                raise CheckpointError(f"{root}: {what} in this folder", param=str(root))
            by_file = {found[0]: None}
        return cls(root, {path: _read_header(path, names) for path, names in by_file.items()})

    def tensors(self) -> Iterator[tuple[Path, str, StoredTensor]]:
        for path, tensors in self.shards.items():
            for name, tensor in tensors.items():
                yield path, name, tensor

    @property
    def largest(self) -> StoredTensor:
        return max((tensor for _, _, tensor in self.tensors()), key=lambda tensor: math.prod(tensor.shape))

    @property
    def weight_bytes(self) -> int:
        """Size of all weight files."""
        return sum(path.stat().st_size for path in self.shards)


def _read_index(path: Path) -> dict[Path, list[str] | None]:
    weight_map = _read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no weight_map", param=str(path))
    by_file: dict[Path, list[str] | None] = {}
    for name, file in sorted(weight_map.items(), key=lambda item: str(item[1])):
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{path}: {name} is mapped to {file!r}, not to a file of this folder", param=name)
        names = by_file.setdefault(path.parent / file, [])
        assert names is not None
        names.append(name)
    return by_file


def _read_header(path: Path, names: list[str] | None) -> dict[str, StoredTensor]:
    """The shape and dtype of `names` (None: of every tensor) in a weight file."""
    with open_shard(path) as shard:
        present = set(shard.keys())
        for name in names or ():
            if name not in present:
                raise CheckpointError(f"{path}: tensor {name} is missing, though the index lists it here", param=name)
        found = {}
        for name in sorted(present) if names is None else names:
            view = shard.get_slice(name)
            found[name] = StoredTensor(tuple(view.get_shape()), str(view.get_dtype()))
        return found
