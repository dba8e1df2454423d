"""The description of the HTTP API in OpenAPI 3.1, for client generators, proxies and test tools: `GET /openapi.json`.

It says what a request may hold, field by field, as docs/server.md does in words. Fields that are not named here are
ignored. An answer is described by what clients rely on, not down to every field.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.responses import Response

from openk2 import __version__
from openk2.server.openapi_schemas import SCHEMAS, STRING, Schema, ref
from openk2.server.sse import dump_json


def _content(schema: Schema, media_type: str = "application/json") -> Schema:
    return {media_type: {"schema": schema}}


def _operation(summary: str, answer: Schema, error: str = "Error", *, parameters: Sequence[Schema] = ()) -> Schema:
    return {
        "summary": summary,
        "parameters": list(parameters),
        "responses": {
            "200": {"description": "the answer", "content": answer},
            "default": {"description": "why there is none", "content": _content(ref(error))},
        },
    }


def _post(summary: str, body: str, answer: str, *, streams: bool = False, error: str = "Error") -> Schema:
    content = _content(ref(answer)) | (_content({}, "text/event-stream") if streams else {})
    request = {"required": True, "content": _content(ref(body))}
    return {"post": {**_operation(summary, content, error), "requestBody": request}}


def _get(summary: str, answer: str, *, parameters: Sequence[Schema] = ()) -> Schema:
    return {"get": _operation(summary, _content(ref(answer)), parameters=parameters)}


def _status(summary: str) -> Schema:
    operation = _operation(summary, _content(ref("Status")))
    operation["responses"]["503"] = {"description": "not now", "content": _content(ref("Status"))}
    return {"get": operation}


def _in_path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def openapi_document() -> Schema:
    """The whole description, with the paths that every server has."""
    response_id, model = _in_path("response_id"), _in_path("name")
    deletion = _operation("Forget a response", _content(ref("Deleted")), parameters=[response_id])
    paths = {
        "/v1/chat/completions": _post("Answer a chat", "ChatCompletionRequest", "ChatCompletion", streams=True),
        "/v1/completions": _post("Continue a text", "CompletionRequest", "Completion", streams=True),
        "/v1/responses": _post("Answer, and keep the conversation", "ResponseRequest", "ResponseObject", streams=True),
        "/v1/responses/{response_id}": _get("A kept response", "ResponseObject", parameters=[response_id])
        | {"delete": deletion},
        "/v1/messages": _post(
            "Answer a chat, Anthropic's API",
            "MessagesRequest",
            "AnthropicMessage",
            streams=True,
            error="AnthropicError",
        ),
        "/v1/messages/count_tokens": _post(
            "Tokens of such a prompt", "CountTokensRequest", "TokenCount", error="AnthropicError"
        ),
        "/v1/models": _get("The loaded model and the names it answers to", "Models"),
        "/v1/models/{name}": _get("One of them", "Model", parameters=[model]),
        "/tokenize": _post("Text or messages to token ids", "TokenizeRequest", "Tokens"),
        "/detokenize": _post("Token ids to text", "DetokenizeRequest", "Text"),
        "/health": _status("Whether the model is there"),
        "/ready": _status("Whether a request would be answered"),
        "/version": _get("The version of openk2", "Version"),
        "/metrics": {"get": _operation("For Prometheus", _content(STRING, "text/plain"))},
    }
    keys = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "openk2", "version": __version__},
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": keys},
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def build_router() -> APIRouter:
    router = APIRouter()

    @router.get("/openapi.json")
    async def openapi_json() -> Response:
        return Response(dump_json(openapi_document()), media_type="application/json")

    return router
