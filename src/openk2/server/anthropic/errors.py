"""Errors as Anthropic's clients expect them, for every address under `/v1/messages`.

The rest of the server, its guard included, speaks OpenAI's envelope; here it is put into Anthropic's on the way out:
`{"type": "error", "error": {"type", "message"}, "request_id"}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from openk2.errors import OpenK2Error
from openk2.server.error_responses import body_of
from openk2.server.sse import dump_json

PATH = "/v1/messages"

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}
_OVERLOADED = 529
"""Anthropic's status for a server without room, which elsewhere is 429 or 503."""


def error_event(error: OpenK2Error, request_id: str) -> dict[str, Any]:
    """An error in the middle of a stream."""
    return _envelope(body_of(error)["error"], error.http_status, request_id)


def _envelope(error: Mapping[str, Any], status: int, request_id: str) -> dict[str, Any]:
    message = error["message"]
    if error.get("code") == "context_length_exceeded":
        # Claude Code compacts its conversation when it reads just these words.
        known = "prompt_tokens" in error  # an upstream does not always say by how much
        what = f"{error['prompt_tokens']} tokens > {error['max_model_len']} maximum" if known else message
        message = f"prompt is too long: {what}"
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    kind = "overloaded_error" if error["type"] == "overloaded_error" else kind
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


class AnthropicErrors:
    """ASGI middleware around everything else: error bodies and statuses, and the `request-id` header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (scope["path"] == PATH or scope["path"].startswith(f"{PATH}/")):
            await self._app(scope, receive, send)
            return
        await self._app(scope, receive, _Rewriter(send, scope["state"]["request_id"]).send)


class _Rewriter:
    """Passes a response on; one that is an error is held until its body is complete, and then translated."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._held: MutableMapping[str, Any] | None = None
        self._body = bytearray()

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["request-id"] = self._request_id
            if message["status"] >= 400:
                self._held = message
                return
        elif message["type"] == "http.response.body" and self._held is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_translated(self._held)
            return
        await self._send(message)

    async def _send_translated(self, start: MutableMapping[str, Any]) -> None:
        headers = MutableHeaders(scope=start)
        body = bytes(self._body)
        if headers.get("content-type", "").startswith("application/json"):
            error = json.loads(body)["error"]
            body = dump_json(_envelope(error, start["status"], self._request_id))
            start["status"] = _OVERLOADED if error["type"] == "overloaded_error" else start["status"]
            headers["content-length"] = str(len(body))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})
