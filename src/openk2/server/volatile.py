"""What clients put before a prompt that differs in every request, and so keeps all that follows from being cached.

Only what is known to say nothing to a model is left out; `--explain-cache-misses` finds the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from openk2.chat.messages import Message

BILLING_LINE = "x-anthropic-billing-header:"
"""With this begins a line that Claude Code puts before its system prompt, and that proxies pass on to APIs such as
OpenAI's. Its digest of the request (`cch=`) changes each time."""


def without_billing_line(text: str) -> str:
    """The text of a system prompt without that line at its start."""
    return text.partition("\n")[2] if text.startswith(BILLING_LINE) else text


def without_billing_lines(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation without that line in its system messages, and without those that hold nothing else."""
    return tuple(kept for message in messages if (kept := _without_billing_line(message)) is not None)


def _without_billing_line(message: Message) -> Message | None:
    if message.role != "system" or not message.content or BILLING_LINE not in message.text:
        return message
    if isinstance(message.content, str):
        text = without_billing_line(message.content)
        return replace(message, content=text) if text else None
    parts = [dict(part) for part in message.content]
    for part in parts:
        if part.get("type") == "text":
            part["text"] = without_billing_line(part["text"])
    parts = [part for part in parts if part.get("text") != ""]
    return replace(message, content=parts) if parts else None
