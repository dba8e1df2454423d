"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`, whatever went wrong."""

from __future__ import annotations

import logging
import math
from collections.abc import MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from openk2.errors import ContextLengthError, OpenK2Error, OverloadedError, TimeLimitError
from openk2.server.request_record import CLIENT_CLOSED_REQUEST
from openk2.server.sse import dump_json
from openk2.server.streams import ClientDisconnected

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 2
"""Where the provider does not say."""


def error_body(
    message: str, error_type: str, *, param: str | None = None, code: str | None = None, **extra: Any
) -> dict[str, Any]:
    return {"error": {"message": message, "type": error_type, "param": param, "code": code, **extra}}


def body_of(error: OpenK2Error) -> dict[str, Any]:
    """The error object; one about the window also carries its numbers, which agents need to compact."""
    numbers = (
        {"prompt_tokens": error.prompt_tokens, "max_model_len": error.max_model_len}
        if isinstance(error, ContextLengthError)
        else {}
    )
    return error_body(str(error), error.error_type, param=error.param, code=error.code, **numbers)


def error_response(
    status: int, message: str, error_type: str, *, param: str | None = None, code: str | None = None
) -> Response:
    body = error_body(message, error_type, param=param, code=code)
    return Response(dump_json(body), status, media_type="application/json")


async def _on_openk2_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, OpenK2Error)
    response = Response(dump_json(body_of(error)), error.http_status, media_type="application/json")
    if isinstance(error, OverloadedError):
        response.headers["retry-after"] = str(math.ceil(error.retry_after_s or RETRY_AFTER_SECONDS))
    if isinstance(error, TimeLimitError):
        # The official clients repeat every 5xx, and would take as long again.
        response.headers["x-should-retry"] = "false"
    return response


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message, code = f"Unknown address: {request.method} {request.url.path}.", "unknown_url"
    elif error.status_code == 405:
        message, code = f"{request.url.path} does not answer {request.method}.", "method_not_allowed"
    else:
        message, code = str(error.detail), None
    response = error_response(error.status_code, message, "invalid_request_error", code=code)
    response.headers.update(error.headers or {})
    return response


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(OpenK2Error, _on_openk2_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnected, _on_disconnect)


class BugResponses:
    """ASGI middleware: a mistake of ours is logged, and becomes a 500 that does not tell its details.

    It stands inside all others, which so treat this response as any: the framework's own handler would be around them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def noting_start(message: MutableMapping[str, Any]) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, noting_start)
        except Exception:
            if has_started:
                raise  # nothing can be told any more; the connection is cut
            logger.exception("a request failed", extra={"fields": {"request_id": scope["state"]["request_id"]}})
            response = error_response(500, "internal error; the server's log has the details", "internal_error")
            await response(scope, receive, send)
