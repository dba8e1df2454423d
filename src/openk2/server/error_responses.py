"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`, whatever went wrong."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from openk2.errors import ContextLengthError, OpenK2Error
from openk2.server.sse import dump_json
from openk2.server.streams import ClientDisconnected

RETRY_AFTER_SECONDS = 2
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that went away; only logs see it."""


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
    if error.http_status == 503:
        response.headers["retry-after"] = str(RETRY_AFTER_SECONDS)
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


async def _on_bug(_: Request, __: Exception) -> Response:
    """uvicorn logs the traceback; the client learns that it is not to blame."""
    return error_response(500, "internal error; the server's log has the details", "internal_error")


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(OpenK2Error, _on_openk2_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnected, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)
