"""How many requests may wait, and how long one may take."""

from __future__ import annotations

import asyncio
import json

import pytest

from openk2.chat.scripted import ScriptedProvider, ScriptedTurn
from openk2.server.settings import ServerSettings

from .conftest import HTTP, Serve, eventually, metric
from .test_disconnect import never, open_request

BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


def test_past_the_queues_limit_requests_are_refused_until_there_is_room(serve: Serve) -> None:
    provider = ScriptedProvider(never)
    url = serve(provider, ServerSettings(max_waiting=2)).url
    waiting = [open_request(url, BODY) for _ in range(2)]
    assert eventually(lambda: metric(url, "vllm:num_requests_waiting") == 2)
    for stream in (False, True):
        refused = HTTP.post(url + CHAT, json=BODY | {"stream": stream})
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["code"] == "queue_full"
        overloaded = HTTP.post(url + MESSAGES, json=BODY | {"stream": stream})
        assert overloaded.status_code == 529 and int(overloaded.headers["retry-after"]) > 0
        assert overloaded.json()["error"]["type"] == "overloaded_error"
    assert metric(url, "openk2:requests_refused_total") == 4 and len(provider.requests) == 2
    waiting[0].close()
    assert eventually(lambda: metric(url, "vllm:num_requests_waiting") == 1)
    waiting.append(open_request(url, BODY))
    assert eventually(lambda: len(provider.requests) == 3)
    for connection in waiting:
        connection.close()


def test_an_answer_that_has_begun_does_not_wait(serve: Serve) -> None:
    async def forever(_: object) -> ScriptedTurn:
        return ScriptedTurn("x" * 4000, delay_s=0.05)

    url = serve(ScriptedProvider(forever), ServerSettings(max_waiting=1)).url
    first = open_request(url, BODY | {"stream": True})
    assert eventually(lambda: metric(url, "vllm:num_requests_running") == 1)
    second = open_request(url, BODY | {"stream": True})
    assert eventually(lambda: metric(url, "vllm:num_requests_running") == 2)
    first.close()
    second.close()


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_an_answer_that_takes_too_long_ends_with_an_error_that_is_not_repeated(serve: Serve, path: str) -> None:
    provider = ScriptedProvider(never)
    url = serve(provider, ServerSettings(request_timeout_s=0.05)).url
    late = HTTP.post(url + path, json=BODY)
    assert late.status_code == 504 and late.headers["x-should-retry"] == "false"
    assert late.json()["error"]["type"] == "timeout_error"
    assert provider.aborted == 1 and metric(url, "openk2:requests_failed_total") == 1


def test_a_stream_that_takes_too_long_ends_with_an_error_line(serve: Serve) -> None:
    async def first_piece_only(_: object) -> ScriptedTurn:
        await asyncio.sleep(0)
        return ScriptedTurn("x" * 4000, delay_s=0.02)

    provider = ScriptedProvider(first_piece_only)
    url = serve(provider, ServerSettings(request_timeout_s=0.5)).url
    lines = HTTP.post(url + CHAT, json=BODY | {"stream": True}).text.split("\n\n")
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["type"] == "timeout_error"
    assert provider.aborted == 1
