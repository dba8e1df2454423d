"""The file of a model's routed experts, each a record that one read brings in the layout of the kernels.

    8 bytes   OPENK2EX
    4 bytes   version of the packed layout
    4 bytes   length of the header
    4 bytes   CRC-32 of the header
    header    JSON: `source`, `shape`, and `crc32`: of each matrix, as eight hexadecimal digits
    records   each at a multiple of 4096: gate, up and down of an expert; layer by layer, expert by expert

Integers are little endian. A file gets its name when it is complete and on the disk, so there is none in part. Records
are read past the page cache (O_DIRECT) where the file system can: what the cache of experts holds is then in memory
once. Elsewhere the page cache is told to forget them.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import threading
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from openk2.checkpoint.direct_read import forget, open_direct
from openk2.checkpoint.packed_header import PAGE, begin_of_file, data_begin, read_header, whole_pages
from openk2.config.whole_file import remove_abandoned, whole_file
from openk2.errors import CheckpointError
from openk2.quant import PackedLayout

MAGIC = b"OPENK2EX"
GATE, UP, DOWN = range(3)


@dataclass(frozen=True)
class ExpertShape:
    """Of all routed experts of a model, which are alike."""

    format: str
    layers: int
    """That have routed experts."""
    experts: int
    """Of a layer."""
    width: int
    hidden: int

    def gate_up(self, count: int) -> PackedLayout:
        """Of `count` experts: a gate and an up matrix of each."""
        return PackedLayout(self.format, 2 * count, self.width, self.hidden)  # type: ignore[arg-type]

    def down(self, count: int) -> PackedLayout:
        return PackedLayout(self.format, count, self.hidden, self.width)  # type: ignore[arg-type]

    @property
    def expert_bytes(self) -> int:
        return 2 * self.gate_up(1).matrix_bytes + self.down(1).matrix_bytes

    @property
    def record_bytes(self) -> int:
        return whole_pages(self.expert_bytes)

    @property
    def count(self) -> int:
        """Experts of all layers."""
        return self.layers * self.experts

    def place(self, part: int) -> tuple[int, int]:
        """Where a matrix lies in its record, and its bytes."""
        matrix = self.gate_up(1).matrix_bytes
        return part * matrix, matrix if part != DOWN else self.down(1).matrix_bytes


class ExpertWriter:
    """Takes the matrices of a file that is being written, in any order."""

    def __init__(self, fd: int, begin: int, shape: ExpertShape) -> None:
        self._fd, self._begin, self._shape = fd, begin, shape
        self.crc32: list[int | None] = [None] * (3 * shape.count)

    def put(self, index: int, part: int, data: Tensor) -> None:
        """`index` counts experts over all layers; data: the matrix's packed bytes, uint8."""
        offset, size = self._shape.place(part)
        view = data.numpy().data
        assert view.nbytes == size and view.contiguous, "a packed matrix of this shape"
        at = self._begin + index * self._shape.record_bytes + offset
        view, written = memoryview(view).cast("B"), 0
        while written < size:
            written += os.pwrite(self._fd, view[written:], at + written)
        self.crc32[3 * index + part] = zlib.crc32(view)


@contextmanager
def write_experts(path: Path, source: str, shape: ExpertShape) -> Iterator[ExpertWriter]:
    """What is put into the writer becomes the file at the end; whatever goes wrong, `path` stays as it was.

    Raises CheckpointError for a disk that has no room, before anything is written.
    """
    begin = data_begin(len(_header(source, shape, [0] * (3 * shape.count))))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    needed, free = begin + shape.count * shape.record_bytes, shutil.disk_usage(path.parent).free
    if needed > free:
        raise CheckpointError(
            f"{path.parent}: the experts need {needed:,} bytes of disk, {needed - free:,} more than are free; name "
            "another folder",
            param=str(path),
        )
    with whole_file(path) as aside, aside.open("wb") as file:
        file.truncate(needed)
        writer = ExpertWriter(file.fileno(), begin, shape)
        yield writer
        if None in writer.crc32:
            raise CheckpointError(f"{path}: not every expert was given", param=str(path))
        header = _header(source, shape, [crc or 0 for crc in writer.crc32])
        file.write(begin_of_file(MAGIC, header))
        file.flush()
        os.fsync(file.fileno())
        forget(file.fileno(), 0, needed)


class ExpertFile:
    """An open file of experts. Any thread may read."""

    def __init__(self, path: Path, source: str, shape: ExpertShape) -> None:
        """Raises CheckpointError unless the file is complete, of this source and of this shape."""
        self.path, self.shape = path, shape
        self._begin, self._crc32 = _read_header(path, source, shape)
        if path.stat().st_size != self._begin + shape.count * shape.record_bytes:
            raise refused(path, "cut short")
        self._fd, self.is_direct = open_direct(path)
        weakref.finalize(self, os.close, self._fd)
        self._checked = bytearray(shape.count)
        gate_up, down = 2 * shape.gate_up(1).matrix_bytes, shape.down(1).matrix_bytes
        self._is_aligned = gate_up % PAGE == 0 and down % PAGE == 0
        self._local = threading.local()

    def read(self, index: int, gate_up: memoryview, down: memoryview) -> None:
        """Read expert `index` (counted over all layers) into memory that begins at a multiple of 4096 bytes, as every
        expert of a stack does where its size is one.

        The first time that an expert is read its checksums are compared; raises CheckpointError where they differ, or
        the file cannot be read.
        """
        at, size = self._begin + index * self.shape.record_bytes, self.shape.record_bytes
        try:
            if self.is_direct and not self._is_aligned:
                page = self._page()
                self._read([memoryview(page)], at, size)
                middle, end = len(gate_up), len(gate_up) + len(down)
                gate_up[:], down[:] = memoryview(page)[:middle], memoryview(page)[middle:end]
            else:
                self._read([gate_up, down], at, len(gate_up) + len(down))
        except OSError as error:
            raise refused(self.path, f"unreadable ({error})") from None
        if not self._checked[index]:
            self._check(index, gate_up, down)
            self._checked[index] = 1

    def _read(self, into: list[memoryview], at: int, size: int) -> None:
        if os.preadv(self._fd, into, at) != size:
            raise refused(self.path, "cut short")
        if not self.is_direct:
            forget(self._fd, at, size)

    def _page(self) -> mmap.mmap:
        """A thread's own memory for records that do not fit into a stack as they are read."""
        if not hasattr(self._local, "page"):
            self._local.page = mmap.mmap(-1, self.shape.record_bytes)
        page: mmap.mmap = self._local.page
        return page

    def _check(self, index: int, gate_up: memoryview, down: memoryview) -> None:
        half = len(gate_up) // 2
        for part, data in ((GATE, gate_up[:half]), (UP, gate_up[half:]), (DOWN, down)):
            if zlib.crc32(data) != self._crc32[3 * index + part]:
                layer, expert = divmod(index, self.shape.experts)
                raise refused(
                    self.path,
                    f"the bytes of expert {expert} of the {layer + 1}. layer with experts are not those that were "
                    "written",
                )


def refused(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: packed experts refused: {why}; remove the file to pack anew", param=str(path))


def _header(source: str, shape: ExpertShape, crc32: list[int]) -> bytes:
    """As long for any checksums."""
    digits = "".join(f"{crc:08x}" for crc in crc32)
    return json.dumps({"source": source, "shape": asdict(shape), "crc32": digits}).encode()


def _read_header(path: Path, source: str, shape: ExpertShape) -> tuple[int, list[int]]:
    """Where the records begin, and the checksums of the matrices."""
    facts, begin = read_header(path, MAGIC, "experts", refused)
    if facts["source"] != source or facts["shape"] != asdict(shape):
        raise refused(path, "made from other weights or formats")
    digits = facts["crc32"]
    return begin, [int(digits[i : i + 8], 16) for i in range(0, len(digits), 8)]


def zero_bytes(layout: PackedLayout) -> Tensor:
    """Memory of a stack, at a multiple of 4096, in huge pages where the system gives them."""
    size = layout.count * layout.matrix_bytes
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).view(layout.shape)
