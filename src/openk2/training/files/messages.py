"""A line of a fine-tuning file, OpenAI-style, as a conversation: `{"messages": [...], "tools": [...]}`, checked.

What the server lets pass in a request is refused here where a model would learn it: a call of no declared tool,
arguments that the tool's schema forbids, a schema that is none, a conversation in which the assistant says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from openk2.chat.ids import canonicalize
from openk2.chat.messages import Message, Role, ToolCall, ToolSpec
from openk2.chat.validity import broken_schema
from openk2.errors import DataError, RequestError
from openk2.evals.verify.reply import Call
from openk2.evals.verify.validity import call_faults
from openk2.training.data import Conversation

KIND = "messages"
"""The kind of conversations from files."""
ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def read_conversation(value: Any) -> Conversation:
    """Of a line's JSON value; keys other than `messages` and `tools` are ignored. Call ids become canonical ones.

    Raises DataError that says what is wrong, and in which message.
    """
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list) or not value["messages"]:
        raise DataError("not a conversation: a line is an object with a list 'messages'")
    declared = value.get("tools") or []
    tools = tuple(_read_tool(tool, f"tools[{i}]") for i, tool in enumerate(_list(declared, "tools")))
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"tools: {name!r} is declared twice")
    messages = tuple(_read_message(message, f"messages[{i}]") for i, message in enumerate(value["messages"]))
    for at, message in enumerate(messages):
        faults = call_faults([Call(c.id, c.name, c.arguments) for c in message.tool_calls], declared)
        if faults:
            raise DataError(f"messages[{at}]: {faults[0].detail}")
    if not any(m.role == "assistant" for m in messages):
        raise DataError("no message is the assistant's: there is nothing to learn")
    try:
        return Conversation(KIND, tools, canonicalize(messages))
    except RequestError as error:
        raise DataError(str(error)) from None


def conversation_content(conversation: Conversation) -> bytes:
    """The bytes that make two conversations equal: what is said and called, not under which ids."""
    parts = [[m.role, m.text, [[c.name, c.arguments] for c in m.tool_calls]] for m in conversation.messages]
    return json.dumps([parts, [dict(t.declaration) for t in conversation.tools]], sort_keys=True).encode()


def _list(value: Any, path: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise DataError(f"{path} is no list")
    return value


def _read_tool(value: Any, path: str) -> ToolSpec:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f'{path} is no tool: {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}')
    reason = broken_schema(function.get("parameters", {}))
    if reason is not None:
        raise DataError(f"{path}: the parameters of {function['name']!r} are no JSON schema: {reason}")
    return ToolSpec(value)


def _read_message(value: Any, path: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{path} is no object")
    role = ROLES.get(str(value.get("role")))
    if role is None:
        raise DataError(f"{path}: role must be one of {', '.join(ROLES)}, not {value.get('role')!r}")
    content = _read_content(value.get("content"), path)
    calls = tuple(_read_call(call, path) for call in _list(value.get("tool_calls") or [], f"{path}.tool_calls"))
    if calls and role != "assistant":
        raise DataError(f"{path}: only the assistant calls tools, not role {role!r}")
    if content is None and not (calls or role == "tool"):
        lacks = "content or tool_calls" if role == "assistant" else "content"
        raise DataError(f"{path}: a message of role {role!r} without {lacks}")
    reasoning = value.get("reasoning_content")
    return Message(
        role,
        content,
        name=value["name"] if isinstance(value.get("name"), str) else None,
        tool_calls=calls,
        tool_call_id=value["tool_call_id"] if role == "tool" and isinstance(value.get("tool_call_id"), str) else None,
        reasoning=reasoning if isinstance(reasoning, str) and role == "assistant" else None,
    )


def _read_content(value: Any, path: str) -> str | list[dict[str, str]] | None:
    if value is None or isinstance(value, str):
        return value
    parts = _list(value, f"{path}.content")
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise DataError(f"{path}: content must be a string or a list of text parts")
    return [{"type": "text", "text": part["text"]} for part in parts]


def _read_call(value: Any, path: str) -> ToolCall:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f'{path}: a tool call is {{"id": ..., "function": {{"name": ..., "arguments": ...}}}}')
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str):  # written out: the spelling that the model is to use
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(str(value.get("id") or ""), function["name"], arguments)
