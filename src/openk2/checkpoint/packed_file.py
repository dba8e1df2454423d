"""Packed matrices on disk, mapped instead of read: quantised once, then loaded at the speed of the page cache.

    8 bytes   OPENK2PK
    4 bytes   version of the packed layout
    4 bytes   length of the header
    4 bytes   CRC-32 of the header
    header    JSON: `source`, and for each stack its name, layout, offset and the CRC-32 of its bytes
    stacks    each at a multiple of 4096

Integers are little endian. A file gets its name when it is complete and on the disk, so there is none in part.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from openk2.checkpoint.packed_header import begin_of_file, data_begin, read_header, whole_pages
from openk2.config.whole_file import whole_file
from openk2.errors import CheckpointError
from openk2.quant import PackedLayout, PackedStack

MAGIC = b"OPENK2PK"


def source_key(folder: Path, formats: str) -> str:
    """Changes with a checkpoint's files (name, size, time of change) and with the formats asked for."""
    digest = hashlib.sha256(formats.encode())
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        stat = file.stat()
        digest.update(f"\n{file.name}:{stat.st_size}:{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:24]


def write_packed(path: Path, source: str, stacks: Mapping[str, PackedStack]) -> None:
    """Write the stacks to `path`, replacing what is there; whatever goes wrong, `path` stays as it was."""
    entries = []
    for name, stack in stacks.items():
        entries.append({"name": name, **asdict(stack.layout), "offset": 0, "crc32": _crc32(stack.data)})
    # Offsets are of the data's part of the file: its begin depends on the header's length.
    end = 0
    for entry, stack in zip(entries, stacks.values(), strict=True):
        entry["offset"] = end
        end += whole_pages(stack.data.numel())
    header = json.dumps({"source": source, "bytes": end, "stacks": entries}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as aside, aside.open("wb") as file:
        file.write(begin_of_file(MAGIC, header))
        begin = data_begin(len(header))
        for entry, stack in zip(entries, stacks.values(), strict=True):
            file.seek(begin + entry["offset"])
            file.write(stack.data.numpy().data)
        file.truncate(begin + end)


def map_packed(
    path: Path, source: str, layouts: Mapping[str, PackedLayout], *, check_bytes: bool = True
) -> dict[str, Tensor]:
    """The bytes of each stack of `layouts`, as views of one private mapping of the file.

    Raises CheckpointError unless the file is whole and holds exactly these stacks, of this source. `check_bytes`: also
    compare each stack's checksum, which reads the file.
    """
    header, begin = read_header(path, MAGIC, "weights", _refused)
    found = {entry["name"]: entry for entry in header["stacks"]}
    if header["source"] != source or set(found) != set(layouts):
        raise _refused(path, "made from other weights or formats")
    if path.stat().st_size != begin + header["bytes"]:
        raise _refused(path, "cut short")
    whole = torch.from_file(str(path), shared=False, size=begin + header["bytes"], dtype=torch.uint8)
    views = {}
    for name, layout in layouts.items():
        entry = found[name]
        size, at = layout.count * layout.matrix_bytes, begin + entry["offset"]
        if any(entry[key] != value for key, value in asdict(layout).items()) or at + size > whole.numel():
            raise _refused(path, f"{name} has another layout")
        views[name] = whole[at : at + size].view(layout.shape)
        if check_bytes and _crc32(views[name]) != entry["crc32"]:
            raise _refused(path, f"the bytes of {name} are not those that were written")
    return views


def _crc32(data: Tensor) -> int:
    return zlib.crc32(data.numpy().data)


def _refused(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: packed weights refused: {why}; remove the file to pack anew", param=str(path))
