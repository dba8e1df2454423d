"""Declarations of the agent's built-in tools: what the model is shown, in one place.

`openk2.agent.tools` implements them; the training data of k2-nano teaches them.
"""

from __future__ import annotations

from typing import Any

from openk2.chat.messages import ToolSpec


def _declare(name: str, description: str, properties: dict[str, Any], required: list[str]) -> ToolSpec:
    return ToolSpec.function(name, description, {"type": "object", "properties": properties, "required": required})


def _string(description: str) -> dict[str, str]:
    return {"type": "string", "description": description}


SEARCH_FILES = _declare(
    "search_files",
    "Search the files of the working folder for lines that contain a text.",
    {
        "pattern": _string("Text to look for"),
        "lang": _string("File extension to search in, such as py; leave out for all"),
    },
    ["pattern"],
)
READ_FILE = _declare(
    "read_file", "Read a text file of the working folder.", {"path": _string("Path of the file")}, ["path"]
)
LIST_FILES = _declare(
    "list_files",
    "List the files in a folder of the working folder.",
    {"path": _string("Folder to list; . is the working folder")},
    ["path"],
)
CALCULATE = _declare(
    "calculate",
    "Calculate the value of an arithmetic expression.",
    {"expression": _string("Expression such as 12 * (3 + 4)")},
    ["expression"],
)
CURRENT_TIME = _declare(
    "current_time",
    "Tell the current date and time.",
    {"timezone": _string("Time zone name such as UTC or Europe/Paris; leave out for local time")},
    [],
)

BUILTIN_TOOLS: tuple[ToolSpec, ...] = (SEARCH_FILES, READ_FILE, LIST_FILES, CALCULATE, CURRENT_TIME)
