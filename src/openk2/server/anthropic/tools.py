"""`tools` and `tool_choice` of the Anthropic wire format."""

from __future__ import annotations

import re

from openk2.chat.messages import ToolChoice, ToolSpec
from openk2.errors import RequestError, SchemaError
from openk2.server.fields import Fields, type_name, wrong_type, wrong_value
from openk2.server.json_schema import check_schema

_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")


def read_tools(fields: Fields) -> tuple[tuple[ToolSpec, ...], list[str]]:
    """The declarations in our form, and names for what was left out: tools that the provider itself would run.

    Raises RequestError or SchemaError (both 400) naming the field; RequestError as well when all of them are left out:
    an answer without the one tool that was asked for, such as a search, would be made up.
    """
    tools: list[ToolSpec] = []
    ignored: list[str] = []
    names: set[str] = set()
    for i, value in enumerate(fields.array("tools") or []):
        tool = Fields(value, fields.at(f"tools[{i}]"))
        kind = tool.string("type")
        if kind not in (None, "custom"):
            # web_search_20250305 and its like: the model knows neither their schemas nor is there anyone to run them.
            ignored.append(f"tools.{kind}")
            continue
        name = tool.required_string("name")
        if not _NAME.fullmatch(name):
            raise wrong_value(tool.at("name"), f"1 to 128 letters, digits, underscores or dashes, not {name!r}")
        if name in names:
            raise wrong_value(tool.at("name"), f"two tools are named {name!r}")
        names.add(name)
        tools.append(_read_tool(tool, name))
    if ignored and not tools:
        kinds = ", ".join(repr(name.removeprefix("tools.")) for name in ignored)
        raise RequestError(
            f"'{fields.at('tools')}' declares none that can be called here, only {kinds}: this server runs no tools of "
            "its own, and the model knows only tools that come with an 'input_schema'.",
            param=fields.at("tools"),
        )
    return tuple(tools), ignored


def _read_tool(tool: Fields, name: str) -> ToolSpec:
    path = tool.at("input_schema")
    schema = tool.require("input_schema")
    if not isinstance(schema, dict):
        raise wrong_type(path, "an object", schema)
    kind = schema.get("type")
    if kind != "object":
        found = (
            "it has none" if kind is None else f"not {kind!r}" if isinstance(kind, str) else f"not {type_name(kind)}"
        )
        raise SchemaError(f"Invalid schema for '{path}': the type of its root must be \"object\"; {found}.", param=path)
    check_schema(schema, path)
    description = tool.string("description")
    function = {"name": name, "parameters": schema}
    if description is not None:
        function["description"] = description
    return ToolSpec({"type": "function", "function": function})


def read_tool_choice(fields: Fields, tools: tuple[ToolSpec, ...]) -> ToolChoice:
    """Which calls the model may or must make. Raises RequestError for a choice that the tools do not allow."""
    choice = fields.mapping("tool_choice")
    if choice is None:
        return ToolChoice()
    kind = choice.required_string("type")
    parallel = not choice.boolean("disable_parallel_tool_use")
    match kind:
        case "auto":
            return ToolChoice(parallel=parallel)
        case "none":
            return ToolChoice("none")
        case "any":
            if not tools:
                raise RequestError(
                    f"'{choice.path}' requires a tool call, but 'tools' declares none that the client runs.",
                    param=choice.path,
                )
            return ToolChoice("required", parallel=parallel)
        case "tool":
            name = choice.required_string("name")
            if all(tool.name != name for tool in tools):
                raise wrong_value(choice.at("name"), f"'tools' declares no tool named {name!r} that the client runs")
            return ToolChoice("required", name, parallel)
    raise wrong_value(choice.at("type"), f"it must be auto, any, tool or none, not {kind!r}")
