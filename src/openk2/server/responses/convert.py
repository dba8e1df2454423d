"""Items of the responses API turned into messages.

A call belongs to the assistant's message right before it, reasoning to the turn that goes on after it. What other
providers' own tools did (`web_search_call` ...) is left out and reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from openk2.chat.messages import Content, Message, Role, ToolCall
from openk2.server.fields import Fields, wrong_type, wrong_value
from openk2.server.responses.store import Item

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""Types of content parts, and the key of their text."""


def read_items(fields: Fields, find: Callable[[str], Item | None]) -> list[Item]:
    """The request's `input` as items: a string is a user's message, and `find` gives the item behind a reference.

    Raises RequestError naming the item.
    """
    value = fields.require("input")
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list):
        raise wrong_type(fields.at("input"), "a string or an array of items", value)
    items: list[Item] = []
    for i, entry in enumerate(value):
        item = Fields(entry, fields.at(f"input[{i}]"))
        if item.string("type") == "item_reference":
            id = item.required_string("id")
            found = find(id)
            if found is None:
                raise wrong_value(item.at("id"), f"no item with the id {id!r} is kept here; send the item itself")
            entry = found
        items.append(entry)
    return items


class Conversation:
    """Items added up to `messages`; `ignored` names what was left out."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.ignored: list[str] = []
        self._known_ids: set[str] = set()
        self._reasoning = ""
        """Of the turn that is to come."""

    def add(self, items: Sequence[Item], path: str) -> None:
        """Raises RequestError naming the item; an output must belong to an earlier call."""
        for i, value in enumerate(items):
            item = Fields(value, f"{path}[{i}]")
            kind = item.string("type") or "message"
            match kind:
                case "message":
                    self._add_message(item)
                case "function_call":
                    self._add_call(item)
                case "function_call_output":
                    self._add_output(item)
                case "reasoning":
                    self._reasoning += _reasoning_text(item)
                case _:
                    self.ignored.append(f"input.{kind}")

    def _add_message(self, item: Fields) -> None:
        name = item.required_string("role")
        if name not in _ROLES:
            raise wrong_value(item.at("role"), f"it must be one of {', '.join(_ROLES)}, not {name!r}")
        message = Message(_ROLES[name], _read_content(item, "content"))
        if message.role == "assistant" and self._reasoning:
            message = replace(message, reasoning=self._reasoning)
        self._reasoning = ""
        self.messages.append(message)

    def _add_call(self, item: Fields) -> None:
        arguments = item.string("arguments")
        call = ToolCall(item.required_string("call_id"), item.required_string("name"), arguments or "{}")
        self._known_ids.add(call.id)
        if not self.messages or self.messages[-1].role != "assistant":
            self.messages.append(Message("assistant"))
        turn = self.messages[-1]
        reasoning = (turn.reasoning or "") + self._reasoning or None
        self.messages[-1] = replace(turn, tool_calls=(*turn.tool_calls, call), reasoning=reasoning)
        self._reasoning = ""

    def _add_output(self, item: Fields) -> None:
        call_id = item.required_string("call_id")
        if call_id not in self._known_ids:
            raise wrong_value(item.at("call_id"), f"no earlier function call has the id {call_id!r}")
        self.messages.append(Message("tool", _read_content(item, "output"), tool_call_id=call_id))


def _read_content(item: Fields, key: str) -> Content:
    value = item.require(key)
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong_type(item.at(key), "a string or an array of content parts", value)
    return [_read_part(Fields(part, f"{item.at(key)}[{i}]")) for i, part in enumerate(value)]


def _read_part(part: Fields) -> dict[str, Any]:
    kind = part.required_string("type")
    if kind not in _TEXT_PARTS:
        raise wrong_value(part.at("type"), f"this model reads text only, so it must be 'input_text', not {kind!r}")
    part.require(_TEXT_PARTS[kind])
    return {"type": "text", "text": part.string(_TEXT_PARTS[kind])}


def _reasoning_text(item: Fields) -> str:
    """The text that was thought, else the summary that another provider gave of it."""
    for key in ("content", "summary"):
        parts = item.get(key)
        texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        if said := "".join(text for text in texts if isinstance(text, str)):
            return said
    return ""
