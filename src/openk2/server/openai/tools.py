"""`tools`, `tool_choice` and `parallel_tool_calls` of the OpenAI wire format."""

from __future__ import annotations

import re
from collections.abc import Collection

from openk2.chat.messages import ToolChoice, ToolChoiceMode, ToolSpec
from openk2.errors import RequestError
from openk2.server.fields import Fields, wrong_type, wrong_value
from openk2.server.json_schema import check_schema

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_MODES: dict[str, ToolChoiceMode] = {"auto": "auto", "none": "none", "required": "required", "any": "required"}


def read_tools(fields: Fields) -> tuple[ToolSpec, ...]:
    """The declarations, kept as they were sent. Raises RequestError or SchemaError (both 400) naming the field."""
    tools: list[ToolSpec] = []
    names: set[str] = set()
    for i, value in enumerate(fields.array("tools") or []):
        tool = Fields(value, fields.at(f"tools[{i}]"))
        kind = tool.required_string("type")
        if kind != "function":
            raise wrong_value(tool.at("type"), f"only function tools are supported, not {kind!r}")
        function = tool.required_object("function")
        name = function.required_string("name")
        check_tool_name(name, function.at("name"), names)
        names.add(name)
        function.string("description")
        function.boolean("strict")
        function.mapping("parameters")
        check_schema(function.get("parameters"), function.at("parameters"))
        tools.append(ToolSpec(value))
    return tuple(tools)


def check_tool_name(name: str, path: str, others: Collection[str]) -> None:
    """Raises RequestError for one that cannot stand in a call, or that another tool has."""
    if not _NAME.fullmatch(name):
        raise wrong_value(path, f"1 to 64 letters, digits, underscores, dots or dashes, not {name!r}")
    if name in others:
        raise wrong_value(path, f"two tools are named {name!r}")


def read_tool_choice(
    fields: Fields, tools: tuple[ToolSpec, ...], *, flat: bool = False
) -> tuple[tuple[ToolSpec, ...], ToolChoice]:
    """The tools that may be called, and whether they must be.

    `allowed_tools` narrows the declarations to those it names. `any` is `required`, as some clients write it.
    `flat`: in the form of the responses API, without the objects `function` and `allowed_tools` around their fields.
    """

    def inside(value: Fields, key: str) -> Fields:
        return value if flat else value.required_object(key)

    parallel = fields.boolean("parallel_tool_calls") is not False
    value = fields.get("tool_choice")
    path = fields.at("tool_choice")
    if value is None or isinstance(value, str):
        mode = read_mode(value or "auto", path, tools)
        return tools, ToolChoice(mode, parallel=parallel)
    if not isinstance(value, dict):
        raise wrong_type(path, "a string or an object", value)
    choice = Fields(value, path)
    match choice.required_string("type"):
        case "function":
            name = _read_declared(inside(choice, "function"), tools)
            return tools, ToolChoice("required", name, parallel)
        case "allowed_tools":
            allowed = inside(choice, "allowed_tools")
            names = set()
            for i, value in enumerate(allowed.array("tools") or []):
                entry = Fields(value, f"{allowed.at('tools')}[{i}]")
                if entry.required_string("type") == "function":  # others were left out of the declarations, too
                    names.add(_read_declared(inside(entry, "function"), tools))
            tools = tuple(tool for tool in tools if tool.name in names)
            mode = read_mode(allowed.string("mode") or "auto", allowed.at("mode"), tools)
            return tools, ToolChoice(mode, parallel=parallel)
        case kind:
            raise wrong_value(choice.at("type"), f"it must be 'function' or 'allowed_tools', not {kind!r}")


def read_mode(value: str, path: str, tools: tuple[ToolSpec, ...]) -> ToolChoiceMode:
    """Raises RequestError for an unknown mode, and where a call is required and no tool declared."""
    mode = _MODES.get(value)
    if mode is None:
        raise wrong_value(path, f"it must be 'auto', 'none', 'required' or an object that names a tool, not {value!r}")
    if mode == "required" and not tools:
        raise RequestError(f"'{path}' requires a tool call, but 'tools' declares none.", param=path)
    return mode


def _read_declared(function: Fields, tools: tuple[ToolSpec, ...]) -> str:
    """The name that an object gives. Raises RequestError for one that no tool has."""
    name = function.required_string("name")
    if all(tool.name != name for tool in tools):
        raise wrong_value(function.at("name"), f"'tools' declares no tool named {name!r}")
    return name
