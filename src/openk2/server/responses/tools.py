"""`tools` of the responses API, whose function tools are flat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openk2.chat.messages import ToolSpec
from openk2.server.fields import Fields
from openk2.server.json_schema import check_schema
from openk2.server.openai.tools import check_tool_name


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
