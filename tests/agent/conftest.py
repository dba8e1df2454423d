"""A scripted model behind our own server: the verbs talk to it as they would to any endpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import uvicorn

from openk2.chat.scripted import ScriptedProvider
from openk2.server.app import create_app
from openk2.server.run import open_socket


@contextmanager
def _running(provider: ScriptedProvider) -> Iterator[str]:
    listener = open_socket("127.0.0.1", 0)
    config = uvicorn.Config(create_app(provider), log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture
def serve() -> Iterator[Callable[[ScriptedProvider], str]]:
    """`serve(provider)` starts a server and returns its URL; all are stopped after the test."""
    with ExitStack() as stack:
        yield lambda provider: stack.enter_context(_running(provider))
