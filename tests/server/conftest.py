"""A real server on a loopback port in front of a scripted model, and the official client to talk to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import openai
import pytest
import uvicorn

from openk2.chat.provider import ChatProvider
from openk2.server.app import create_app
from openk2.server.model_slot import ModelSlot
from openk2.server.run import open_socket
from openk2.server.settings import ServerSettings


@dataclass(frozen=True)
class RunningServer:
    url: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=20)


Serve = Callable[..., RunningServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(provider)` starts a server; all are stopped after the test."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(provider: ChatProvider | ModelSlot, settings: ServerSettings | None = None) -> RunningServer:
        listener = open_socket("127.0.0.1", 0)
        config = uvicorn.Config(
            create_app(provider, settings), log_level="error", lifespan="off", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread))
        return RunningServer(f"http://127.0.0.1:{listener.getsockname()[1]}")

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(timeout=10)


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether the condition came true; the bound only ends a test that fails."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
