"""Canonical ids of tool calls: `functions.NAME:INDEX`, the index counting over the whole conversation from 0.

In a K2 prompt the id is the only carrier of the called name, and foreign or repeated ids make the model stop calling
tools, so histories are rewritten before they are rendered (facts: the model's own API does the same). Clients keep
whatever ids they like.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from openk2.chat.messages import Message
from openk2.errors import RequestError

_HEADER = re.compile(r"(?:functions\.)?(?P<name>.+):(?P<index>\d+)", re.DOTALL)


def call_id(name: str, index: int) -> str:
    return f"functions.{name}:{index}"


def parse_call_id(text: str) -> tuple[str, int] | None:
    """(name, index) of a call id; the prefix is optional and the name ends at the last colon. None: not one."""
    match = _HEADER.fullmatch(text.strip())
    return (match["name"], int(match["index"])) if match else None


def count_calls(messages: Sequence[Message]) -> int:
    """How many tool calls the conversation has so far: the index of the next one."""
    return sum(len(message.tool_calls) for message in messages)


def canonicalize(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Rewrite the ids of all calls, and of the results paired with them, to their canonical form.

    A result belongs to the latest earlier call with its `tool_call_id`; results that share the id of several calls of
    one turn are paired in order. Raises RequestError, naming the message, for a result of no call.
    """
    canonical: list[Message] = []
    pending: dict[str, list[str]] = {}
    index = 0
    for position, message in enumerate(messages):
        if message.tool_calls:
            turn: dict[str, list[str]] = {}
            calls = []
            for call in message.tool_calls:
                new_id = call_id(call.name, index)
                turn.setdefault(call.id, []).append(new_id)
                calls.append(replace(call, id=new_id))
                index += 1
            pending.update(turn)
            message = replace(message, tool_calls=tuple(calls))
        elif message.role == "tool":
            message = replace(message, tool_call_id=_paired(message.tool_call_id, pending, position))
        canonical.append(message)
    return tuple(canonical)


def _paired(tool_call_id: str | None, pending: dict[str, list[str]], position: int) -> str:
    field = f"messages[{position}].tool_call_id"
    if tool_call_id is None:
        raise RequestError(f"{field} is missing: a tool result must name the call that it answers.", param=field)
    if tool_call_id not in pending:
        raise RequestError(f"{field} {tool_call_id!r} answers no earlier tool call.", param=field)
    candidates = pending[tool_call_id]
    return candidates.pop(0) if len(candidates) > 1 else candidates[0]
