"""The shape of every stream: a grammar over its chunks, and the same answer as without a stream."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openk2.chat.events import CallBegin, CallDelta, CallEnd, Finished, TextDelta
from openk2.chat.messages import Usage
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.errors import OverloadedError, ProviderError
from openk2.server.openai.response import ChunkWriter, CompletionCollector, ResponseHeader, completion_object

from .conftest import HTTP, RunningServer, running

# R role, T text, H header of a call, A argument fragment, F finish, U usage, E error, D [DONE]
STREAM = re.compile(r"R(T*(HA+)*F)U?D|R?T*(HA*)*E")

BODY = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def letter(data: str) -> str:
    """The kind of a data line. Fails on a chunk that is not of exactly one kind."""
    if data == "[DONE]":
        return "D"
    chunk = json.loads(data)
    if "error" in chunk:
        assert set(chunk["error"]) >= {"message", "type", "param", "code"}
        return "E"
    assert chunk["object"] == "chat.completion.chunk"
    assert chunk["id"].startswith("chatcmpl-") and chunk["system_fingerprint"].startswith("fp_")
    if not chunk["choices"]:
        assert chunk["usage"]["total_tokens"] >= 0
        return "U"
    (choice,) = chunk["choices"]
    delta = choice["delta"]
    if choice["finish_reason"] is not None:
        assert delta == {}
        return "F"
    if "role" in delta:
        assert delta["role"] == "assistant" and delta["content"] in (None, "")
        return "R"
    if "content" in delta:
        assert delta["content"] and set(delta) == {"content"}
        return "T"
    assert set(delta) == {"tool_calls"}
    (call,) = delta["tool_calls"]
    if "id" in call:
        assert set(call) == {"index", "id", "type", "function"} and call["type"] == "function"
        assert call["function"]["name"] and call["function"]["arguments"] == ""
        return "H"
    assert set(call) == {"index", "function"} and set(call["function"]) == {"arguments"}
    return "A"


def data_of(body: str) -> list[str]:
    events = body.split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") for event in events)
    return [event.removeprefix("data: ") for event in events]


CASES = {
    "text": ScriptedTurn("Hello there, how are you?"),
    "nothing": ScriptedTurn(""),
    "call": ScriptedTurn("", [ScriptedCall("f", {"x": 1})]),
    "text and calls": ScriptedTurn("Look:", [ScriptedCall("f", {"x": 1}), ScriptedCall("f", "")]),
    "cut call": ScriptedTurn("", [ScriptedCall("f", {"x": 1}), ScriptedCall("f", {"x": 2})], finish_reason="length"),
    "error": ScriptedTurn("Hel", error=ProviderError("broken")),
    "error in a call": ScriptedTurn("", [ScriptedCall("f", {"x": 1})], error=ProviderError("broken")),
}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Answers with the case that the message names."""
    with running(ScriptedProvider(lambda request: CASES[request.messages[-1].text])) as server:
        yield server


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_stream_is_a_sentence_of_the_grammar(server, case, include_usage):
    turn = CASES[case]
    options = {"stream_options": {"include_usage": include_usage}, "messages": [{"role": "user", "content": case}]}
    response = HTTP.post(f"{server.url}/v1/chat/completions", json=BODY | options | {"tools": TOOLS})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = data_of(response.text)
    sentence = "".join(letter(line) for line in lines)
    assert STREAM.fullmatch(sentence), sentence
    assert ("U" in sentence) == (include_usage and turn.error is None)
    chunks = [json.loads(line) for line in lines if line != "[DONE]"]
    assert all(("usage" in chunk) == include_usage for chunk in chunks if "error" not in chunk)
    headers = [
        chunk["choices"][0]["delta"]["tool_calls"][0]["index"]
        for chunk, kind in zip(chunks, sentence, strict=False)
        if kind in "HA"
    ]
    assert headers == sorted(headers) and (not headers or headers[0] == 0)


def test_a_call_without_arguments_has_an_empty_object(serve):
    server = serve(ScriptedProvider(lambda _: ScriptedTurn("", [ScriptedCall("f", "")])))
    plain = HTTP.post(f"{server.url}/v1/chat/completions", json=BODY | {"stream": False, "tools": TOOLS}).json()
    assert plain["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == "{}"


@pytest.mark.parametrize(
    ("reason", "calls", "told"),
    [
        ("tool_calls", [], "stop"),
        ("stop", [ScriptedCall("f", {})], "tool_calls"),
        ("length", [ScriptedCall("f", {"x": 1})], "length"),
    ],
)
def test_finish_reason_is_tool_calls_exactly_with_a_complete_call(serve, reason, calls, told):
    server = serve(ScriptedProvider(lambda _: ScriptedTurn("a", calls, finish_reason=reason)))
    plain = HTTP.post(f"{server.url}/v1/chat/completions", json=BODY | {"stream": False, "tools": TOOLS}).json()
    assert plain["choices"][0]["finish_reason"] == told
    assert ("tool_calls" in plain["choices"][0]["message"]) == (told == "tool_calls")


@pytest.mark.parametrize(("error", "status"), [(ProviderError("gone"), 502), (OverloadedError("full"), 503)])
def test_a_failure_before_the_first_event_has_its_status(serve, error, status):
    response = HTTP.post(f"{serve(ScriptedProvider([error])).url}/v1/chat/completions", json=BODY)
    assert response.status_code == status
    assert response.json()["error"]["message"] == str(error)
    assert ("retry-after" in response.headers) == (status == 503)


def test_a_bug_in_the_provider_tells_nothing_of_itself(serve):
    def buggy(_):
        raise KeyError("secret detail")

    response = HTTP.post(f"{serve(ScriptedProvider(buggy)).url}/v1/chat/completions", json=BODY)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "internal_error" and "secret" not in response.text


pieces_of_text = st.sampled_from(["a", " ", "é", "{}", "👋b"])
texts = st.lists(pieces_of_text, max_size=3)
calls = st.lists(st.tuples(pieces_of_text, st.lists(pieces_of_text, min_size=1, max_size=3)), max_size=3)


@given(texts, calls, st.integers(0, 2))
@settings(max_examples=50, deadline=None)
def test_chunks_add_up_to_the_plain_answer(pieces, calls, choice):
    events = [TextDelta(piece) for piece in pieces]
    for index, (name, fragments) in enumerate(calls):
        events += [CallBegin(index, f"functions.{name}:{index}", name)]
        events += [CallDelta(index, fragment) for fragment in fragments]
        events += [CallEnd(index)]
    events.append(Finished("tool_calls" if calls else "stop", Usage(3, 2, 1)))
    header = ResponseHeader("chatcmpl-1", 1, "m", "fp_1")
    collector, writer = CompletionCollector(choice + 1), ChunkWriter(header, include_usage=True)
    content, streamed_calls, finish = None, [], None
    for event in events:
        collector.add(choice, event)
        for chunk in writer.chunks((choice, event)):
            (entry,) = chunk["choices"]
            assert entry["index"] == choice
            delta, finish = entry["delta"], entry["finish_reason"]
            if delta.get("content") is not None:
                content = (content or "") + delta["content"]
            for call in delta.get("tool_calls", []):
                if "id" in call:
                    streamed_calls.append({"id": call["id"], "type": call["type"], "function": dict(call["function"])})
                else:
                    streamed_calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    whole = completion_object(header, collector.completions())
    plain = whole["choices"][choice]
    assert plain["message"]["content"] == content
    assert plain["message"].get("tool_calls", []) == streamed_calls
    assert plain["finish_reason"] == finish
    assert writer.usage_chunk()["usage"]["completion_tokens"] == 2
