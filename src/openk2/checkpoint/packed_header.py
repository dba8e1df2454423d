"""What begins a file of packed matrices: 8 bytes of magic, then little endian the version of the packed layout, the
header's length and its CRC-32, 4 bytes each; then the header, JSON. The data begin at the next multiple of `PAGE`."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openk2.errors import CheckpointError
from openk2.quant import LAYOUT_VERSION

PREFIX = struct.Struct("<8sIII")
PAGE = 4096


def whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def data_begin(header_length: int) -> int:
    return whole_pages(PREFIX.size + header_length)


def begin_of_file(magic: bytes, header: bytes) -> bytes:
    """Prefix and header."""
    return PREFIX.pack(magic, LAYOUT_VERSION, len(header), zlib.crc32(header)) + header


def read_header(
    path: Path, magic: bytes, kind: str, refused: Callable[[Path, str], CheckpointError]
) -> tuple[dict[str, Any], int]:
    """The header, and where the data begin. Raises `refused` for what is no whole file of this `kind`."""
    try:
        with path.open("rb") as file:
            found, version, length, crc = PREFIX.unpack(file.read(PREFIX.size))
            header = file.read(length) if found == magic else b""
    except (OSError, struct.error) as error:
        raise refused(path, f"unreadable ({error})") from None
    if found != magic:
        raise refused(path, f"not a file of packed {kind}")
    if version != LAYOUT_VERSION:
        raise refused(path, f"layout version {version}, where this program has {LAYOUT_VERSION}")
    if len(header) != length or zlib.crc32(header) != crc:
        raise refused(path, "its header is damaged")
    return json.loads(header), data_begin(length)
