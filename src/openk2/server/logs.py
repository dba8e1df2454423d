"""What the server writes to its log: one line an event, for people or as JSON for programs."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from openk2.errors import ConfigError


def configure_logging(log_format: str) -> None:
    """Everything that is logged in this process goes to stderr in this form: our lines, and warnings of libraries.

    Raises ConfigError for a form that is neither `text` nor `json`.
    """
    formatters = {"text": TextLines, "json": JsonLines}
    if log_format not in formatters:
        raise ConfigError(f"--log-format is text or json, not {log_format!r}", param="log_format")
    handler = logging.StreamHandler()
    handler.setFormatter(formatters[log_format]())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("openk2").setLevel(logging.INFO)


class JsonLines(logging.Formatter):
    """One object a line: `time`, `level`, `event`, then the fields that were given as `extra={"fields": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """The same as `NAME=VALUE`; values that would break the line are quoted as in JSON."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        line = " ".join(
            [
                _utc(record),
                record.levelname.lower(),
                record.getMessage(),
                *(f"{name}={_plain(value)}" for name, value in fields.items()),
            ]
        )
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _utc(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _plain(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and not set(' "=').intersection(text) else json.dumps(text)
