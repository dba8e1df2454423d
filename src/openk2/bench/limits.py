"""What this machine can do at most: bytes read per second, and float32 operations per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

import torch

from openk2.planner import Device
from openk2.planner.machine import memory_bytes, processor_name

_READ_BYTES = 1 << 29
"""Larger than any cache, small enough for a small machine."""
_MATRIX = 1536
_ROUNDS = 7


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

    def as_device(self) -> Device:
        """This machine as the planner sees it."""
        return Device(
            name="this machine",
            kind="cpu",
            memory_bytes=self.memory_bytes,
            bandwidth_bytes_per_s=self.read_bytes_per_s,
            bf16_flops_per_s=self.f32_flops_per_s,
            f32_flops_per_s=self.f32_flops_per_s,
            devices_per_node=1,
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


def _best(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
