"""`tools` and `tool_choice` of the responses API, whose function tools are flat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openk2.chat.messages import ToolChoice, ToolSpec
from openk2.server.fields import Fields, wrong_type, wrong_value
from openk2.server.json_schema import check_schema
from openk2.server.openai.tools import check_tool_name, read_mode, require_declared


@dataclass(frozen=True)
class DeclaredTools:
    specs: tuple[ToolSpec, ...]
    """In the form that the model was trained on, which has no `strict`: schemas hold in any case."""
    sent: tuple[dict[str, Any], ...]
    """The same tools as they were declared, for the response to repeat."""
    ignored: tuple[str, ...]
    """Of tools that the provider would run, and of free-form ones."""


def read_tools(fields: Fields) -> DeclaredTools:
    """Raises RequestError or SchemaError (both 400) naming the field."""
    specs: list[ToolSpec] = []
    sent: list[dict[str, Any]] = []
    ignored: list[str] = []
    for i, value in enumerate(fields.array("tools") or []):
        tool = Fields(value, fields.at(f"tools[{i}]"))
        kind = tool.required_string("type")
        if kind != "function":
            ignored.append(f"tools.{kind}")
            continue
        name = tool.required_string("name")
        check_tool_name(name, tool.at("name"), [spec.name for spec in specs])
        tool.string("description")
        strict = tool.boolean("strict")
        tool.mapping("parameters")
        check_schema(tool.get("parameters"), tool.at("parameters"))
        function = {key: value[key] for key in ("name", "description", "parameters") if value.get(key) is not None}
        specs.append(ToolSpec({"type": "function", "function": function}))
        sent.append({"parameters": None, **value, "strict": strict})
    return DeclaredTools(tuple(specs), tuple(sent), tuple(ignored))


def read_tool_choice(fields: Fields, tools: tuple[ToolSpec, ...]) -> tuple[tuple[ToolSpec, ...], ToolChoice]:
    """The tools that may be called, and whether they must be."""
    parallel = fields.boolean("parallel_tool_calls") is not False
    value = fields.get("tool_choice")
    path = fields.at("tool_choice")
    if value is None or isinstance(value, str):
        return tools, ToolChoice(read_mode(value or "auto", path, tools), parallel=parallel)
    if not isinstance(value, dict):
        raise wrong_type(path, "a string or an object", value)
    choice = Fields(value, path)
    kind = choice.required_string("type")
    if kind == "function":
        name = choice.required_string("name")
        require_declared(name, choice.at("name"), tools)
        return tools, ToolChoice("required", name, parallel)
    if kind == "allowed_tools":
        names = set()
        for i, entry in enumerate(choice.array("tools") or []):
            allowed = Fields(entry, f"{choice.at('tools')}[{i}]")
            if allowed.required_string("type") == "function":
                name = allowed.required_string("name")
                require_declared(name, allowed.at("name"), tools)
                names.add(name)
        tools = tuple(tool for tool in tools if tool.name in names)
        mode = read_mode(choice.string("mode") or "auto", choice.at("mode"), tools)
        return tools, ToolChoice(mode, parallel=parallel)
    raise wrong_value(choice.at("type"), f"it must be 'function' or 'allowed_tools', not {kind!r}")
