"""Settings of every test run."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: `make test` runs two processes on two cores

import pytest
from hypothesis import settings

settings.register_profile("openk2", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("openk2")


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that change what openk2 or a client library does."""
    for name in [name for name in os.environ if name.startswith(("OPENK2_", "OPENAI_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def shared_loops() -> Iterator[None]:
    """Even the smallest loop of a kernel goes through the pool of threads, where the extension is built."""
    try:
        from openk2 import _native
    except ImportError:
        yield
        return
    before = _native.least_shared_bytes()
    _native.set_least_shared_bytes(0)
    yield
    _native.set_least_shared_bytes(before)
