"""The shape of every `/v1/messages` stream: a grammar over its events, and the same message as without a stream."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openk2.chat.events import CallBegin, CallDelta, CallEnd, Finished, TextDelta
from openk2.chat.messages import Usage
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.errors import ContextLengthError, OverloadedError, ProviderError
from openk2.server.anthropic import routes
from openk2.server.anthropic.response import EventWriter, MessageHeader, message_object
from openk2.server.streams import marking_idle

from .conftest import HTTP, RunningServer, eventually, metric, running
from .test_disconnect import never, open_request

# m message_start, p ping, b block start, d delta, e block stop, u message_delta, s message_stop, ! error
STREAM = re.compile(r"mp*(bp*(dp*)*ep*)*(us|!)|mp*(b[dp]*ep*)*b[dp]*!")
LETTERS = {
    "message_start": "m",
    "ping": "p",
    "content_block_start": "b",
    "content_block_delta": "d",
    "content_block_stop": "e",
    "message_delta": "u",
    "message_stop": "s",
    "error": "!",
}
TOOL = {"name": "f", "input_schema": {"type": "object"}}
USAGE_KEYS = {"input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"}


def body_of(text: str, **more: Any) -> dict:
    return {"model": "scripted", "max_tokens": 99, "messages": [{"role": "user", "content": text}]} | more


def events_of(response_text: str) -> list[dict]:
    """The events of a stream. Fails where one has no `event:` line, or another type than that says."""
    blocks = response_text.split("\n\n")
    assert blocks.pop() == ""
    events = []
    for block in blocks:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def message_of(events: list[dict]) -> dict:
    """What a client adds up, checking what clients rely on."""
    sentence = "".join(LETTERS[event["type"]] for event in events)
    assert STREAM.fullmatch(sentence), sentence
    message = dict(events[0]["message"])
    assert (message["type"], message["role"], message["content"]) == ("message", "assistant", [])
    assert message["stop_reason"] is None and message["stop_sequence"] is None
    assert set(message["usage"]) == USAGE_KEYS and message["usage"]["output_tokens"] == 0
    content: list[dict] = []
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(content)  # dense, from 0
                content.append(dict(event["content_block"]))
                assert content[-1].get("text", "") == "" and content[-1].get("input", {}) == {}
            case "content_block_delta":
                assert event["index"] == len(content) - 1
                block = content[-1]
                if event["delta"]["type"] == "text_delta":
                    assert block["type"] == "text" and event["delta"]["text"]
                    block["text"] += event["delta"]["text"]
                else:
                    assert event["delta"]["type"] == "input_json_delta" and block["type"] == "tool_use"
                    block["json"] = block.get("json", "") + event["delta"]["partial_json"]
            case "content_block_stop":
                assert event["index"] == len(content) - 1
            case "message_delta":
                assert set(event["usage"]) == USAGE_KEYS
                message |= event["delta"] | {"usage": event["usage"]}
    return message | {"content": content}


def comparable(message: dict) -> dict:
    """Without what is drawn anew for each answer; streamed arguments read as JSON."""
    content = []
    for block in message["content"]:
        block = dict(block)
        if block["type"] == "tool_use":
            assert re.fullmatch(r"toolu_[0-9a-f]{24}", block.pop("id"))
            if "json" in block:
                block["input"] = json.loads(block.pop("json"))
        content.append(block)
    return message | {"content": content, "id": None}


CASES = {
    "text": ScriptedTurn("Hello there, how are you?", usage=Usage(7, 5, 2)),
    "nothing": ScriptedTurn(""),
    "call": ScriptedTurn("", [ScriptedCall("f", {"x": 1, "y": "é👋"})]),
    "text and calls": ScriptedTurn("Look:", [ScriptedCall("f", {"x": 1}), ScriptedCall("f", "")]),
    "length": ScriptedTurn("Once upon", finish_reason="length", usage=Usage(5, 99)),
    "stop": ScriptedTurn("Once upon", stop_string="END"),
}
BROKEN = {
    "error": ScriptedTurn("Hel", error=ProviderError("broken")),
    "error in a call": ScriptedTurn("", [ScriptedCall("f", {"x": 1})], error=ProviderError("broken")),
    "arguments that are no JSON": ScriptedTurn("a", [ScriptedCall("f", '{"x": ')]),
    "arguments that are no object": ScriptedTurn("a", [ScriptedCall("f", "[1]")]),
}
CUT = ScriptedTurn("", [ScriptedCall("f", {"x": 1}), ScriptedCall("f", {"x": 2})], finish_reason="length")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Answers with the case that the message names."""
    cases = CASES | BROKEN | {"cut call": CUT}
    with running(ScriptedProvider(lambda request: cases[request.messages[-1].text])) as server:
        yield server


@pytest.mark.parametrize("case", CASES)
def test_a_stream_adds_up_to_the_plain_message(server, case):
    plain = HTTP.post(f"{server.url}/v1/messages", json=body_of(case, tools=[TOOL]))
    streamed = HTTP.post(f"{server.url}/v1/messages?beta=true", json=body_of(case, tools=[TOOL], stream=True))
    assert plain.status_code == streamed.status_code == 200
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert plain.headers["request-id"] == plain.headers["x-request-id"]
    events = events_of(streamed.text)
    message = message_of(events)
    assert comparable(message) == comparable(plain.json())
    assert message["id"].startswith("msg_") and message["model"] == "scripted"
    start = events[0]["message"]["usage"]
    assert start["input_tokens"] == len(case.split())  # the whole prompt, known before the answer begins


@pytest.mark.parametrize(
    ("case", "reason"),
    [("text", "end_turn"), ("nothing", "end_turn"), ("call", "tool_use"), ("length", "max_tokens"),
     ("stop", "stop_sequence"), ("cut call", "max_tokens")],
)  # fmt: skip
def test_stop_reason(server, case, reason):
    message = HTTP.post(f"{server.url}/v1/messages", json=body_of(case, tools=[TOOL])).json()
    assert message["stop_reason"] == reason
    assert message["stop_sequence"] == ("END" if case == "stop" else None)


def test_usage_tells_cached_tokens_apart(server):
    usage = HTTP.post(f"{server.url}/v1/messages", json=body_of("text")).json()["usage"]
    assert usage == {
        "input_tokens": 5, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 0, "output_tokens": 5,
    }  # fmt: skip


def test_a_call_that_was_cut_off_is_never_complete(server):
    plain = HTTP.post(f"{server.url}/v1/messages", json=body_of("cut call", tools=[TOOL])).json()
    assert [block["input"] for block in plain["content"]] == [{"x": 1}]
    streamed = HTTP.post(f"{server.url}/v1/messages", json=body_of("cut call", tools=[TOOL], stream=True))
    message = message_of(events_of(streamed.text))
    assert message["stop_reason"] == "max_tokens"
    with pytest.raises(ValueError):
        json.loads(message["content"][1]["json"])


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_answer_is_an_error(server, case):
    plain = HTTP.post(f"{server.url}/v1/messages", json=body_of(case, tools=[TOOL]))
    assert plain.status_code == 502 and plain.json()["error"]["type"] == "api_error"
    streamed = HTTP.post(f"{server.url}/v1/messages", json=body_of(case, tools=[TOOL], stream=True))
    events = events_of(streamed.text)
    assert STREAM.fullmatch("".join(LETTERS[event["type"]] for event in events))
    assert events[-1]["error"] == plain.json()["error"]
    assert events[-1]["request_id"] == streamed.headers["request-id"]


@pytest.mark.parametrize(
    ("error", "status", "kind", "message"),
    [
        (ProviderError("gone"), 502, "api_error", "gone"),
        (OverloadedError("full"), 529, "overloaded_error", "full"),
        (
            ContextLengthError(prompt_tokens=5000, max_model_len=4096),
            400,
            "invalid_request_error",
            "prompt is too long: 5000 tokens > 4096 maximum",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_event_has_its_status(serve, error, status, kind, message, stream):
    response = HTTP.post(f"{serve(ScriptedProvider([error])).url}/v1/messages", json=body_of("Hi", stream=stream))
    assert response.status_code == status
    assert response.json()["error"] == {"type": kind, "message": message}
    assert ("retry-after" in response.headers) == (status == 529)


def header(max_tokens: int = 99, max_model_len: int | None = None) -> MessageHeader:
    return MessageHeader("msg_1", "m", max_tokens, max_model_len)


@pytest.mark.parametrize(
    ("max_tokens", "window", "reason"),
    [(9, None, "max_tokens"), (5, 100, "max_tokens"), (5, 12, "max_tokens"), (9, 12, "model_context_window_exceeded")],
)
def test_a_full_window_is_told_apart_from_the_callers_limit(max_tokens, window, reason):
    finished = Finished("length", Usage(7, 5))
    assert header(max_tokens, window).stop_reason(finished) == reason


pieces_of_text = st.sampled_from(["a", " ", "é", "{}", "👋b"])
objects = st.dictionaries(pieces_of_text, st.integers() | pieces_of_text, max_size=3)
calls = st.lists(st.tuples(st.sampled_from(["f", "g_2"]), objects, st.integers(1, 5)), max_size=3)


@given(st.lists(pieces_of_text, max_size=3), calls)
@settings(max_examples=50, deadline=None)
def test_events_add_up_to_the_message_however_they_are_cut(pieces, calls):
    events = [TextDelta(piece) for piece in pieces]
    for index, (name, arguments, size) in enumerate(calls):
        text = json.dumps(arguments)
        events += [CallBegin(index, f"functions.{name}:{index}", name)]
        events += [CallDelta(index, text[at : at + size]) for at in range(0, len(text), size)]
        events += [CallEnd(index)]
    events.append(Finished("tool_calls" if calls else "stop", Usage(3, 2, 1)))
    writer = EventWriter(header())
    streamed = [writer.begin(3), *(sent for event in events for sent in writer.events(event))]
    assert comparable(message_of(streamed)) == comparable(message_object(header(), events))


async def test_silence_is_marked():
    async def slow():
        yield 1
        await asyncio.sleep(0.5)
        yield 2

    seen = [event async for event in marking_idle(slow(), 0.05)]
    assert [event for event in seen if event is not None] == [1, 2]
    assert seen[0] == 1 and seen[1] is None and seen[-1] == 2


@pytest.mark.parametrize("fails", [False, True])
def test_a_slow_answer_begins_with_pings(serve, monkeypatch, fails):
    monkeypatch.setattr(routes, "PING_SECONDS", 0.05)

    async def slow(_):
        await asyncio.sleep(0.5)
        return ProviderError("too slow") if fails else "Hi"

    response = HTTP.post(f"{serve(ScriptedProvider(slow)).url}/v1/messages", json=body_of("Hi", stream=True))
    sentence = "".join(LETTERS[event["type"]] for event in events_of(response.text))
    assert response.status_code == 200
    assert re.fullmatch(r"mp+!" if fails else r"mp+bp*dp*ep*us", sentence)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("before_first_event", [True, False], ids=["waiting", "answering"])
def test_disconnect_aborts(serve, before_first_event, stream):
    provider = ScriptedProvider(never if before_first_event else lambda _: ScriptedTurn("x" * 4000, delay_s=0.01))
    url = serve(provider).url
    connection = open_request(url, body_of("Hi", stream=stream), "/v1/messages")
    if stream and not before_first_event:
        assert b"200 OK" in connection.recv(1000)
    assert eventually(lambda: len(provider.requests) == 1)
    connection.close()
    assert eventually(lambda: provider.aborted == 1)
    assert eventually(lambda: metric(url, "openk2:requests_aborted_total") == 1)
