"""Memory bandwidth with and without huge pages."""

from __future__ import annotations

import mmap
import time

import torch

BYTES = 1 << 29
"""Larger than most last-level caches; those of servers keep part of it."""
ROUNDS = 7


def read_bytes_per_s(threads: int, *, huge: bool) -> float:
    """The best of some sums over a float32 vector: a limit, so what disturbs does not count.

    `huge` asks for pages of 2 MiB, which Linux gives where transparent huge pages are not switched off.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    memory = mmap.mmap(-1, BYTES)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    values = torch.frombuffer(memory, dtype=torch.float32).fill_(1.0)
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        values.sum()
        seconds.append(time.perf_counter() - started)
    torch.set_num_threads(before)
    return BYTES / min(seconds)
