"""What a request may say: conversion to our types, and a 400 that names the field for everything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openk2.chat.messages import ToolChoice
from openk2.chat.scripted import ScriptedProvider
from openk2.errors import RequestError
from openk2.server.openai.schema import ChatCompletionRequest, read_chat_completion

from .conftest import HTTP, RunningServer, running

USER = {"role": "user", "content": "Hi"}


def tool(name: str = "f", **function: Any) -> dict:
    return {"type": "function", "function": {"name": name} | function}


def read(**body: Any) -> ChatCompletionRequest:
    return read_chat_completion({"messages": [USER]} | body)


def call(id: str = "a", name: str = "f", arguments: Any = "{}") -> dict:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def assistant(*calls: dict, content: Any = None, **more: Any) -> dict:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)} | more


WRONG: list[tuple[str | None, dict]] = [
    ("messages", {"messages": []}),
    ("messages", {"messages": None}),
    ("messages", {"messages": "Hi"}),
    ("messages[0]", {"messages": ["Hi"]}),
    ("messages[0].role", {"messages": [{"content": "Hi"}]}),
    ("messages[0].role", {"messages": [{"role": "robot", "content": "Hi"}]}),
    ("messages[1].content", {"messages": [USER, {"role": "user"}]}),
    ("messages[1].content", {"messages": [USER, {"role": "user", "content": None}]}),
    ("messages[0].content", {"messages": [{"role": "user", "content": 3}]}),
    ("messages[0].content[1].type", {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:"}}]}]}),
    ("messages[0].content[0].text", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
    ("messages[0].name", {"messages": [USER | {"name": 3}]}),
    ("messages[1].tool_call_id", {"messages": [USER, {"role": "tool", "content": "x"}]}),
    ("messages[1].tool_call_id", {"messages": [USER, {"role": "tool", "content": "x", "tool_call_id": "a"}]}),
    ("messages[1].tool_calls[0].id", {"messages": [USER, assistant({"function": {"name": "f"}})]}),
    ("messages[1].tool_calls[0].function", {"messages": [USER, assistant({"id": "a", "type": "function"})]}),
    ("messages[1].tool_calls[0].function.arguments", {"messages": [USER, assistant(call(arguments=3))]}),
    ("messages[1].tool_calls[0].type", {"messages": [USER, assistant({"id": "a", "type": "custom"})]}),
    ("messages[1].partial", {"messages": [USER, assistant(partial="yes")]}),
    ("messages[1].partial", {"messages": [USER, assistant(partial=True, content="So"), USER]}),
    ("messages[1].partial", {"messages": [USER, assistant(call(), partial=True)]}),
    ("messages[1].partial", {
        "messages": [USER, assistant(partial=True, content="{")], "response_format": {"type": "json_object"}}),
    ("tools", {"tools": {}}),
    ("tools[0]", {"tools": ["f"]}),
    ("tools[0].type", {"tools": [{"name": "f"}]}),
    ("tools[0].type", {"tools": [{"type": "web_search"}]}),
    ("tools[0].function", {"tools": [{"type": "function"}]}),
    ("tools[0].function.name", {"tools": [tool("no spaces")]}),
    ("tools[1].function.name", {"tools": [tool(), tool()]}),
    ("tools[0].function.description", {"tools": [tool(description=3)]}),
    ("tools[0].function.strict", {"tools": [tool(strict="yes")]}),
    ("tools[0].function.parameters", {"tools": [tool(parameters="x")]}),
    ("tools[0].function.parameters.type", {"tools": [tool(parameters={"type": ["object", "objekt"]})]}),
    ("tools[0].function.parameters.properties.a.required", {"tools": [
        tool(parameters={"type": "object", "properties": {"a": {"type": "string", "required": True}}})]}),
    ("tool_choice", {"tool_choice": "sometimes"}),
    ("tool_choice", {"tool_choice": "required"}),
    ("tool_choice", {"tool_choice": ["auto"]}),
    ("tool_choice.function.name", {"tools": [tool()], "tool_choice": tool("g")}),
    ("tool_choice.function", {"tools": [tool()], "tool_choice": {"type": "function"}}),
    ("tool_choice.type", {"tools": [tool()], "tool_choice": {"type": "mcp"}}),
    ("parallel_tool_calls", {"parallel_tool_calls": "no"}),
    ("temperature", {"temperature": "hot"}),
    ("temperature", {"temperature": 2.5}),
    ("temperature", {"temperature": True}),
    ("top_p", {"top_p": 0}),
    ("top_k", {"top_k": -2}),
    ("min_p", {"min_p": 1.5}),
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": 2.5}),
    ("max_completion_tokens", {"max_tokens": 5, "max_completion_tokens": 0}),
    ("seed", {"seed": 1.5}),
    ("seed", {"seed": 2**63}),
    ("n", {"n": 0}),
    ("n", {"n": 9}),
    ("stop", {"stop": 3}),
    ("stop[1]", {"stop": ["a", ""]}),
    ("stop", {"stop": list("abcde")}),
    ("stream", {"stream": "yes"}),
    ("stream_options", {"stream_options": {"include_usage": True}}),
    ("stream_options.include_usage", {"stream": True, "stream_options": {"include_usage": 1}}),
    ("model", {"model": 3}),
    ("response_format.type", {"response_format": {"type": "xml"}}),
    ("response_format", {"response_format": "text"}),
    ("logprobs", {"logprobs": 3}),
    ("top_logprobs", {"top_logprobs": 3}),
    ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
    ("frequency_penalty", {"frequency_penalty": 2.5}),
    ("presence_penalty", {"presence_penalty": -3}),
    ("repetition_penalty", {"repetition_penalty": 0}),
    ("logit_bias", {"logit_bias": [5]}),
    ("logit_bias.five", {"logit_bias": {"five": 1}}),
    ("logit_bias.05", {"logit_bias": {"05": 1}}),
    ("logit_bias.5", {"logit_bias": {"5": "1"}}),
    ("logit_bias.5", {"logit_bias": {"5": -101}}),
    ("min_tokens", {"min_tokens": -1}),
    ("min_tokens", {"min_tokens": 6, "max_tokens": 5}),
    ("stop_token_ids", {"stop_token_ids": 5}),
    ("mode", {"mode": "fast"}),
    ("mode", {"mode": 3}),
    ("stop_token_ids[1]", {"stop_token_ids": [5, -1]}),
    ("include_stop_str_in_output", {"include_stop_str_in_output": True}),
    ("chat_template_kwargs", {"chat_template_kwargs": ["thinking"]}),
    ("modalities", {"modalities": ["text", "audio"]}),
    ("functions", {"functions": []}),
]  # fmt: skip


@pytest.mark.parametrize(("param", "body"), WRONG, ids=[f"{param}-{i}" for i, (param, _) in enumerate(WRONG)])
def test_a_wrong_field_is_a_400_that_names_it(param, body):
    with pytest.raises(RequestError) as error:
        read(**body).choice_requests()
    assert error.value.http_status == 400
    assert error.value.param == param
    assert param in str(error.value) or param == "tool_choice"


def test_the_last_message_may_be_the_beginning_of_the_answer():
    body = read(messages=[USER, assistant(content="So far", name="Ann", partial=True)])
    last = body.choice_requests()[0].messages[-1]
    assert (last.text, last.name, last.partial) == ("So far", "Ann", True)
    assert not read(messages=[USER, assistant(content="So far")]).messages[-1].partial


def test_template_variables() -> None:
    (request,) = read(chat_template_kwargs={"thinking": False}).choice_requests()
    assert request.template_variables == {"thinking": False} and read().choice_requests()[0].template_variables == {}


def test_messages_become_ours():
    body = read(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
            assistant(
                call("x", "f", '{"b": 1,"a":2}'), call("y", "g", {"k": "é"}), reasoning_content="hm", refusal=None
            ),
            {"role": "tool", "tool_call_id": "y", "content": None},
            {"role": "tool", "tool_call_id": "x", "content": "done", "name": "f"},
            {"role": "assistant", "content": ""},
            {"role": "system", "content": "Still brief."},
        ]
    )
    system, user, turn, first, second, empty, late = body.messages
    assert (system.role, system.content) == ("system", "Be brief.")
    assert user.content == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}] and user.name == "Ann"
    assert [(c.id, c.name, c.arguments) for c in turn.tool_calls] == [
        ("x", "f", '{"b": 1,"a":2}'),  # text that the model wrote stays as it was
        ("y", "g", '{"k": "é"}'),
    ]
    assert (first.tool_call_id, first.text) == ("y", "")
    assert (second.tool_call_id, second.text, second.name) == ("x", "done", "f")
    assert empty.tool_calls == () and late.role == "system"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ToolChoice()),
        ("auto", ToolChoice()),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ("any", ToolChoice("required")),
        (tool("g"), ToolChoice("required", "g")),
    ],
)
def test_tool_choice(value, expected):
    body = read(tools=[tool("f", strict=None), tool("g", parameters=None)], tool_choice=value)
    assert body.tool_choice == expected
    assert [t.name for t in body.tools] == ["f", "g"]
    assert body.tools[0].declaration == tool("f", strict=None)  # as declared: the prompt shows every key


def test_allowed_tools_narrow_the_declarations():
    allowed = {"mode": "required", "tools": [tool("g")]}
    body = read(
        tools=[tool("f"), tool("g")],
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
        parallel_tool_calls=False,
    )
    assert [t.name for t in body.tools] == ["g"]
    assert body.tool_choice == ToolChoice("required", parallel=False)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"a": {"type": "array", "items": [{"type": "string"}]}}},
        {"type": "object", "properties": {"a": {"type": "number", "minimum": 0, "exclusiveMinimum": True}}},
        {"$schema": "http://nowhere.invalid/schema", "type": "object"},
        {"anyOf": [{"type": "object"}], "$defs": {}},
        {"type": "string"},
        {"anyOf": [{"type": "array"}, {"type": "null"}]},
    ],
)
def test_schemas_of_every_dialect_pass(schema):
    assert read(tools=[tool(parameters=schema)]).tools[0].declaration["function"]["parameters"] == schema


def test_sampling():
    sampling = read(
        temperature=0, top_p=1, top_k=-1, min_p=0.1, seed=-5, stop="END", max_tokens=7, max_completion_tokens=9
    ).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 1, 0, 0.1)
    assert (sampling.seed, sampling.stop, sampling.max_tokens) == (-5, ("END",), 9)
    assert read().sampling.temperature is None  # the checkpoint's default decides
    sampling = read(logit_bias={"5": -100, "0": 1.5}, min_tokens=3, max_tokens=3, stop_token_ids=[7, 8]).sampling
    assert sampling.logit_bias == ((5, -100.0), (0, 1.5))
    assert (sampling.min_tokens, sampling.stop_token_ids) == (3, (7, 8))


def test_harmless_and_unknown_parameters_are_ignored_and_reported():
    body = read(
        user="u", metadata={"a": "b"}, store=False, service_tier="auto", reasoning_effort="low", brand_new=1,
        frequency_penalty=0.0, presence_penalty=0, repetition_penalty=1.0, logit_bias={}, logprobs=False,
        modalities=["text"], response_format={"type": "text"}, min_tokens=0, verbosity=None,
    )  # fmt: skip
    assert body.ignored == ("brand_new", "metadata", "reasoning_effort", "service_tier", "store", "user")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "text", "user", "function"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "function", "name", "id"]), inner, max_size=4
        )
    ),
    max_leaves=6,
)
FIELDS = ["messages", "tools", "tool_choice", "stop", "response_format", "n", "seed", "temperature", "stream_options"]


@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=3))
@settings(max_examples=100, deadline=None)
def test_any_json_is_read_or_refused(body):
    try:
        read(**body)
    except RequestError as error:
        assert error.http_status == 400 and str(error)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(ScriptedProvider(lambda request: request.messages[-1].text)) as server:
        yield server


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'{"messages": NaN}',
        b'{"a": "\xff"}',
        b"[" * 100_000,
        b"[" * 130 + b"]" * 130,
        b'{"x": 1e999}',
    ],
    ids=["empty", "cut", "array", "number", "nan", "not utf-8", "deep", "too deep", "too large"],
)
def test_what_is_no_json_object_is_a_400(server, data):
    response = HTTP.post(f"{server.url}/v1/chat/completions", content=data)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_huge_body_is_a_413(serve):
    from openk2.server.settings import ServerSettings

    url = serve(ScriptedProvider([]), ServerSettings(max_body_bytes=1000)).url
    response = HTTP.post(f"{url}/v1/chat/completions", content=b" " * 1001)
    assert response.status_code == 413 and response.json()["error"]["message"]


def test_half_an_emoji_is_read_as_a_replacement_character(server):
    body = json.dumps({"messages": [{"role": "user", "content": "a\ud83d b\U0001f44b"}]})
    response = HTTP.post(f"{server.url}/v1/chat/completions", content=body)
    assert response.json()["choices"][0]["message"]["content"] == "a� b\U0001f44b"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("POST", "/v1/embeddings", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("GET", "/static/nothing.js", 404, "unknown_url"),
        ("GET", "/static/../app.py", 404, "unknown_url"),
        ("GET", "/v1/models/nothing", 404, "model_not_found"),
    ],
)
def test_unknown_addresses_are_error_objects(server, method, path, status, code):
    response = HTTP.request(method, server.url + path)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code


def test_ignored_parameters_are_named_in_a_header(server):
    response = HTTP.post(f"{server.url}/v1/chat/completions", json={"messages": [USER], "user": "u", "zz": 1, "é\n": 2})
    assert response.status_code == 200 and response.headers["x-openk2-ignored"] == "user,zz"
