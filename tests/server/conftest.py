"""A real server on a loopback port in front of a scripted model, and the official client to talk to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
from tests.support.loopback import on_loopback

from openk2 import assets
from openk2.chat.provider import ChatProvider
from openk2.server.app import create_app
from openk2.server.model_slot import ModelSlot
from openk2.server.settings import ServerSettings

HTTP = httpx.Client(verify=False, timeout=120)
"""Loopback needs no certificates, and reading those of the system takes longer than most tests."""


@dataclass(frozen=True)
class RunningServer:
    url: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=120, http_client=HTTP)


@contextmanager
def running(provider: ChatProvider | ModelSlot, settings: ServerSettings | None = None) -> Iterator[RunningServer]:
    with on_loopback(create_app(provider, settings)) as url:
        yield RunningServer(url)


@pytest.fixture(scope="module")
def nano_server() -> Iterator[RunningServer]:
    """The embedded model behind a server; its tests are skipped in a tree without it."""
    if not Path(assets.__file__).with_name("k2-nano").is_dir():
        pytest.skip("this tree has no embedded model")
    from openk2.llm import LLM

    with LLM("k2-nano") as llm, running(llm) as server:
        yield server


Serve = Callable[..., RunningServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(provider)` starts a server; all are stopped after the test."""
    with ExitStack() as stack:
        yield lambda provider, settings=None: stack.enter_context(running(provider, settings))


def metric(url: str, name: str) -> float:
    """The value of a metric that has one sample; 0 before it has any."""
    lines = [
        line for line in HTTP.get(f"{url}/metrics").text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))
    ]
    assert len(lines) <= 1, lines
    return float(lines[0].rpartition(" ")[2]) if lines else 0.0


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether the condition came true; the bound only ends a test that fails."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
