"""Messages of the OpenAI wire format turned into ours.

`developer` is `system`; an assistant turn's `reasoning_content` is shown where the model's template has a place for it;
whatever else a turn brings back is dropped; content parts keep their boundaries.
"""

from __future__ import annotations

import json
from typing import Any

from openk2.chat.messages import Content, Message, Role, ToolCall
from openk2.errors import RequestError
from openk2.server.fields import Fields, wrong_type, wrong_value
from openk2.server.volatile import without_billing_lines

_ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
}  # fmt: skip


def read_messages(fields: Fields) -> tuple[Message, ...]:
    """Raises RequestError naming the message and field; a tool result must belong to an earlier call."""
    fields.require("messages")
    values = fields.array("messages") or []
    if not values:
        raise wrong_value(fields.at("messages"), "it must hold at least one message")
    known_ids: set[str] = set()
    messages: list[Message] = []
    for i, value in enumerate(values):
        message = _read_message(Fields(value, fields.at(f"messages[{i}]")))
        if message.role == "tool" and message.tool_call_id not in known_ids:
            path = fields.at(f"messages[{i}].tool_call_id")
            raise wrong_value(path, f"no earlier tool call has the id {message.tool_call_id!r}")
        known_ids.update(call.id for call in message.tool_calls)
        messages.append(message)
    return without_billing_lines(messages)


def read_template_variables(fields: Fields) -> dict[str, Any]:
    """`chat_template_kwargs`, as engines for open models call them. What they mean is the template's affair."""
    fields.mapping("chat_template_kwargs")
    variables: dict[str, Any] = fields.get("chat_template_kwargs") or {}
    return variables


def _read_message(fields: Fields) -> Message:
    role_name = fields.required_string("role")
    role = _ROLES.get(role_name)
    if role is None:
        known = ", ".join(_ROLES)
        raise wrong_value(fields.at("role"), f"it must be one of {known}, not {role_name!r}")
    content = _read_content(fields)
    if content is None and role in ("system", "user"):  # OpenAI's types let it be null on an assistant's turn only
        raise RequestError(f"Missing required parameter: '{fields.at('content')}'.", param=fields.at("content"))
    name = fields.string("name")
    if role == "tool":
        return Message(role, content, name, tool_call_id=fields.required_string("tool_call_id"))
    if role != "assistant":
        return Message(role, content, name)
    partial = fields.boolean("partial") or False
    fields.reject("function_call", "is OpenAI's retired form and is not supported; use 'tool_calls'")
    calls = fields.array("tool_calls") or []
    path = fields.at("tool_calls")
    read = tuple(_read_call(Fields(call, f"{path}[{i}]")) for i, call in enumerate(calls))
    if content is None:
        content = fields.string("refusal")
    return Message(role, content, name, read, partial=partial, reasoning=_read_reasoning(fields))


def _read_reasoning(fields: Fields) -> str | None:
    """What the turn thought, under either of the names that servers give it. What is no text is left out."""
    given = (fields.get("reasoning_content"), fields.get("reasoning"))
    return next((value for value in given if value and isinstance(value, str)), None)


def _read_content(fields: Fields) -> Content:
    value = fields.get("content")
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong_type(fields.at("content"), "a string or an array of content parts", value)
    return [_read_part(Fields(part, f"{fields.at('content')}[{i}]")) for i, part in enumerate(value)]


def _read_part(fields: Fields) -> dict[str, Any]:
    kind = fields.required_string("type")
    if kind not in ("text", "refusal"):
        raise wrong_value(fields.at("type"), f"this model reads text only, so it must be 'text', not {kind!r}")
    fields.require(kind)
    return {"type": "text", "text": fields.string(kind)}


def _read_call(fields: Fields) -> ToolCall:
    kind = fields.string("type")
    if kind not in (None, "function"):
        raise wrong_value(fields.at("type"), f"only function tools are supported, not {kind!r}")
    function = fields.required_object("function")
    arguments = function.get("arguments")
    if arguments is None:
        arguments = "{}"
    elif isinstance(arguments, dict):  # some clients decode them; the template's spelling is json.dumps' default
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not isinstance(arguments, str):
        raise wrong_type(function.at("arguments"), "a string of JSON", arguments)
    return ToolCall(fields.required_string("id"), function.required_string("name"), arguments)
