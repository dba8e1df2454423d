"""The system prompt and messages of the Anthropic wire format turned into ours.

Text blocks keep their boundaries. A user turn's tool results become tool messages of their own, before its text.
Thinking is shown where the model's template has a place for it.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from openk2.chat.messages import Content, Message, ToolCall
from openk2.errors import RequestError
from openk2.server.fields import Fields, wrong_type, wrong_value
from openk2.server.volatile import without_billing_line, without_billing_lines

_TextPart = dict[str, Any]


class ConversationReader:
    """Reads one request's `system` and `messages`; `ignored` then names what was left out."""

    def __init__(self) -> None:
        self.ignored: list[str] = []
        self._known_ids: set[str] = set()

    def read(self, fields: Fields) -> tuple[Message, ...]:
        """Raises RequestError naming the message and block; a tool result must belong to an earlier call."""
        fields.require("messages")
        values = fields.array("messages") or []
        if not values:
            raise wrong_value(fields.at("messages"), "it must hold at least one message")
        messages = self._read_system(fields)
        for i, value in enumerate(values):
            messages += self._read_message(Fields(value, fields.at(f"messages[{i}]")))
        return without_billing_lines(messages)

    def _read_system(self, fields: Fields) -> list[Message]:
        value = fields.get("system")
        if value is None:
            return []
        if isinstance(value, str):
            text = self._without_billing_line(value)
            return [Message("system", text)] if text else []
        parts = [part | {"text": self._without_billing_line(part["text"])} for part in _text_parts(fields, "system")]
        parts = [part for part in parts if part["text"]]
        return [Message("system", parts)] if parts else []

    def _without_billing_line(self, text: str) -> str:
        kept = without_billing_line(text)
        if kept != text:
            self.ignored.append("system.x-anthropic-billing-header")
        return kept

    def _read_message(self, fields: Fields) -> list[Message]:
        role = fields.required_string("role")
        content = fields.require("content")
        if role == "user":
            return [Message("user", content)] if isinstance(content, str) else self._read_user_blocks(fields)
        if role == "assistant":
            return [Message("assistant", content) if isinstance(content, str) else self._read_assistant_blocks(fields)]
        if role == "system":  # Claude Code sends instructions in the middle of a conversation
            return [Message("system", content if isinstance(content, str) else _text_parts(fields, "content"))]
        raise wrong_value(fields.at("role"), f"it must be user, assistant or system, not {role!r}")

    def _read_user_blocks(self, fields: Fields) -> list[Message]:
        results: list[Message] = []
        parts: list[_TextPart] = []
        for block in _blocks(fields, "content"):
            if block.required_string("type") == "tool_result":
                results.append(self._read_result(block))
            else:
                parts.append(_text_part(block))
        return [*results, Message("user", parts)] if parts or not results else results

    def _read_result(self, block: Fields) -> Message:
        call_id = block.required_string("tool_use_id")
        if call_id not in self._known_ids:
            raise wrong_value(block.at("tool_use_id"), f"no earlier tool_use block has the id {call_id!r}")
        value = block.get("content")
        content: Content = value if value is None or isinstance(value, str) else _text_parts(block, "content")
        message = Message("tool", content, tool_call_id=call_id)
        return _marked_as_error(message) if block.boolean("is_error") else message

    def _read_assistant_blocks(self, fields: Fields) -> Message:
        parts: list[_TextPart] = []
        calls: list[ToolCall] = []
        thinking = ""
        for block in _blocks(fields, "content"):
            kind = block.required_string("type")
            if kind == "text":
                parts.append(_text_part(block))
            elif kind == "tool_use":
                calls.append(self._read_call(block))
            elif kind == "thinking":
                thinking += block.string("thinking") or ""
            elif kind != "redacted_thinking":  # what only its provider can read
                # What another server did for another model, such as a web search: no part of this model's format.
                self.ignored.append(f"messages.{kind}")
        return Message("assistant", parts or None, tool_calls=tuple(calls), reasoning=thinking or None)

    def _read_call(self, block: Fields) -> ToolCall:
        arguments = block.get("input")
        if arguments is not None and not isinstance(arguments, dict):
            raise wrong_type(block.at("input"), "an object", arguments)
        id, name = block.required_string("id"), block.required_string("name")
        self._known_ids.add(id)
        # The spacing is json.dumps' default, in which the model writes arguments and reads them back.
        return ToolCall(id, name, json.dumps(arguments or {}, ensure_ascii=False))


def _blocks(fields: Fields, key: str) -> list[Fields]:
    value = fields.get(key)
    if not isinstance(value, list):
        raise wrong_type(fields.at(key), "a string or an array of content blocks", value)
    return [Fields(block, f"{fields.at(key)}[{i}]") for i, block in enumerate(value)]


def _text_parts(fields: Fields, key: str) -> list[_TextPart]:
    return [_text_part(block) for block in _blocks(fields, key)]


def _text_part(block: Fields) -> _TextPart:
    kind = block.required_string("type")
    if kind != "text":
        _refuse(block, kind)
    block.require("text")
    return {"type": "text", "text": block.string("text")}


def _refuse(block: Fields, kind: str) -> NoReturn:
    raise RequestError(
        f"Invalid value for '{block.at('type')}': this model reads text only and cannot be shown a block of type "
        f"{kind!r}; leave the block out or send its content as text.",
        param=block.at("type"),
    )


def _marked_as_error(message: Message) -> Message:
    """The format has no place for `is_error`: the text says it, unless it does so already."""
    if message.text.lstrip().lower().startswith("error"):
        return message
    text = f"error: {message.text}" if message.text else "error"
    return Message(message.role, text, tool_call_id=message.tool_call_id)
