"""Request lines: JSON lines of whole chat-completions bodies, as the vendor verifier reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openk2.errors import DataError


@dataclass(frozen=True)
class Overrides:
    """What a run changes in every line."""

    model: str
    temperature: float | None = None
    max_tokens: int | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the body, for what only this endpoint knows."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Raises DataError naming the first line that is no request."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", param=str(path)) from error
    lines = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})", param=str(path)) from error
        messages = line.get("messages") if isinstance(line, dict) else None
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise DataError(f"{path}, line {number}: not a chat-completions body with messages", param=str(path))
        lines.append(line)
    if not lines:
        raise DataError(f"{path} holds no request lines", param=str(path))
    return lines


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Raises DataError when the file cannot be written."""
    try:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}", param=str(path)) from error


def prepare(line: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """The body that is sent: the run's model, the role `_input` as `system`, usage asked of every stream."""
    body = dict(line)
    body["messages"] = [
        {**message, "role": "system"} if message.get("role") == "_input" else message for message in line["messages"]
    ]
    body["model"] = overrides.model
    if overrides.temperature is not None:
        body["temperature"] = overrides.temperature
    if overrides.max_tokens is not None:
        body["max_tokens"] = overrides.max_tokens
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}
    return body


def fingerprint(body: Mapping[str, Any]) -> str:
    """The verifier's hash: md5 over the prepared request with sorted keys. It names a request and protects nothing."""
    text = json.dumps(body, sort_keys=True, ensure_ascii=False)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
