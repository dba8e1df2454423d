"""A model that thinks, in each API: thoughts apart from the text, streamed or not, and back again in the history."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from openk2.chat.events import collect
from openk2.chat.messages import Message, Usage
from openk2.chat.provider import ChatRequest
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.client.reply import ReplyReader
from openk2.client.request import request_body
from openk2.server.anthropic.schema import read_messages_request
from openk2.server.openai.schema import read_chat_completion

from .conftest import HTTP, RunningServer, running

THOUGHT = "The user says hi.\n"
CASES = {
    "text": ScriptedTurn("Hello there.", reasoning=THOUGHT, usage=Usage(5, 9, 2, 6)),
    "call": ScriptedTurn("", [ScriptedCall("f", {"x": 1})], reasoning=THOUGHT),
    "text and call": ScriptedTurn("Look:", [ScriptedCall("f", {"x": 1})], reasoning=THOUGHT),
    "cut thought": ScriptedTurn("", reasoning=THOUGHT, finish_reason="length"),
}
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FLAT = {"type": "function", "name": "f", "parameters": {"type": "object"}}


@pytest.fixture(scope="module")
def provider() -> ScriptedProvider:
    """Answers with the case that the last message names."""
    return ScriptedProvider(lambda request: CASES[request.messages[-1].text])


@pytest.fixture(scope="module")
def server(provider: ScriptedProvider) -> Iterator[RunningServer]:
    with running(provider) as server:
        yield server


def data_of(text: str) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("case", CASES)
def test_chat_completions(server: RunningServer, case: str) -> None:
    url, body = f"{server.url}/v1/chat/completions", {"messages": [{"role": "user", "content": case}], "tools": [TOOL]}
    plain = HTTP.post(url, json=body).json()
    message = plain["choices"][0]["message"]
    assert message["reasoning_content"] == THOUGHT
    assert message["content"] == (CASES[case].text or (None if CASES[case].calls else ""))
    chunks = data_of(HTTP.post(url, json=body | {"stream": True}).text)
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    kinds = "".join("r" if "reasoning_content" in delta else "." for delta in deltas)
    assert re.fullmatch(r"\.r+\.+", kinds)
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == THOUGHT
    # Kimi's own API tells the usage in the last choice, whether asked for or not.
    assert chunks[-1]["choices"][0]["usage"] == plain["usage"] and "usage" not in chunks[-1]
    reader = ReplyReader()
    read = collect([event for chunk in chunks for event in reader.feed(chunk)] + [*reader.finish(done_seen=True)])
    assert (read.message.reasoning, read.message.text) == (THOUGHT, CASES[case].text)


def test_usage_tells_thinking_and_the_cache(server: RunningServer) -> None:
    body = {"messages": [{"role": "user", "content": "text"}], "n": 2}
    usage = HTTP.post(f"{server.url}/v1/chat/completions", json=body).json()["usage"]
    assert usage == {
        "prompt_tokens": 5, "completion_tokens": 18, "total_tokens": 23, "cached_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 12},
    }  # fmt: skip
    response = HTTP.post(f"{server.url}/v1/responses", json={"input": "text"}).json()
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 6}


EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
LETTERS = {
    "output_item.added": "A", "content_part.added": "P", "reasoning_text.delta": "r", "reasoning_text.done": "R",
    "output_text.delta": "t", "output_text.done": "T", "content_part.done": "Q", "output_item.done": "D",
    "function_call_arguments.delta": "a", "function_call_arguments.done": "C",
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_responses(server: RunningServer, case: str) -> None:
    url, body = f"{server.url}/v1/responses", {"input": case, "tools": [FLAT]}
    plain = HTTP.post(url, json=body).json()
    Response.model_validate(plain)
    item = plain["output"][0]
    assert (item["type"], item["summary"]) == ("reasoning", [])
    assert item["content"] == [{"type": "reasoning_text", "text": THOUGHT}]
    assert item["status"] == ("incomplete" if case == "cut thought" else "completed")
    events = data_of(HTTP.post(url, json=body | {"stream": True}).text)
    for event in events:
        EVENT.validate_python(event)
    sentence = "".join(LETTERS[event["type"].removeprefix("response.")] for event in events[2:-1])
    assert re.fullmatch(r"APr+RQD(APt+TQD)?(Aa+CD)?", sentence)
    assert "".join(e["delta"] for e in events if e["type"] == "response.reasoning_text.delta") == THOUGHT
    last = events[-1]["response"]
    assert last["output"] == [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in last["output"]] == [item["type"] for item in plain["output"]]


def test_responses_bring_thoughts_back(server: RunningServer, provider: ScriptedProvider) -> None:
    first = HTTP.post(f"{server.url}/v1/responses", json={"input": "text and call", "tools": [FLAT]}).json()
    call_id = first["output"][-1]["call_id"]
    new = [{"type": "function_call_output", "call_id": call_id, "output": "1"}, {"role": "user", "content": "text"}]
    HTTP.post(f"{server.url}/v1/responses", json={"previous_response_id": first["id"], "input": new})
    turn = provider.requests[-1].messages[1]
    assert (turn.reasoning, turn.text, len(turn.tool_calls)) == (THOUGHT, "Look:", 1)
    history = [{"role": "user", "content": "call"}, first["output"][0], first["output"][2], *new]  # no text between
    assert HTTP.post(f"{server.url}/v1/responses", json={"input": history}).status_code == 200
    turn = provider.requests[-1].messages[1]
    assert (turn.role, turn.reasoning, turn.text, len(turn.tool_calls)) == ("assistant", THOUGHT, "", 1)
    summed_up = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": "xx"}
    odd = {"type": "reasoning", "summary": [3], "content": "x"}
    said = {"role": "assistant", "content": "So."}
    last = {"role": "user", "content": "text"}
    HTTP.post(f"{server.url}/v1/responses", json={"input": [summed_up, odd, said, said, odd, summed_up, last]})
    assert [message.reasoning for message in provider.requests[-1].messages] == ["Hm.", None, None]


@pytest.mark.parametrize("case", CASES)
def test_anthropic(server: RunningServer, case: str) -> None:
    body = {
        "max_tokens": 99, "messages": [{"role": "user", "content": case}],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}], "thinking": {"type": "enabled"},
    }  # fmt: skip
    plain = HTTP.post(f"{server.url}/v1/messages", json=body).json()
    thinking = plain["content"][0]
    assert (thinking["type"], thinking["thinking"]) == ("thinking", THOUGHT) and thinking["signature"]
    events = data_of(HTTP.post(f"{server.url}/v1/messages", json=body | {"stream": True}).text)
    first = [event for event in events if event.get("index") == 0]
    assert first[0]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    *deltas, signature = [event["delta"] for event in first[1:-1]]
    assert {delta["type"] for delta in deltas} == {"thinking_delta"}
    assert "".join(delta["thinking"] for delta in deltas) == THOUGHT
    assert signature == {"type": "signature_delta", "signature": thinking["signature"]}
    assert first[-1]["type"] == "content_block_stop"
    blocks = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert blocks == [block["type"] for block in plain["content"]]


def test_history_keeps_thoughts_and_leaves_out_what_is_none() -> None:
    user, turn = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "So."}
    for told, kept in (
        ({"reasoning_content": "hm"}, "hm"), ({"reasoning": "hm"}, "hm"), ({"reasoning_content": ""}, None),
        ({"reasoning_content": {"a": 1}, "reasoning": ["x"]}, None), ({}, None),
    ):  # fmt: skip
        messages = read_chat_completion({"messages": [user, turn | told, user]}).messages
        assert messages[1].reasoning == kept
    blocks = [
        {"type": "thinking", "thinking": "h", "signature": "foreign"}, {"type": "thinking", "thinking": "m"},
        {"type": "redacted_thinking", "data": "xx"}, {"type": "text", "text": "So."},
    ]  # fmt: skip
    body = {"max_tokens": 1, "messages": [user, {"role": "assistant", "content": blocks}, user]}
    assert read_messages_request(body).messages[1].reasoning == "hm"
    message = Message("assistant", "So.", reasoning="hm")
    asked = request_body(ChatRequest((Message("user", "Hi"), message, Message("user", "Hi"))), "m")
    assert read_chat_completion(asked).messages[1] == message


def test_a_refusal_is_what_the_turn_said() -> None:
    turn = {"role": "assistant", "content": None, "refusal": "No."}
    assert read_chat_completion({"messages": [turn]}).messages[0].text == "No."
