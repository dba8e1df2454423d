"""A client that goes away frees its place: streaming, waiting, before the first event, and with n > 1."""

from __future__ import annotations

import asyncio
import json
import socket
from urllib.parse import urlsplit

import pytest

from openk2.chat.scripted import ScriptedProvider, ScriptedTurn

from .conftest import HTTP, eventually, metric

MESSAGES = [{"role": "user", "content": "Hi"}]


def open_request(url: str, body: dict, path: str = "/v1/chat/completions") -> socket.socket:
    """A request that was sent and whose answer nobody has read."""
    address = urlsplit(url)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(data)}\r\n\r\n"
    connection = socket.create_connection((address.hostname, address.port))
    connection.sendall(head.encode() + data)
    return connection


async def never(_) -> str:
    await asyncio.Event().wait()
    return ""


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("before_first_event", [True, False], ids=["waiting", "answering"])
def test_disconnect_aborts(serve, before_first_event, stream, n):
    provider = ScriptedProvider(never if before_first_event else lambda _: ScriptedTurn("x" * 4000, delay_s=0.01))
    url = serve(provider).url
    connection = open_request(url, {"model": "scripted", "messages": MESSAGES, "stream": stream, "n": n})
    if stream and not before_first_event:
        assert b"200 OK" in connection.recv(1000)
    assert eventually(lambda: len(provider.requests) == n)
    connection.close()
    assert eventually(lambda: provider.aborted == n)
    assert eventually(lambda: metric(url, "openk2:requests_aborted_total") == 1)
    assert metric(url, "vllm:num_requests_running") == metric(url, "vllm:num_requests_waiting") == 0


def test_one_failing_choice_aborts_the_others(serve):
    async def first_fails(request):
        if request.sampling.seed == 1:
            raise RuntimeError("bug")
        return await never(request)

    provider = ScriptedProvider(first_fails)
    body = {"model": "scripted", "messages": MESSAGES, "n": 3, "seed": 1}
    assert HTTP.post(f"{serve(provider).url}/v1/chat/completions", json=body).status_code == 500
    assert provider.aborted == 2
