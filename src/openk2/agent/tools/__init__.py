"""The agent's built-in tools: they read, never write, and see only the working folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from openk2.agent.declare import Tool
from openk2.agent.tools.arithmetic import calculate
from openk2.agent.tools.clock import current_time
from openk2.agent.tools.files import list_files, read_file, search_files
from openk2.agent.tools.workspace import Workspace
from openk2.chat.builtin_tools import CALCULATE, CURRENT_TIME, LIST_FILES, READ_FILE, SEARCH_FILES


def builtin_tools(folder: str | Path = ".") -> tuple[Tool, ...]:
    """The tools declared in `openk2.chat.builtin_tools`, confined to `folder`.

    Raises EnvironmentFault when there is no such folder.
    """
    workspace = Workspace(folder)
    return (
        Tool(SEARCH_FILES, partial(search_files, workspace)),
        Tool(READ_FILE, partial(read_file, workspace)),
        Tool(LIST_FILES, partial(list_files, workspace)),
        Tool(CALCULATE, calculate),
        Tool(CURRENT_TIME, current_time),
    )
