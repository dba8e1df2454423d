"""`/openapi.json` describes the routes that there are, and its schemas take what the server takes."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest

from openk2.chat.scripted import ScriptedProvider
from openk2.errors import RequestError
from openk2.server.app import create_app
from openk2.server.openai.completions import read_completion
from openk2.server.openai.schema import read_chat_completion
from openk2.server.openapi import openapi_document

from .conftest import HTTP, Serve

NOT_DESCRIBED = {
    "/",
    "/ui/tools.json",
    "/static/{name}",
    "/v1/embeddings",
    "/debug/trace/{request_id}",
    "/openapi.json",
}
"""The page, one that only says no, one for whoever sent a header, and the description itself."""


def schema_of(name: str) -> Any:
    document = openapi_document()
    return jsonschema_rs.validator_for({**document, "$ref": f"#/components/schemas/{name}"})


def test_it_is_served(serve: Serve) -> None:
    found = HTTP.get(f"{serve(ScriptedProvider([])).url}/openapi.json").json()
    assert found == openapi_document() and found["openapi"] == "3.1.0"


def test_it_has_the_routes_that_there_are() -> None:
    routes = create_app(ScriptedProvider([])).openapi()["paths"]  # as FastAPI sees them
    there = {(path, method) for path, item in routes.items() for method in item}
    described = {(path, method) for path, item in openapi_document()["paths"].items() for method in item}
    assert described <= there
    assert {path for path, _ in there - described} <= NOT_DESCRIBED, there - described


MESSAGES = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 2, "top_p": 1.0, "stop": ["a", "b"], "logit_bias": {"3": -100}, "seed": 7},
        {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "n": 8},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}},
        {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": None, "user": "someone"},
        {"mode": "reflex"},
    ],
)
def test_what_the_server_takes_is_valid(more: dict[str, Any]) -> None:
    body = {"messages": MESSAGES, **more}
    read_chat_completion(body)
    assert schema_of("ChatCompletionRequest").is_valid(body)


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 2.5},
        {"top_p": 0},
        {"n": 9},
        {"top_logprobs": 21, "logprobs": True},
        {"stop": list("abcde")},
        {"messages": []},
        {"max_tokens": 0},
        {"mode": "fast"},
    ],
)
def test_what_it_refuses_is_not(more: dict[str, Any]) -> None:
    body = {"messages": MESSAGES, **more}
    with pytest.raises(RequestError):
        read_chat_completion(body)
    assert not schema_of("ChatCompletionRequest").is_valid(body)


@pytest.mark.parametrize("prompt", ["a", [1, 2], ["a", "b"], [[1], [2, 3]]])
def test_prompts_of_every_form(prompt: Any) -> None:
    read_completion({"prompt": prompt})
    assert schema_of("CompletionRequest").is_valid({"prompt": prompt})
