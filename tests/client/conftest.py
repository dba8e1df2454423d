"""A tiny endpoint on a loopback port that answers exactly what a test says, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from openk2.client import remote

MODELS = {"object": "list", "data": [{"id": "first", "max_model_len": 4096}, {"id": "second"}]}


@dataclass(frozen=True)
class Reply:
    """One HTTP answer; the connection is closed after it."""

    body: str | Sequence[str] = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    """Keeps the connection open after the body until it is set or the client has gone."""


def sse(*chunks: Any, done: bool = True, role: bool = True) -> Reply:
    """A stream of chunks: a delta dict is wrapped into a choice, a chunk with `choices` or `error` is sent as it is."""
    frames = [frame({"role": "assistant", "content": ""})] if role else []
    frames += [frame(chunk) for chunk in chunks]
    return Reply([*frames, "data: [DONE]\n\n"] if done else frames)


def frame(chunk: Any) -> str:
    if not {"choices", "error"} & set(chunk):
        reason = chunk.get("finish_reason")
        delta = {key: value for key, value in chunk.items() if key != "finish_reason"}
        chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    return f"data: {json.dumps(chunk)}\n\n"


@dataclass
class Endpoint:
    url: str
    replies: list[Reply] = field(default_factory=list)
    """Answers to POST, in order; the last one is repeated."""
    models: Reply = field(default_factory=lambda: Reply(json.dumps(MODELS)))
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the POST requests."""
    paths: list[str] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    client_gone: threading.Event = field(default_factory=threading.Event)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._note()
                self._send(endpoint.models)

            def do_POST(self) -> None:
                self._note()
                length = int(self.headers["Content-Length"])
                endpoint.asked.append(json.loads(self.rfile.read(length)))
                self._send(endpoint.replies[min(len(endpoint.asked), len(endpoint.replies)) - 1])

            def _note(self) -> None:
                endpoint.paths.append(self.path)
                endpoint.headers.append(dict(self.headers))

            def _send(self, reply: Reply) -> None:
                streams = not isinstance(reply.body, str)
                kind = "text/event-stream" if streams else "application/json"
                self.send_response(reply.status)
                for name, value in {"Content-Type": kind, **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                for part in reply.body if streams else [reply.body]:
                    self.wfile.write(part.encode())
                    self.wfile.flush()
                if reply.hold is not None:
                    self._hold(reply.hold)

            def _hold(self, released: threading.Event) -> None:
                while not released.wait(0.02):
                    try:
                        self.wfile.write(b": still here\n\n")
                        self.wfile.flush()
                    except OSError:
                        endpoint.client_gone.set()
                        return

            def log_message(self, *args: object) -> None: ...

        return Handler


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), endpoint.handler())
    server.daemon_threads = True
    endpoint.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield endpoint
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses before retries, noted and not slept."""
    noted: list[float] = []

    async def note(seconds: float) -> None:
        noted.append(seconds)

    monkeypatch.setattr(remote.asyncio, "sleep", note)
    return noted


@pytest.fixture
def streamed() -> Callable[..., Reply]:
    return sse


@pytest.fixture
def reply() -> type[Reply]:
    return Reply
