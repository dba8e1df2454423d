"""What a run tells while it goes on, and what it leaves behind.

A run is: for each turn `TurnStarted`, `TextDelta`*, then when the model calls tools all its `CallStarted` and, in the
order in which they end, all its `CallFinished`; at the end one `Stopped`. Times are `time.monotonic()` in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from openk2.chat.events import TextDelta
from openk2.chat.messages import Message, ToolCall, Usage

StopReason = Literal["finished", "max_turns", "repeated_calls", "empty_turn", "length", "context_length", "error"]
"""finished: the model answered without a call. repeated_calls: it asked again for what it had been told.
empty_turn: neither text nor calls. length: the answer was cut by the token limit. context_length: the conversation
no longer fits the model's window. error: the provider failed or refused."""


@dataclass(frozen=True)
class TurnStarted:
    turn: int
    """Counts from 1."""
    started_s: float


@dataclass(frozen=True)
class CallStarted:
    turn: int
    index: int
    """Position among the turn's calls."""
    call: ToolCall
    started_s: float
    """When the turn's calls were handed over for execution, all together."""


@dataclass(frozen=True)
class CallFinished:
    turn: int
    index: int
    call: ToolCall
    result: str
    """What the model is told; an error is one line that starts with `error: `."""
    is_error: bool
    started_s: float
    finished_s: float

    @property
    def duration_s(self) -> float:
        return self.finished_s - self.started_s


@dataclass(frozen=True)
class AgentResult:
    """The whole run."""

    text: str
    """The model's last text; with reason `finished` it is the answer."""
    reason: StopReason
    detail: str
    """One line for a person: why it stopped."""
    turns: int
    calls: tuple[CallFinished, ...]
    messages: tuple[Message, ...]
    """The conversation, every call with its result: give it as `history` to go on."""
    usage: Usage = field(default_factory=Usage)
    """Summed over the turns."""

    @property
    def finished(self) -> bool:
        return self.reason == "finished"


@dataclass(frozen=True)
class Stopped:
    result: AgentResult


AgentEvent = TurnStarted | TextDelta | CallStarted | CallFinished | Stopped
