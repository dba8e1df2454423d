"""The embedded model behind `/v1/messages`: what holds whatever it has learned."""

from __future__ import annotations

import json

import jsonschema_rs
import pytest

from .conftest import HTTP
from .test_anthropic_streaming import comparable, events_of, message_of

CITIES = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}}, "required": ["city"]}
TOOLS = [
    {"name": name, "description": f"Get the {name} of a city.", "input_schema": CITIES} for name in ("time", "weather")
]
CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}
HISTORY = [
    {"role": "user", "content": "Weather in Oslo?"},
    {"role": "assistant", "content": [{"type": "text", "text": "I will look."}, CALL]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "-3"}]},
]


def prompt_tokens(usage: dict) -> int:
    return usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_counted_tokens_are_those_of_the_usage(nano_server):
    body = {"model": "k2-nano", "system": "Be brief.", "messages": HISTORY, "tools": TOOLS}
    counted = HTTP.post(f"{nano_server.url}/v1/messages/count_tokens", json=body).json()["input_tokens"]
    plain = HTTP.post(f"{nano_server.url}/v1/messages", json=body | {"max_tokens": 2}).json()
    assert counted == prompt_tokens(plain["usage"]) > 50
    events = events_of(HTTP.post(f"{nano_server.url}/v1/messages", json=body | {"max_tokens": 2, "stream": True}).text)
    assert counted == events[0]["message"]["usage"]["input_tokens"]
    assert counted == prompt_tokens(message_of(events)["usage"])


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_required_call_is_valid_streamed_or_not(nano_server, choice):
    body = {
        "model": "k2-nano", "max_tokens": 60, "temperature": 0, "messages": HISTORY, "tools": TOOLS,
        "tool_choice": choice | {"disable_parallel_tool_use": True},
    }  # fmt: skip
    plain = HTTP.post(f"{nano_server.url}/v1/messages", json=body).json()
    assert plain["stop_reason"] == "tool_use"
    (call,) = plain["content"]
    assert call["name"] in ("time", "weather")[("name" in choice) :]
    jsonschema_rs.validate(CITIES, call["input"])
    streamed = message_of(events_of(HTTP.post(f"{nano_server.url}/v1/messages", json=body | {"stream": True}).text))
    assert comparable(streamed)["content"] == comparable(plain)["content"]


def test_a_stop_sequence_is_named(nano_server):
    body = {"model": "k2-nano", "max_tokens": 40, "temperature": 0, "messages": [{"role": "user", "content": "Hello!"}]}
    whole = HTTP.post(f"{nano_server.url}/v1/messages", json=body).json()["content"][0]["text"]
    stop = whole[1:3]
    cut = HTTP.post(f"{nano_server.url}/v1/messages", json=body | {"stop_sequences": ["\x00", stop]}).json()
    assert (cut["stop_reason"], cut["stop_sequence"]) == ("stop_sequence", stop)
    assert "".join(block["text"] for block in cut["content"]) == whole[: whole.index(stop)]


def test_an_output_format_is_kept(nano_server):
    output = {"format": {"type": "json_schema", "schema": CITIES | {"additionalProperties": False}}}
    body = {"model": "k2-nano", "max_tokens": 60, "messages": HISTORY[:1], "output_config": output}
    message = HTTP.post(f"{nano_server.url}/v1/messages", json=body).json()
    jsonschema_rs.validate(CITIES, json.loads(message["content"][0]["text"]))


def test_a_prompt_past_the_window_says_how_long_it_is(nano_server):
    body = {"model": "k2-nano", "max_tokens": 9, "messages": [{"role": "user", "content": "word " * 20_000}]}
    counted = HTTP.post(f"{nano_server.url}/v1/messages/count_tokens", json=body).json()["input_tokens"]
    for stream in (False, True):
        response = HTTP.post(f"{nano_server.url}/v1/messages", json=body | {"stream": stream})
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith(f"prompt is too long: {counted} tokens > ")


def test_a_begun_answer_goes_on(nano_server):
    begun = [*HISTORY[:1], {"role": "assistant", "content": "The weather"}]
    body = {"model": "k2-nano", "messages": begun, "temperature": 0}
    counted = HTTP.post(f"{nano_server.url}/v1/messages/count_tokens", json=body).json()["input_tokens"]
    message = HTTP.post(f"{nano_server.url}/v1/messages", json=body | {"max_tokens": 8}).json()
    assert prompt_tokens(message["usage"]) == counted
    openai_form = body | {"max_tokens": 8, "messages": [begun[0], begun[1] | {"partial": True}]}
    same = HTTP.post(f"{nano_server.url}/v1/chat/completions", json=openai_form).json()
    assert same["choices"][0]["message"]["content"] == "".join(block["text"] for block in message["content"])
    assert same["usage"]["prompt_tokens"] == counted
