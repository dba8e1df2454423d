"""A conversation being written: its turns, its call ids, and what tools return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openk2.chat.messages import Message, ToolCall, ToolSpec
from openk2.training.data.builtin import builtin_result
from openk2.training.data.dice import Dice
from openk2.training.data.frames import Tool
from openk2.training.data.lexicon import Lexicon
from openk2.training.data.requests import Request, dump
from openk2.training.data.value import listed
from openk2.training.data.values import Values

NO_TOOL = "Sorry, I have no tool for that."


@dataclass(frozen=True)
class Conversation:
    """One training example."""

    kind: str
    """What its first turn teaches, such as `single` or `chain`; see `stream.KINDS`."""
    tools: tuple[ToolSpec, ...]
    messages: tuple[Message, ...]


@dataclass
class Script:
    """A conversation being written."""

    tools: Sequence[Tool]
    values: Values
    lex: Lexicon
    messages: list[Message] = field(default_factory=list)
    calls: int = 0
    last: Request | None = None
    """The latest single request, for follow-ups."""
    ending: bool = False
    """This is the last turn: it may end with the call, to teach more calls in as many tokens."""
    brief: bool = False
    """Tools say no more than that it is done."""

    @property
    def rng(self) -> Dice:
        return self.values.rng

    def user(self, text: str) -> None:
        self.messages.append(Message("user", text))

    def say(self, text: str) -> None:
        self.messages.append(Message("assistant", text))

    def call(self, *calls: tuple[str, str]) -> list[ToolCall]:
        made = [
            ToolCall(f"functions.{name}:{self.calls + i}", name, arguments) for i, (name, arguments) in enumerate(calls)
        ]
        self.calls += len(made)
        self.messages.append(Message("assistant", None, tool_calls=tuple(made)))
        return made

    def result(self, call: ToolCall, content: str) -> None:
        named = call.name if self.rng.random() < 0.3 else None
        self.messages.append(Message("tool", content, name=named, tool_call_id=call.id))


# Results and what is said about them


def invent_result(request: Request, script: Script) -> tuple[Any, str]:
    """A result of the call for `request`, as a JSON value or a text, and the sentence that reports it."""
    rng, values, tool = script.rng, script.values, request.tool
    if tool.frame.domain == "builtin":
        return builtin_result(request, values)
    fields = () if script.brief else tool.frame.results
    if not fields:
        done = rng.choice(
            ({"status": "ok"}, {"ok": True}, "ok", "done", {"success": True}, {"result": "ok"}, "", {}, None)
        )
        return done, "Done."
    if fields[0][0] == "items":
        items = values.draw(fields[0][1]).value if rng.random() > 0.08 else []
        wrapped = items if rng.random() < 0.5 else {rng.choice(("results", "items", "matches")): items}
        return wrapped, f"I found {listed([show(i) for i in items])}." if items else "I found nothing."
    if fields[0][0] == "text":
        text = values.draw(fields[0][1]).value
        return (text if rng.random() < 0.5 else {rng.choice(("result", "text", "output")): text}), f"{text}"
    record = {name: values.draw(kind).value for name, kind in fields}
    if rng.random() < 0.5:
        record = dict(rng.sample(sorted(record.items()), len(record)))
    return record, report(record)


def report(record: Mapping[str, Any]) -> str:
    """`The city is Oslo and the count is 3.`"""
    said = listed([f"the {name.replace('_', ' ')} is {show(value)}" for name, value in record.items()])
    return said[0].upper() + said[1:] + "."


def show(value: Any) -> str:
    return value if isinstance(value, str) else dump(value)


def as_content(result: Any, rng: Dice) -> str:
    return result if isinstance(result, str) else "" if result is None else dump(result)
