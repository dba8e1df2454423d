"""A provider that plays a script: tests the server, the agent and the evals without a model.

    provider = ScriptedProvider([
        ScriptedTurn("Let me look.", calls=[ScriptedCall("search_files", {"pattern": "TODO", "lang": "py"})]),
        "There is one TODO, in main.py.",
    ])

Each request takes the next turn. A turn is a `ScriptedTurn`, a plain string (text), an exception (raised before the
first event) or a function of the request that returns one of these, possibly as a coroutine. A function in place of
the list answers every request. What was asked is in `provider.requests`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openk2.chat.events import CallBegin, CallDelta, CallEnd, ChatEvent, Finished, ReasoningDelta, TextDelta
from openk2.chat.messages import FinishReason, Usage
from openk2.chat.provider import ChatRequest
from openk2.errors import OpenK2Error, ProviderError


@dataclass(frozen=True)
class ScriptedCall:
    """One tool call of a turn."""

    name: str
    arguments: Mapping[str, Any] | str
    """A mapping is written as JSON; a string is sent as it is, also when it is not JSON."""
    id: str | None = None
    """None: the canonical `functions.NAME:INDEX`, counted over the conversation."""

    @property
    def arguments_json(self) -> str:
        if isinstance(self.arguments, str):
            return self.arguments
        return json.dumps(dict(self.arguments), ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class ScriptedTurn:
    """One answer."""

    text: str = ""
    calls: Sequence[ScriptedCall] = ()
    finish_reason: FinishReason | None = None
    """None: `tool_calls` when there are calls, else `stop`. `length` cuts the last call before its end."""
    usage: Usage | None = None
    """None: words stand in for tokens."""
    delay_s: float = 0.0
    """Seconds to wait before each event."""
    error: OpenK2Error | None = None
    """Raised after the text and the calls, in place of `Finished`: a stream that breaks."""
    reasoning: str = ""
    """What it thinks first, as a model does that thinks."""
    stop_string: str | None = None
    """The stop string that is said to have ended the answer; it is not looked for."""


Turn = ScriptedTurn | str | OpenK2Error
TurnFunction = Callable[[ChatRequest], Turn | Awaitable[Turn]]


class ScriptedProvider:
    """Plays `turns` in order, one for each request; see the module's docstring.

    A request past the end of the script raises ProviderError. Text and arguments come in pieces of `piece_chars`
    characters, so that readers are tested on split streams.
    """

    def __init__(
        self, turns: Iterable[Turn | TurnFunction] | TurnFunction, *, model: str = "scripted", piece_chars: int = 4
    ) -> None:
        if isinstance(turns, (str, ScriptedTurn)):
            raise TypeError("turns is a list of turns or a function, not one turn")
        self._function = turns if callable(turns) else None
        self._turns = [] if callable(turns) else list(turns)
        self._model = model
        self._piece_chars = piece_chars
        self.requests: list[ChatRequest] = []
        """Every request, in the order in which they came."""
        self.aborted = 0
        """Streams that were closed or cancelled before their end."""

    @property
    def model(self) -> str:
        return self._model

    @property
    def remaining(self) -> int:
        """Turns of the list that were not asked for; a finished test usually wants 0."""
        return max(0, len(self._turns) - len(self.requests))

    def count_prompt_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt; words stand in for them."""
        return sum(len(message.text.split()) for message in request.messages)

    def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """Yield the next turn's events. Raises what the script says; ProviderError when the script is over."""
        number = len(self.requests)
        self.requests.append(request)
        return self._play(number, request)

    async def _play(self, number: int, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        try:
            turn = await self._turn(number, request)
            for event in self._events(turn, request):
                await asyncio.sleep(turn.delay_s)
                yield event
        except (GeneratorExit, asyncio.CancelledError):
            self.aborted += 1
            raise

    async def _turn(self, number: int, request: ChatRequest) -> ScriptedTurn:
        if self._function is None and number >= len(self._turns):
            raise ProviderError(f"the script has {len(self._turns)} turns, and turn {number + 1} was asked for")
        turn: Any = self._function or self._turns[number]
        if callable(turn):
            turn = turn(request)
        if inspect.isawaitable(turn):
            turn = await turn
        if isinstance(turn, OpenK2Error):
            raise turn
        return ScriptedTurn(turn) if isinstance(turn, str) else turn

    def _events(self, turn: ScriptedTurn, request: ChatRequest) -> Iterator[ChatEvent]:
        first_index = sum(len(message.tool_calls) for message in request.messages)
        for piece in self._pieces(turn.reasoning):
            yield ReasoningDelta(piece)
        for piece in self._pieces(turn.text):
            yield TextDelta(piece)
        for index, call in enumerate(turn.calls):
            yield CallBegin(index, call.id or f"functions.{call.name}:{first_index + index}", call.name)
            pieces = self._pieces(call.arguments_json)
            cut = turn.finish_reason == "length" and index == len(turn.calls) - 1
            for piece in pieces[:-1] if cut else pieces:
                yield CallDelta(index, piece)
            if not cut:
                yield CallEnd(index)
        if turn.error is not None:
            raise turn.error
        reason: FinishReason = turn.finish_reason or ("tool_calls" if turn.calls else "stop")
        yield Finished(reason, turn.usage or self._usage_in_words(turn, request), turn.stop_string)

    def _pieces(self, text: str) -> list[str]:
        return [text[at : at + self._piece_chars] for at in range(0, len(text), self._piece_chars)]

    def _usage_in_words(self, turn: ScriptedTurn, request: ChatRequest) -> Usage:
        answer = [turn.reasoning, turn.text, *(call.arguments_json for call in turn.calls)]
        thought, *said = (len(text.split()) for text in answer)
        return Usage(self.count_prompt_tokens(request), thought + sum(said), reasoning_tokens=thought)
