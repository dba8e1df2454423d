"""What an endpoint answers when it does not answer: HTTP statuses and error objects as our errors."""

from __future__ import annotations

import json
import re
from typing import Any

from openk2.errors import (
    ContextLengthError,
    ModelNotFoundError,
    OpenK2Error,
    OverloadedError,
    ProviderError,
    RequestError,
)

_OVERFLOW = re.compile(r"context.{0,10}(length|window|size)|prompt is too long|too many (input )?tokens", re.IGNORECASE)
_LIMIT = re.compile(r"(?:length|window|size|limit)\D{0,30}?(\d{3,})|> *(\d+) *maximum", re.IGNORECASE)
_PROMPT = re.compile(r"(?:prompt|messages|input|requested|resulted in)\D{0,60}?(\d+)", re.IGNORECASE)
_MESSAGE_CHARS = 500


class EndpointError(RequestError):
    """The endpoint serves nobody as it is set up here: it is not the one that was meant, or refuses the key."""


class RefusedKeyError(EndpointError):
    http_status = 403
    error_type = "permission_error"


class NoEndpointError(EndpointError):
    http_status = 404


class UnreachableError(ProviderError):
    """Nobody listens there, or the connection broke."""


class RateLimitedError(OverloadedError):
    http_status = 429
    error_type = "rate_limit_error"
    code = "rate_limit_exceeded"


class SilenceError(OverloadedError):
    """The endpoint has taken the request and says nothing."""

    http_status = 504
    error_type = "timeout_error"


def error_for(status: int, body: str, *, url: str, key_source: str = "OPENAI_API_KEY") -> OpenK2Error:
    """The error for an HTTP answer that is no completion. `key_source`: where a person finds the key that was sent."""
    message, code = read_error(body)
    said = f"{url} answered {status}: {message}" if message else f"{url} answered {status}"
    if status in (401, 403):
        return RefusedKeyError(f"{said} (is the API key right? it is read from {key_source})", param="api_key")
    if status == 404 and (code == "model_not_found" or "model" in message.lower()):
        return ModelNotFoundError(said, param="model")
    if status == 404:
        return NoEndpointError(f"{said} (is this the base URL of an OpenAI-compatible endpoint?)", param="base_url")
    if status == 429:
        return RateLimitedError(said)
    if status in (503, 529):
        return OverloadedError(said)
    if status >= 500:
        return ProviderError(said)
    return _refusal(said, message, code)


def stream_error(error: Any) -> OpenK2Error:
    """The error for an error object in the middle of a stream."""
    message, code = read_error(json.dumps({"error": error}))
    said = f"the endpoint broke off its answer: {message or 'it gave no reason'}"
    if code == "overloaded_error":
        return OverloadedError(said)
    if code in ("rate_limit_error", "rate_limit_exceeded", "429"):
        return RateLimitedError(said)
    return _refusal(said, message, code) if code == "context_length_exceeded" else ProviderError(said)


def read_error(body: str) -> tuple[str, str]:
    """(message, code) of an error body in one of the shapes in use; ("", "") where there is nothing to read."""
    try:
        found: Any = json.loads(body)
    except ValueError:
        # Not JSON: perhaps plain text; a proxy's HTML page tells a person nothing.
        return ("" if "<" in body else _short(body)), ""
    if isinstance(found, list) and found:  # Google's endpoint wraps its error in a list
        found = found[0]
    if isinstance(found, dict):
        found = found.get("error", found)
    if not isinstance(found, dict):
        return _short(str(found)), ""
    message = found.get("message") or found.get("detail") or ""
    code = found.get("code") or found.get("type") or ""
    return _short(message if isinstance(message, str) else json.dumps(message)), str(code)


def _refusal(said: str, message: str, code: str) -> OpenK2Error:
    if code != "context_length_exceeded" and not _OVERFLOW.search(message):
        return RequestError(said)
    limit, prompt = _LIMIT.search(message), _PROMPT.search(message)
    if limit and prompt:
        return ContextLengthError(prompt_tokens=int(prompt[1]), max_model_len=int(limit[1] or limit[2]))
    error = RequestError(said, param="messages")
    error.code = ContextLengthError.code
    return error


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MESSAGE_CHARS else text[:_MESSAGE_CHARS] + "..."
