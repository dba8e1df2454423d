"""A scripted model behind our own server: the verbs talk to it as they would to any endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from tests.support.loopback import on_loopback

from openk2.chat.scripted import ScriptedProvider
from openk2.server.app import create_app


@pytest.fixture
def serve() -> Iterator[Callable[[ScriptedProvider], str]]:
    """`serve(provider)` starts a server and returns its URL; all are stopped after the test."""
    with ExitStack() as stack:
        yield lambda provider: stack.enter_context(on_loopback(create_app(provider)))
