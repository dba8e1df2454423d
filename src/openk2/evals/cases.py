"""What an evaluation asks and expects: cases, and the sets of them that come with openk2.

A case is a conversation up to a point where the model must answer, with the tools it may use and the answer that
would be right. The written sets lie under `tasks/toolcalls/` as JSON lines: `tools.jsonl` declares each tool once,
cases name the tools they show.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

from openk2.chat.builtin_tools import BUILTIN_TOOLS
from openk2.chat.messages import Message, ToolCall, ToolSpec
from openk2.errors import DataError

CaseKind = Literal["single", "parallel", "chain", "answer", "no_tool", "ask_back", "chat"]
"""single: one call. parallel: several calls at once. chain: the next call, given a tool's result. answer: text, given
the last result. no_tool: no tool fits. ask_back: a tool fits but a required argument is missing. chat: small talk."""

KINDS: tuple[CaseKind, ...] = get_args(CaseKind)
CALLING_KINDS = frozenset({"single", "parallel", "chain"})
WRITTEN_SETS = ("handwritten", "builtin")


@dataclass(frozen=True)
class ExpectedCall:
    """A call that would be right, with the freedom that the request leaves."""

    name: str
    arguments: Mapping[str, Any]
    """Arguments that must be given, each with its value."""
    alternatives: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Further values that are as good, by argument."""
    optional: Mapping[str, Sequence[Any] | None] = field(default_factory=dict)
    """Arguments that may also be left out, with the values that are right; None: any value."""


@dataclass(frozen=True)
class Case:
    """One question to a model. `id` is unique over all sets: it begins with the set's name."""

    id: str
    set: str
    kind: CaseKind
    tools: tuple[ToolSpec, ...]
    messages: tuple[Message, ...]
    calls: tuple[ExpectedCall, ...] = ()
    """The calls that one turn must make, in any order; none: the answer must be text."""
    contains: tuple[str, ...] = ()
    """Texts that the answer must contain, in any case of letters."""

    def __post_init__(self) -> None:
        if (self.kind in CALLING_KINDS) != bool(self.calls):
            raise DataError(f"case {self.id} is of kind {self.kind} but expects {len(self.calls)} calls")
        unknown = {call.name for call in self.calls} - {tool.name for tool in self.tools}
        if unknown:
            raise DataError(f"case {self.id} expects calls of tools it does not show: {', '.join(sorted(unknown))}")


def case_from_reference(
    case_id: str,
    set_name: str,
    tools: Sequence[ToolSpec],
    messages: Sequence[Message],
    expected: Message,
    text_kind: CaseKind,
) -> Case:
    """A case whose right answer is one known assistant message, as generated data gives it.

    The kind follows from the shape: calls after a result are a chain, several calls parallel, one call single, text
    after a result an answer, which must tell those of the result's values that the known answer tells. Only for other
    text, `text_kind` says why it is text: no_tool, ask_back or chat.

    Raises DataError when the expected arguments are not a JSON object.
    """
    after_result = bool(messages) and messages[-1].role == "tool"
    kind: CaseKind
    if expected.tool_calls:
        kind = "chain" if after_result else "parallel" if len(expected.tool_calls) > 1 else "single"
    else:
        kind = "answer" if after_result else text_kind
    calls = tuple(_expected(call, case_id) for call in expected.tool_calls)
    contains = _values_told(messages, expected.text) if kind == "answer" else ()
    return Case(case_id, set_name, kind, tuple(tools), tuple(messages), calls, contains)


def _expected(call: ToolCall, case_id: str) -> ExpectedCall:
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise DataError(f"case {case_id} expects {call.name} with arguments that are no object: {call.arguments!r}")
    return ExpectedCall(call.name, arguments)


def _values_told(messages: Sequence[Message], answer: str) -> tuple[str, ...]:
    """The values of the last tool results that a right answer contains: what any right answer must tell."""
    values: dict[str, None] = {}
    for message in reversed(messages):
        if message.role != "tool":
            break
        try:
            result = json.loads(message.text)
        except ValueError:
            result = message.text
        values.update(dict.fromkeys(_leaves(result)))
    return tuple(value for value in values if value and value in answer)


def _leaves(value: Any) -> Iterator[str]:
    """The strings and numbers in a JSON value, as text; true, false and null have no one wording."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield json.dumps(value)


def written_cases(set_name: str) -> tuple[Case, ...]:
    """The cases of a written set, in file order.

    `handwritten`: everyday requests over realistic tools, frozen before the first training run. `builtin`: phrasings
    over the agent's built-in tools. Raises DataError for another name, and, naming the line, for a malformed file.
    """
    if set_name not in WRITTEN_SETS:
        raise DataError(f"there is no set of cases {set_name!r}; there are {' and '.join(WRITTEN_SETS)}")
    file = f"{set_name}.jsonl"
    catalogue = _tool_catalogue()
    cases = []
    for number, entry in _entries(file):
        try:
            cases.append(_case(set_name, entry, catalogue))
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{file}, line {number}: the case is malformed ({reason})") from error
    return tuple(cases)


def _case(set_name: str, entry: Mapping[str, Any], catalogue: Mapping[str, ToolSpec]) -> Case:
    return Case(
        id=f"{set_name}/{entry['id']}",
        set=set_name,
        kind=entry["kind"],
        tools=tuple(catalogue[name] for name in entry["tools"]),
        messages=tuple(_message(message) for message in entry["messages"]),
        calls=tuple(ExpectedCall(**call) for call in entry["calls"]),
        contains=tuple(entry.get("contains", ())),
    )


def _message(entry: Mapping[str, Any]) -> Message:
    return Message(
        role=entry["role"],
        content=entry["content"],
        tool_calls=tuple(
            ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in entry.get("tool_calls", ())
        ),
        tool_call_id=entry.get("tool_call_id"),
    )


@cache
def _tool_catalogue() -> dict[str, ToolSpec]:
    tools = {tool.name: tool for tool in BUILTIN_TOOLS}
    for _, entry in _entries("tools.jsonl"):
        tools[entry["name"]] = ToolSpec.function(entry["name"], entry["description"], entry["parameters"])
    return tools


def _entries(file: str) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a packaged JSON lines file, with their line numbers from 1."""
    text = resources.files("openk2.evals").joinpath("tasks", "toolcalls", file).read_text(encoding="utf-8")
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            entries.append((number, json.loads(line)))
        except ValueError as error:
            raise DataError(f"{file}, line {number}: not JSON ({error})") from error
    return entries
