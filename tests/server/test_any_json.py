"""Whatever JSON is sent to whatever address: never a fault of the server's, and a refusal in the form of its API."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from urllib.parse import quote

import httpx2 as httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.vocabularies import synthetic_ranks

from openk2.chat.events import ChatEvent, Finished, TextDelta
from openk2.chat.provider import ChatRequest, TextRequest
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.chat.template import ChatTemplate
from openk2.server.app import create_app
from openk2.tokenizer import Tokenizer

SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "enum": ["x"]}}, "required": ["a"]}
FUNCTION = {"name": "f", "description": "Do f.", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "Ann"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
    {"role": "tool", "tool_call_id": "c1", "content": "1"},
]
SAMPLING = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 3,
    "min_p": 0.1,
    "seed": 1,
    "stop": ["END"],
    "logit_bias": {"5": 1},
}
CHAT = [
    {"messages": TURNS, "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False, "model": "kimi-k2"},
    {"messages": TURNS[1:2], **SAMPLING, "max_tokens": 5, "min_tokens": 1, "n": 2, "logprobs": True, "top_logprobs": 2},
    {"messages": TURNS[1:2], "stream": True, "stream_options": {"include_usage": True}, "user": "u", "metadata": {}},
    {"messages": TURNS[1:2], "response_format": {
        "type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
    {"messages": [*TURNS[:2], {"role": "assistant", "content": "So", "partial": True}],
     "chat_template_kwargs": {"a": 1}},
    {"messages": TURNS, "tools": [TOOL], "tool_choice": {
        "type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOL]}}},
]  # fmt: skip
TEXT = [
    {"prompt": ["a b", [1, 2]], "max_tokens": 3, "n": 1, "best_of": 2, "echo": True, **SAMPLING},
    {"prompt": "a b", "logprobs": 2, "stream": True, "stop_token_ids": [3], "suffix": None},
]
ITEMS = [
    {"role": "developer", "content": "Be brief."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "1"},
]
RESPONSES = [
    {"input": ITEMS, "tools": [{"type": "function", **FUNCTION}], "tool_choice": {"type": "function", "name": "f"}},
    {"input": "Hi", "instructions": "Be brief.", "metadata": {"a": "b"}, "store": False, "stream": True, "include": []},
    {"input": "Hi", "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}, "max_output_tokens": 5},
    {"input": [{"type": "item_reference", "id": "msg_1"}], "previous_response_id": "resp_1", "reasoning": {}},
]
BLOCKS = [
    {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
    {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "So"},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": "x"}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "1", "is_error": False}]},
]  # fmt: skip
MESSAGES = [
    {"max_tokens": 5, "messages": BLOCKS, "system": [{"type": "text", "text": "Be brief."}], "temperature": 1.0,
     "tools": [{"name": "f", "input_schema": SCHEMA}],
     "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
    {"max_tokens": 5, "messages": BLOCKS[:1], "stream": True, "stop_sequences": ["END"],
     "thinking": {"type": "enabled"}, "model": "claude-x"},
    {"max_tokens": 5, "messages": BLOCKS[:1], "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
]  # fmt: skip
BODIES: dict[str, Sequence[Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": TEXT,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": MESSAGES,
    "/tokenize": [{"prompt": "a"}, {"messages": TURNS, "tools": [TOOL], "add_generation_prompt": False}],
    "/detokenize": [{"tokens": [1, 2, 3]}],
}

KEYS = sorted({"type", "text", "role", "content", "name", "id", "function", "$ref", "new", *SCHEMA, *CHAT[1]})
NUMBERS = [0, -1, 3, 2**70, 10**400, 0.5, -1e308]
SCALARS = st.sampled_from([None, True, False, *NUMBERS, "", "a", "user", "object", "\ud800", "<|im_end|>", "x" * 200])
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """Paths of all that is in a JSON value."""
    yield place
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*place, key))


@st.composite
def broken(draw: st.DrawFn, bodies: Sequence[Any]) -> Any:
    """One of the bodies with some places left out, replaced or added to."""
    body = copy.deepcopy(draw(st.sampled_from(bodies)))
    for _ in range(draw(st.integers(0, 3))):
        *way, last = draw(st.sampled_from([place for place in places(body) if place] or [("new",)]))
        container = body
        for key in way:
            container = container[key]
        match draw(st.sampled_from(["replace", "leave out", "add"])):
            case "replace":
                container[last] = draw(JSON)
            case "leave out":
                del container[last]
            case "add" if isinstance(container, dict):
                container[draw(st.sampled_from(KEYS))] = draw(JSON)
            case _:
                container.append(draw(JSON))
        if not body:
            break
    return body


class Provider(ScriptedProvider):
    """Renders every prompt, as a model here would, and then plays; continues texts."""

    max_model_len = 10_000

    def __init__(self) -> None:
        self.template = ChatTemplate(Tokenizer(synthetic_ranks()))
        super().__init__(self.play)

    def play(self, request: ChatRequest) -> ScriptedTurn:
        self.count_prompt_tokens(request)
        return ScriptedTurn("Well, ", [ScriptedCall("f", {"a": "x"})] if request.tools else (), reasoning="hm")

    def count_prompt_tokens(self, request: ChatRequest) -> int:
        return len(self.template.render(request.messages, request.tools, variables=request.template_variables))

    async def stream_text(self, request: TextRequest) -> AsyncIterator[ChatEvent]:
        yield TextDelta(str(request.prompt)[:9])
        yield Finished("stop")


class Caller:
    """Calls the application without a socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        transport = httpx.ASGITransport(app=create_app(Provider()), raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    def __call__(self, method: str, path: str, body: Any = None) -> httpx.Response:
        content = None if body is None else json.dumps(body)
        return self._loop.run_until_complete(self._client.request(method, path, content=content))


@pytest.fixture(scope="module")
def call() -> Iterator[Caller]:
    loop = asyncio.new_event_loop()
    yield Caller(loop)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def check(path: str, response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if response.status_code == 200:
        assert response.headers["content-type"].startswith("text/event-stream") or response.json()
        return
    error = response.json()["error"]
    assert isinstance(error["message"], str) and error["message"] and isinstance(error["type"], str)
    if path.startswith("/v1/messages"):
        assert response.json()["type"] == "error" and response.json()["request_id"]
    else:
        assert {"param", "code"} <= error.keys()


@pytest.mark.parametrize("path", BODIES)
def test_the_bodies_to_be_broken_are_fine(call: Caller, path: str) -> None:
    for body in BODIES[path]:
        response = call("POST", path, body)
        known = "previous_response_id" not in body
        assert response.status_code == (200 if known else 400), response.text
        check(path, response)


@pytest.mark.parametrize("path", BODIES)
@settings(max_examples=60)
@given(data=st.data())
def test_a_body_is_answered_or_refused(call: Caller, path: str, data: st.DataObject) -> None:
    body = data.draw(broken(BODIES[path]) | JSON.filter(lambda value: value is not None))
    check(path, call("POST", path, body))


@settings(max_examples=40)
@given(method=st.sampled_from(["GET", "DELETE", "POST"]), name=st.text(min_size=1, max_size=8))
def test_any_address_is_answered_or_refused(call: Caller, method: str, name: str) -> None:
    for prefix in ("/v1/models/", "/v1/responses/", "/"):
        path = prefix + quote(name, safe="")
        check(path, call(method, path))
