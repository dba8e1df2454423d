"""The request's body as JSON: bounded, and nothing that is not JSON."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any

from fastapi import Request

from openk2.errors import RequestError
from openk2.server.streams import ClientDisconnected

MAX_DEPTH = 128
"""Levels of arrays and objects. What reads a body may call itself for each."""

BODY_SECONDS = 120.0

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


class BodyTooLargeError(RequestError):
    http_status = 413


class BodyTooSlowError(RequestError):
    http_status = 408


async def read_json(request: Request, max_bytes: int, seconds: float = BODY_SECONDS) -> Any:
    """Raises RequestError: 413 for a body above `max_bytes`, 408 for one that takes longer than `seconds` to arrive,
    400 for one that is not JSON."""
    try:
        async with asyncio.timeout(seconds):
            data = await _read(request, max_bytes)
    except TimeoutError:
        raise BodyTooSlowError(f"The request body did not arrive within {seconds:g} seconds.") from None
    try:
        value = json.loads(data, parse_constant=_refuse_constant, parse_float=_finite)
        if _is_deeper(value, MAX_DEPTH):
            raise RecursionError
        # Half an emoji, as programs cut strings, is valid JSON but no text: it has no UTF-8 form.
        return _without_lone_surrogates(value) if _SURROGATE_ESCAPE.search(data) else value
    except RecursionError:
        raise RequestError("The body's JSON is nested too deeply.") from None
    except ValueError as error:  # JSONDecodeError, or bytes that are not UTF-8
        raise RequestError(f"The body is not valid JSON: {error}.") from None


async def _read(request: Request, max_bytes: int) -> bytes:
    too_large = BodyTooLargeError(f"The request body is larger than {max_bytes} bytes.")
    if int(request.headers.get("content-length") or 0) > max_bytes:
        raise too_large  # before any of it has been sent
    data = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        data += message.get("body", b"")
        if len(data) > max_bytes:
            raise too_large
        if not message.get("more_body", False):
            return bytes(data)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large for a number")
    return number


def _is_deeper(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels + 1):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return False
    return True


def _without_lone_surrogates(value: Any) -> Any:
    """U+FFFD in place of each lone surrogate, in every string and key."""
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list():
            return [_without_lone_surrogates(item) for item in value]
        case dict():
            return {_without_lone_surrogates(key): _without_lone_surrogates(item) for key, item in value.items()}
        case _:
            return value
