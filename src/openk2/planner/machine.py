"""This machine, as its operating system tells of it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Of version 2 and of version 1; a file that is not there, or says `max`, limits nothing."""


def memory_bytes() -> int:
    """The memory that this process may use: the machine's, or its control group's if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in CGROUP_LIMITS:
        text = Path(limit).read_text().strip() if Path(limit).exists() else ""
        if text.isdigit():
            total = min(total, int(text))
    return total


def processor_name() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
