"""`response_format`: what is read, what is refused, and what answers through the whole server look like."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import openai
import pydantic
import pytest
from tests.support.vocabularies import synthetic_ranks

from openk2.chat.messages import Message, ResponseFormat
from openk2.chat.provider import ChatRequest
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.client.request import request_body
from openk2.errors import RequestError
from openk2.server.openai.schema import read_chat_completion
from openk2.tokenizer import save_ranks

from .conftest import HTTP, RunningServer, Serve, running

USER = {"role": "user", "content": "Hi"}
SCHEMA = {
    "type": "object",
    "properties": {
        "verdict": {"enum": ["yes", "no"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 31},
        "also": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["verdict", "days", "also"],
    "additionalProperties": False,
}
PING = {"type": "function", "function": {"name": "ping", "parameters": {"type": "object", "properties": {}}}}


def json_schema(**more: Any) -> dict[str, Any]:
    declared = {"name": "answer", "schema": SCHEMA, "strict": True} | more
    given = {key: value for key, value in declared.items() if value is not None}
    return {"type": "json_schema", "json_schema": given}


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("response_format", "json_object"),
        ("response_format.type", {}),
        ("response_format.type", {"type": "xml"}),
        ("response_format.type", {"type": 3}),
        ("response_format.json_schema", {"type": "json_schema"}),
        ("response_format.json_schema", {"type": "json_schema", "json_schema": "answer"}),
        ("response_format.json_schema.name", json_schema(name=None)),
        ("response_format.json_schema.name", json_schema(name="")),
        ("response_format.json_schema.strict", json_schema(strict="yes")),
        ("response_format.json_schema.description", json_schema(description=3)),
        ("response_format.json_schema.schema", json_schema(schema=None)),
        ("response_format.json_schema.schema", json_schema(schema="object")),
        ("response_format.json_schema.schema", json_schema(schema={"type": "array"})),
        ("response_format.json_schema.schema.properties.a.type", json_schema(
            schema={"type": "object", "properties": {"a": {"type": "strin"}}})),
    ],
)  # fmt: skip
def test_a_wrong_format_is_a_400_that_names_the_field(param: str, value: Any) -> None:
    with pytest.raises(RequestError) as error:
        read_chat_completion({"messages": [USER], "response_format": value})
    assert error.value.http_status == 400
    assert error.value.param == param and param in str(error.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, ResponseFormat()),
        (json_schema(), ResponseFormat(SCHEMA)),
        (json_schema(strict=None, description="d", name="other"), ResponseFormat(SCHEMA, "other")),
    ],
)
def test_formats_are_read_for_every_choice(value: Any, expected: ResponseFormat | None) -> None:
    body = read_chat_completion({"messages": [USER], "response_format": value, "tools": [PING], "n": 2})
    assert [request.response_format for request in body.choice_requests()] == [expected, expected]
    assert body.ignored == ()


@pytest.mark.parametrize("response_format", [None, ResponseFormat(), ResponseFormat(SCHEMA, "other")])
def test_our_client_sends_what_our_server_reads(response_format: ResponseFormat | None) -> None:
    request = ChatRequest((Message("user", "Hi"),), response_format=response_format)
    (read,) = read_chat_completion(request_body(request, "m")).choice_requests()
    assert read.response_format == response_format


class Event(pydantic.BaseModel):
    name: str
    people: list[str]


def test_the_official_client_parses_the_answer(serve: Serve) -> None:
    provider = ScriptedProvider(['{"name": "fair", "people": ["Ann"]}', ScriptedTurn('{"name', finish_reason="length")])
    client = serve(provider).client
    answer = client.chat.completions.parse(model="kimi-k2", messages=[USER], response_format=Event)
    assert answer.choices[0].message.parsed == Event(name="fair", people=["Ann"])
    sent = provider.requests[0].response_format
    assert sent is not None and sent.name == "Event" and list(sent.schema["properties"]) == ["name", "people"]
    with pytest.raises(openai.LengthFinishReasonError):  # a cut answer is not passed off as a whole one
        client.chat.completions.parse(model="kimi-k2", messages=[USER], response_format=Event)


def test_a_call_in_place_of_the_answer(serve: Serve) -> None:
    client = serve(ScriptedProvider([ScriptedTurn(calls=[ScriptedCall("ping", {})])])).client
    answer = client.chat.completions.create(
        model="kimi-k2", messages=[USER], tools=[PING], response_format={"type": "json_object"}
    )
    assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Random weights: whatever is right in the answers, the grammar has made right."""
    from openk2.llm import LLM

    folder = tmp_path_factory.mktemp("tokenizer")
    save_ranks(synthetic_ranks(), folder / "tiktoken.model")
    with LLM("random:nano", tokenizer=folder, max_model_len=512) as llm, running(llm) as server:
        yield server


def test_answers_of_a_model_that_knows_nothing(server: RunningServer) -> None:
    body = {
        "model": "kimi-k2", "messages": [USER], "response_format": json_schema(), "temperature": 1, "seed": 5, "n": 3,
    }  # fmt: skip
    whole = server.client.chat.completions.create(**body)
    texts = ["", "", ""]
    reasons: list[str | None] = [None, None, None]
    for chunk in server.client.chat.completions.create(**body, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason
    assert [choice.message.content for choice in whole.choices] == texts
    assert [choice.finish_reason for choice in whole.choices] == reasons == ["stop"] * 3
    for text in texts:
        jsonschema_rs.validate(SCHEMA, json.loads(text))
        assert not {"\n", "\t"} & set(text)


def test_with_tools_it_answers_or_calls(server: RunningServer) -> None:
    answer = server.client.chat.completions.create(
        model="kimi-k2", messages=[USER], response_format=json_schema(), tools=[PING], temperature=1, seed=1, n=4,
        parallel_tool_calls=False,
    )  # fmt: skip
    for choice in answer.choices:
        calls = choice.message.tool_calls or []
        assert choice.finish_reason == ("tool_calls" if calls else "stop")
        if calls:
            assert [(call.function.name, call.function.arguments) for call in calls] == [("ping", "{}")]
        else:
            jsonschema_rs.validate(SCHEMA, json.loads(choice.message.content or ""))


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_no_grammar_has_is_a_400(server: RunningServer, stream: bool) -> None:
    unusable = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    body = {"messages": [USER], "response_format": json_schema(schema=unusable), "stream": stream}
    response = HTTP.post(f"{server.url}/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["code"], error["param"]) == ("invalid_schema", "response_format")
    assert "uniqueItems" in error["message"]
