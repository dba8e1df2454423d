"""Long conversations in which one value counts, and the requests that need it.

A context is a conversation of many turns: the badge of a person is asked for, looked up and told. The last request
needs one of the badges as an argument. `needle` names the person, so that the badge must be found by its record's key,
among records that are like it in all else, as in RULER's multi-key retrieval (Hsieh et al., arXiv:2404.06654). `copy`
gives the badge's first word, so that the rest must be repeated from where it stood. `call` needs none of the
records: one more badge is to be looked up. A model that fails there is lost at this length, whatever it remembers.

All requests over one context share it word for word, so that an engine with a prefix cache reads it once.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from openk2.chat.messages import Message, ToolCall, ToolSpec
from openk2.evals.cases import Case, ExpectedCall

ContextTask = Literal["needle", "copy", "call"]
TASKS: tuple[ContextTask, ...] = get_args(ContextTask)
ANSWER_TOKENS = 64
"""Of a context's length, what is kept free for the answer: one call with one short argument."""
MESSAGES_A_RECORD = 4


def _tool(name: str, description: str, parameter: str, meaning: str) -> ToolSpec:
    schema = {"type": "string", "description": meaning}
    return ToolSpec.function(
        name, description, {"type": "object", "properties": {parameter: schema}, "required": [parameter]}
    )


LOOK_UP = _tool("get_badge", "Look up the badge of a person.", "name", "Name of the person")
USE = _tool("open_door", "Open the door with a badge.", "badge", "The whole badge")
TOOLS = (LOOK_UP, USE)

_FIRST = "Ab Bel Cor Dag Eb Fal Gar Hel Im Jor Kal Lam Mor Nel Os Pel Quin Ras Sil Tor Ul Ver Wil Yan Zel".split()
_LAST = "bard dan eth fin gard ick lan mund nard olf rin sten tan ulf vin ward".split()
_BADGE = (
    "alder ash aspen beech birch box briar cedar clover cypress elder elm fern fir gorse hazel holly ivy juniper larch "
    "maple moss oak pine reed rowan sedge spruce thorn willow yarrow yew"
).split()
"""None begins another, so that no badge's first word does either."""


@dataclass(frozen=True)
class Entry:
    """Whose badge it is."""

    name: str
    badge: str

    @property
    def beginning(self) -> str:
        """The badge's first word, which no other badge of the context begins with."""
        return self.badge.partition("-")[0]


class Context:
    """An endless conversation, a function of `seed`, of which any number of records may be taken."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self._random = random.Random(seed)
        self._entries: list[Entry] = []
        self._taken: set[str] = set()

    def entries(self, count: int) -> Sequence[Entry]:
        while len(self._entries) < count:
            self._entries.append(Entry(self._name(), self._badge()))
        return self._entries[:count]

    def messages(self, count: int) -> list[Message]:
        """The turns of the first `count` records."""
        return [message for index, entry in enumerate(self.entries(count)) for message in _turn(index, entry)]

    def _name(self) -> str:
        draw = self._random.choice
        return self._new(lambda: f"{draw(_FIRST)}{draw(_LAST)} {draw(_FIRST)}{draw(_LAST)}")

    def _badge(self) -> str:
        draw = self._random.choice
        first = self._new(lambda: "".join(draw(_BADGE) for _ in range(3)))
        return f"{first}-{self._random.randrange(10_000, 100_000)}"

    def _new(self, make: Callable[[], str]) -> str:
        while (made := make()) in self._taken:
            pass
        self._taken.add(made)
        return made


def _turn(index: int, entry: Entry) -> tuple[Message, ...]:
    call = ToolCall(f"functions.{LOOK_UP.name}:{index}", LOOK_UP.name, json.dumps({"name": entry.name}))
    return (
        Message("user", f"Get the badge of {entry.name}."),
        Message("assistant", None, tool_calls=(call,)),
        Message("tool", json.dumps({"badge": entry.badge}), tool_call_id=call.id),
        Message("assistant", f"The badge is {entry.badge}."),
    )


def request(task: ContextTask, entry: Entry) -> str:
    """The last message: it needs the badge of `entry`, or its looking up."""
    if task == "needle":
        return f"Open the door for {entry.name}, with the badge that you looked up before."
    if task == "copy":
        return f"Open the door with the badge that begins with {entry.beginning}. Give the whole badge."
    return f"Get the badge of {entry.name}."


@dataclass(frozen=True)
class ContextCase:
    """One request over one context."""

    context: Context
    records: int
    task: ContextTask
    length: int
    """Tokens of prompt and answer that were aimed at."""
    depth: float | None
    """Where the record lies: 0 at the beginning, 1 just before the request; None: it is a new one."""
    prompt_tokens: int
    """Of the context with the longest of its requests: exact, or as estimated."""

    @cached_property
    def case(self) -> Case:
        if self.depth is None:
            entry = self.context.entries(self.records + 1)[-1]
            call = ExpectedCall(LOOK_UP.name, {"name": entry.name})
        else:
            entry = self.context.entries(self.records)[round(self.depth * (self.records - 1))]
            call = ExpectedCall(USE.name, {"badge": entry.badge})
        where = "" if self.depth is None else f"/{self.depth:.4g}"
        return Case(
            id=f"context/{self.context.seed}/{self.length}/{self.task}{where}",
            set="context",
            kind="single",
            tools=TOOLS,
            messages=(*self.context.messages(self.records), Message("user", request(self.task, entry))),
            calls=(call,),
        )


def context_cases(contexts: Iterable[tuple[Context, int, int, int]], depths: Sequence[float]) -> list[ContextCase]:
    """`needle` and `copy` at every depth, and `call`, over each context: (it, its records, length, tokens)."""
    placed: list[tuple[ContextTask, float | None]] = [(task, depth) for task in ("needle", "copy") for depth in depths]
    return [
        ContextCase(context, records, task, length, depth, tokens)
        for context, records, length, tokens in contexts
        for task, depth in [*placed, ("call", None)]
    ]
