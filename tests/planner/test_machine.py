"""What the operating system tells of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from openk2.planner import machine


def test_memory_is_that_of_the_control_group_where_that_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.memory_bytes() <= physical
    files = (tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes")
    monkeypatch.setattr(machine, "CGROUP_LIMITS", tuple(map(str, files)))
    assert machine.memory_bytes() == physical
    files[0].write_text("max\n")
    assert machine.memory_bytes() == physical
    files[1].write_text("1048576\n")
    assert machine.memory_bytes() == 1 << 20
    files[1].write_text("9223372036854771712\n")  # version 1 writes no limit so
    assert machine.memory_bytes() == physical


def test_the_processor_has_a_name() -> None:
    assert machine.processor_name()
