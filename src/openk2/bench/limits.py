"""What this machine can do at most: bytes read per second, and float32 operations per second."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from mmap import mmap
from pathlib import Path
from random import Random
from tempfile import NamedTemporaryFile
from threading import local

import torch

from openk2.checkpoint.direct_read import forget, open_direct
from openk2.checkpoint.expert_store import READERS
from openk2.planner import Device
from openk2.planner.machine import memory_bytes, processor_name

_READ_BYTES = 1 << 29
"""Larger than any cache, small enough for a small machine."""
_MATRIX = 1536
_ROUNDS = 7
_FILE_BYTES = 1 << 28
_PIECE_BYTES = 1 << 22
"""Near an expert's size in int4 at Moonlight's widths (4.9 MB); K2's are 25 MB."""


@dataclass(frozen=True)
class MachineLimits:
    """Measured with torch's own sum and matrix product; with other work on the machine they come out too low."""

    processor: str
    threads: int
    memory_bytes: int
    read_bytes_per_s: float
    """Summing a float32 vector that no cache holds."""
    f32_flops_per_s: float
    """Multiplying two float32 matrices."""

    def as_device(self, disk_bytes_per_s: float = 0.0) -> Device:
        """This machine as the planner sees it; with `measure_disk`'s figure it may leave experts on disk."""
        return Device(
            name="this machine",
            kind="cpu",
            memory_bytes=self.memory_bytes,
            bandwidth_bytes_per_s=self.read_bytes_per_s,
            bf16_flops_per_s=self.f32_flops_per_s,
            f32_flops_per_s=self.f32_flops_per_s,
            devices_per_node=1,
            disk_bytes_per_s=disk_bytes_per_s,
            runtime_bytes=400 << 20,  # torch and Python; measured with k2-nano
            source=f"measured: {self.processor}, {self.threads} threads",
            read_on=date.today().isoformat(),
        )


def measure_limits() -> MachineLimits:
    """Takes a few seconds, with torch's number of threads. The best of some rounds counts: it is a limit."""
    values = torch.ones(_READ_BYTES // 4)
    left, right = torch.randn(_MATRIX, _MATRIX), torch.randn(_MATRIX, _MATRIX)
    read_s = _best(lambda: values.sum())
    product_s = _best(lambda: left @ right)
    return MachineLimits(
        processor=processor_name(),
        threads=torch.get_num_threads(),
        memory_bytes=memory_bytes(),
        read_bytes_per_s=_READ_BYTES / read_s,
        f32_flops_per_s=2 * _MATRIX**3 / product_s,
    )


def measure_disk(folder: Path) -> float:
    """Bytes per second, best of some rounds, of pieces read in random order past the page cache, as many at once as the
    store of experts reads. A file of 256 MiB is written into `folder` for it and removed.

    Raises OSError where it cannot be written.
    """
    with NamedTemporaryFile(dir=folder) as file:
        for _ in range(_FILE_BYTES // _PIECE_BYTES):
            file.write(os.urandom(_PIECE_BYTES))
        file.flush()
        os.fsync(file.fileno())
        fd, is_direct = open_direct(Path(file.name))
        pages = local()
        places = [i * _PIECE_BYTES for i in range(_FILE_BYTES // _PIECE_BYTES)]
        Random(0).shuffle(places)

        def read(at: int) -> None:
            if not hasattr(pages, "buffer"):
                pages.buffer = mmap(-1, _PIECE_BYTES)
            os.preadv(fd, [pages.buffer], at)
            if not is_direct:
                forget(fd, at, _PIECE_BYTES)

        try:
            with ThreadPoolExecutor(READERS) as readers:
                return _FILE_BYTES / _best(lambda: list(readers.map(read, places)))
        finally:
            os.close(fd)


def _best(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
