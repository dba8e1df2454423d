"""Settings of every test run."""

from __future__ import annotations

import os

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
