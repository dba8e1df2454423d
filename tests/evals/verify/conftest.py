"""A faithful model without a model, behind our own server; and fronts that break what it says."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from tests.server.conftest import HTTP, running

from openk2.chat.provider import ChatRequest
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn, Turn
from openk2.errors import ContextLengthError

WINDOW = 4096


def instance(schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> Any:
    """A value that is valid under a schema of the kinds that verification generates."""
    root = schema if root is None else root
    if "$ref" in schema:
        return instance(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return instance(schema["anyOf"][0], root)
    match schema.get("type", "object"):
        case "object":
            return {name: instance(part, root) for name, part in schema.get("properties", {}).items()}
        case "array":
            return [instance(schema["items"], root)] * schema.get("minItems", 0)
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return True
    return "x" * schema.get("minLength", 1)


class FaithfulModel(ScriptedProvider):
    """Does what it is told; left to itself it calls a tool unless thanked, or asked in Chinese."""

    max_model_len = WINDOW

    def __init__(self) -> None:
        super().__init__(self._answer, model="faithful")

    def _answer(self, request: ChatRequest) -> Turn:
        words = self.count_prompt_tokens(request)
        if words > WINDOW:
            return ContextLengthError(prompt_tokens=words, max_model_len=WINDOW)
        if request.response_format is not None:
            return json.dumps(instance(request.response_format.schema or {}))
        choice, said = request.tool_choice, request.messages[-1].text
        if choice.mode == "none" or not request.tools:
            return "A tomato is a fruit."
        if choice.mode == "auto" and ("Thanks" in said or "请" in said):
            return "You are welcome."
        tools = [tool for tool in request.tools if choice.name in (None, tool.name)]
        several = choice.parallel and len(tools) > 1 and len(said) % 3 == 0
        calls = [ScriptedCall(tool.name, instance(tool.parameters)) for tool in tools[: 2 if several else 1]]
        return ScriptedTurn("Let me see. " if len(said) % 2 else "", calls)


@pytest.fixture(scope="module")
def faithful() -> Iterator[str]:
    """The URL of our server with a faithful model."""
    with running(FaithfulModel()) as server:
        yield server.url


Change = Callable[[dict[str, Any]], None]
"""Changes one JSON payload of an answer in place."""


def rewrite_ids(payload: dict[str, Any]) -> None:
    """As servers do that mint ids of their own."""
    for call in _calls(payload):
        if call.get("id"):
            call["id"] = f"call_{uuid.uuid4().hex[:8]}"


def leak_markers(payload: dict[str, Any]) -> None:
    """As servers do whose parser misses the tool-call section."""
    for choice in payload.get("choices", ()):
        part = choice.get("delta") or choice.get("message") or {}
        for call in part.pop("tool_calls", None) or ():
            begin = f"<|tool_call_begin|>{call['id']}<|tool_call_argument_begin|>" if call.get("id") else ""
            part["content"] = (part.get("content") or "") + begin + call["function"]["arguments"]
        if choice.get("finish_reason") == "tool_calls":
            choice["finish_reason"] = "stop"


def ignore_schemas(payload: dict[str, Any]) -> None:
    """As servers do that sample calls and answers freely."""
    for call in _calls(payload):
        function = call["function"]
        whole_or_first = "name" in function
        function["arguments"] = '{"surprise": [1, 2, 3]}' if whole_or_first else ""


def _calls(payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for choice in payload.get("choices", ()):
        part = choice.get("delta") or choice.get("message") or {}
        yield from part.get("tool_calls") or ()


@contextmanager
def front(upstream: str, change: Change, drop: tuple[str, ...] = ()) -> Iterator[str]:
    """The URL of a proxy that breaks what `upstream` answers, and does not pass on the fields in `drop`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(HTTP.get(upstream + self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = {key: value for key, value in body.items() if key not in drop}
            self._send(HTTP.post(upstream + self.path, json=body))

        def _send(self, answer: httpx2.Response) -> None:
            kind = answer.headers["content-type"]
            text = answer.text
            if answer.status_code == 200:
                text = "\n".join(map(self._changed, text.split("\n"))) if "stream" in kind else self._json(text)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def _changed(self, line: str) -> str:
            return f"data: {self._json(line[6:])}" if line.startswith("data: {") else line

        def _json(self, text: str) -> str:
            payload = json.loads(text)
            change(payload)
            return json.dumps(payload)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
