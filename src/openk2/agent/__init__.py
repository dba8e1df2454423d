"""The agent: a loop on a ChatProvider that runs all tool calls of a turn at once. See docs/agent.md."""

from __future__ import annotations

from openk2.agent.declare import Tool, ToolError, tool
from openk2.agent.events import (
    AgentEvent,
    AgentResult,
    CallFinished,
    CallStarted,
    Stopped,
    StopReason,
    TurnStarted,
)
from openk2.agent.loop import Agent
from openk2.agent.tools import builtin_tools

__all__ = [
    "Agent",
    "AgentEvent",
    "AgentResult",
    "CallFinished",
    "CallStarted",
    "StopReason",
    "Stopped",
    "Tool",
    "ToolError",
    "TurnStarted",
    "builtin_tools",
    "tool",
]
