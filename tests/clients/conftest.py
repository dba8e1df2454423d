"""Clients that neither report home nor fetch anything when they are imported, and the server's own test server."""

from __future__ import annotations

import pytest
from tests.server.conftest import serve

__all__ = ["serve"]


@pytest.fixture(autouse=True)
def quiet_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
