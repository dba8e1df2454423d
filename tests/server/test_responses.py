"""`/v1/responses` with the official client and its own types: whole and streamed, calls, formats, conversations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from openk2.chat.messages import Usage
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.errors import ContextLengthError, OverloadedError, ProviderError

from .conftest import HTTP, RunningServer, Serve, running

SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}}, "required": ["city"]}
TOOL: Any = {"type": "function", "name": "f", "description": "Do f.", "parameters": SCHEMA, "strict": True}

CASES = {
    "text": ScriptedTurn("Hello there, how are you?", usage=Usage(9, 4, 3)),
    "nothing": ScriptedTurn(""),
    "call": ScriptedTurn("", [ScriptedCall("f", {"city": "Oslo"})]),
    "text and calls": ScriptedTurn("Look:", [ScriptedCall("f", {"city": "Oslo"}), ScriptedCall("f", "")]),
    "cut text": ScriptedTurn("Hello the", finish_reason="length"),
    "cut call": ScriptedTurn("", [ScriptedCall("f", {"x": 1}), ScriptedCall("f", {"x": 2})], finish_reason="length"),
    "error": ScriptedTurn("Hel", error=ProviderError("broken")),
    "error in a call": ScriptedTurn("", [ScriptedCall("f", {"x": 1})], error=ProviderError("broken")),
}

# c created, p in_progress, then for text: A added, P part, t delta, T done, Q part done, D item done;
# for a call: A added, a delta, C arguments done, D item done; at last K completed, I incomplete, F failed
LETTERS = {
    "response.created": "c", "response.in_progress": "p", "response.output_item.added": "A",
    "response.content_part.added": "P", "response.output_text.delta": "t", "response.output_text.done": "T",
    "response.content_part.done": "Q", "response.output_item.done": "D",
    "response.function_call_arguments.delta": "a", "response.function_call_arguments.done": "C",
    "response.completed": "K", "response.incomplete": "I", "response.failed": "F",
}  # fmt: skip
TEXT, CALL = "APt+TQD", "Aa+CD"
STREAM = re.compile(rf"cp({TEXT})?({CALL})*(K|(Aa*)?I|(APt*|Aa*)?F)")
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Answers with the case that the last message names."""
    with running(ScriptedProvider(lambda request: CASES[request.messages[-1].text])) as server:
        yield server


def events_of(text: str) -> list[dict]:
    """A stream's events. Fails where an event is not named, or not numbered."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    events = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert (name, event["sequence_number"]) == (f"event: {event['type']}", number)
        events.append(event)
    return events


def comparable(response: dict) -> dict:
    """Without what differs from one response to the next."""
    output = [{key: value for key, value in item.items() if key != "id"} for item in response["output"]]
    return {key: value for key, value in response.items() if key not in ("id", "created_at", "completed_at")} | {
        "output": output
    }


@pytest.mark.parametrize("case", CASES)
def test_every_stream_is_a_sentence_of_the_grammar(server: RunningServer, case: str) -> None:
    body = {"input": case, "tools": [TOOL], "stream": True}
    response = HTTP.post(f"{server.url}/v1/responses", json=body)
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    sentence = "".join(LETTERS[event["type"]] for event in events)
    assert STREAM.fullmatch(sentence), sentence
    for event in events:
        EVENT.validate_python(event)
    last = events[-1]["response"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert last["output"] == done
    for item in (event for event in events if "item_id" in event):
        assert (
            item["item_id"]
            == [e["item"]["id"] for e in events if e["type"].endswith("added") and "item" in e][item["output_index"]]
        )
    if CASES[case].error is None:
        plain = HTTP.post(f"{server.url}/v1/responses", json=body | {"stream": False}).json()
        Response.model_validate(plain)
        assert comparable(plain) == comparable(last)
    else:
        assert last["status"] == "failed" and last["error"]["message"] == "broken"
        assert HTTP.post(f"{server.url}/v1/responses", json=body | {"stream": False}).status_code == 502


def test_an_answer_and_what_it_repeats(server: RunningServer) -> None:
    client = server.client
    response = client.responses.create(
        model="kimi-k2", input="text", instructions="Be brief.", metadata={"a": "b"}, max_output_tokens=50
    )
    assert response.output_text == "Hello there, how are you?"
    assert (response.status, response.model, response.object) == ("completed", "scripted", "response")
    assert response.id.startswith("resp_") and response.output[0].id.startswith("msg_")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (9, 4, 13)
    assert response.usage.input_tokens_details.cached_tokens == 3
    assert (response.instructions, response.metadata, response.max_output_tokens) == ("Be brief.", {"a": "b"}, 50)
    with client.responses.stream(model="kimi-k2", input="text") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == response.output_text and len(deltas) > 1


def test_a_cut_answer_is_incomplete(server: RunningServer) -> None:
    text = server.client.responses.create(model="kimi-k2", input="cut text")
    assert text.status == "incomplete" and text.incomplete_details is not None
    assert text.incomplete_details.reason == "max_output_tokens"
    assert text.output[0].status == "incomplete" and text.output_text == "Hello the"
    call = server.client.responses.create(model="kimi-k2", input="cut call", tools=[TOOL])
    assert call.status == "incomplete" and len(call.output) == 1  # the second call was cut


def test_calls_and_their_results(serve: Serve) -> None:
    provider = ScriptedProvider([CASES["text and calls"], "Cold."] * 2)
    client = serve(provider).client
    first = client.responses.create(model="kimi-k2", input="Weather?", tools=[TOOL], store=False)
    message, call, empty = first.output
    assert (message.type, call.type, call.name, json.loads(call.arguments)) == (
        "message", "function_call", "f", {"city": "Oslo"},
    )  # fmt: skip
    assert empty.arguments == "{}" and call.id.startswith("fc_") and call.call_id == "functions.f:0"
    results: Any = [
        {"type": "function_call_output", "call_id": empty.call_id, "output": "?"},
        {"type": "function_call_output", "call_id": call.call_id, "output": "-3"},
    ]
    history: Any = [{"role": "user", "content": "Weather?"}, *(item.model_dump() for item in first.output), *results]
    client.responses.create(model="kimi-k2", input=history, tools=[TOOL])
    kept = client.responses.create(model="kimi-k2", input="Weather?", tools=[TOOL], instructions="Be brief.")
    results[0]["call_id"], results[1]["call_id"] = kept.output[2].call_id, kept.output[1].call_id
    second = client.responses.create(model="kimi-k2", input=results, tools=[TOOL], previous_response_id=kept.id)
    assert second.output_text == "Cold." and second.previous_response_id == kept.id
    # The history sent and the history kept are the same; instructions are of one request only.
    assert provider.requests[1].messages[1:] == provider.requests[3].messages[1:]
    assert [m.role for m in provider.requests[3].messages] == ["user", "assistant", "tool", "tool"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_goes_on_until_it_is_deleted(serve: Serve, stream: bool) -> None:
    provider = ScriptedProvider(lambda request: f"turn {len(request.messages)}")
    client = serve(provider).client

    def ask(text: str, **more: Any) -> Response:
        if not stream:
            return client.responses.create(model="kimi-k2", input=text, **more)
        with client.responses.stream(model="kimi-k2", input=text, **more) as events:
            return events.get_final_response()

    first = ask("a")
    second = ask("b", previous_response_id=first.id)
    assert (first.output_text, second.output_text) == ("turn 1", "turn 3")
    assert client.responses.retrieve(second.id).output_text == "turn 3"
    client.responses.delete(first.id)
    for gone in (lambda: client.responses.retrieve(first.id), lambda: client.responses.delete(first.id)):
        with pytest.raises(openai.NotFoundError):
            gone()
    unkept = ask("c", store=False)
    for id in (second.id, unkept.id):
        with pytest.raises(openai.BadRequestError) as error:
            ask("d", previous_response_id=id)
        assert (error.value.code, error.value.param) == ("previous_response_not_found", "previous_response_id")


def test_a_parsed_answer(serve: Serve) -> None:
    class City(BaseModel):
        city: str

    provider = ScriptedProvider(lambda _: '{"city": "Oslo"}')
    response = serve(provider).client.responses.parse(model="kimi-k2", input="Where?", text_format=City)
    assert response.output_parsed == City(city="Oslo")
    asked = provider.requests[0].response_format
    assert asked is not None and asked.name == "City" and asked.schema["required"] == ["city"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OverloadedError("full"), 503, None),
        (ContextLengthError(prompt_tokens=9, max_model_len=8), 400, "context_length_exceeded"),
    ],
)
def test_a_failure_before_the_first_event_has_its_status(serve: Serve, error, status, code, stream) -> None:
    response = HTTP.post(f"{serve(ScriptedProvider([error])).url}/v1/responses", json={"input": "a", "stream": stream})
    assert response.status_code == status and response.json()["error"]["code"] == code


def test_k2_nano_calls_and_writes_json(nano_server: RunningServer) -> None:
    client = nano_server.client
    body: Any = {
        "model": "k2-nano", "input": "Weather in Oslo?", "tools": [TOOL], "tool_choice": "required",
        "parallel_tool_calls": False, "temperature": 0, "max_output_tokens": 60,
    }  # fmt: skip
    plain = client.responses.create(**body)
    with client.responses.stream(**body) as events:
        streamed = events.get_final_response()
    (call,), (same,) = plain.output, streamed.output
    assert (call.name, call.arguments, call.call_id) == (same.name, same.arguments, same.call_id)
    jsonschema_rs.validate(SCHEMA, json.loads(call.arguments))
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "-3"}
    form: Any = {"format": {"type": "json_schema", "name": "city", "schema": SCHEMA | {"additionalProperties": False}}}
    second = client.responses.create(
        model="k2-nano", input=[result], previous_response_id=plain.id, text=form, max_output_tokens=60
    )
    jsonschema_rs.validate(SCHEMA, json.loads(second.output_text))
    assert second.usage.input_tokens > plain.usage.input_tokens - 100
