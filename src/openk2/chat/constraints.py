"""Tool calls right by construction: which tokens may come next in an answer.

Text is free until the model opens the tool section (or must open it: `required`, or a named tool). From there only the
declared names, dense indices and arguments valid under the tools' schemas can be sampled, and after the section only
the end of the turn. In text, control tokens other than the section's beginning and the ends of a turn are masked.

`ToolConstraint` implements the engine's `TokenConstraint` protocol; masks are bit sets over the vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from llguidance import LLMatcher

from openk2.chat.closing import WATCHED_ROOM, Closing
from openk2.chat.grammars import ToolGrammars, Words, allow, tool_grammars
from openk2.chat.ids import call_id
from openk2.chat.lexers import Marker
from openk2.chat.messages import ToolChoice, ToolSpec
from openk2.chat.numbers import NumberWatch
from openk2.chat.schema import required_names
from openk2.errors import ProviderError, RequestError
from openk2.tokenizer import Tokenizer

MAX_CALLS = 128
"""Calls in one turn; a model that repeats itself is led out of the section there."""

MAX_FORCED_TOKENS = 256
"""Longest chunk that `forced_tokens` gives at once; the rest comes with the next question."""


class _State(Enum):
    TEXT = auto()
    OPENING = auto()  # only section_begin
    NEXT_CALL = auto()  # call_begin, or section_end once there was a call
    HEADER = auto()  # functions.NAME:INDEX, then argument_begin
    ARGUMENTS = auto()  # JSON, then call_end
    DONE = auto()  # only the end of the turn


class ToolConstraint:
    """The state of one request. Make it with `build`."""

    def __init__(self, grammars: ToolGrammars, plan: _Plan) -> None:
        self._grammars = grammars
        self._plan = plan
        self._state = _State.OPENING if plan.must_call else _State.TEXT
        self._calls = 0
        self._matcher: LLMatcher | None = None
        self._header = b""
        self._closing: Closing | None = None
        self._numbers = NumberWatch()

    @staticmethod
    def build(
        tokenizer: Tokenizer,
        tools: Sequence[ToolSpec],
        tool_choice: ToolChoice,
        first_index: int,
        grammar: bool = True,
        *,
        end_ids: Collection[int] = (),
    ) -> ToolConstraint | None:
        """The constraint of a request, or None when nothing is to be constrained.

        `first_index`: calls that the conversation already has. `grammar` False leaves `auto` wholly free; the other
        choices cannot be kept without a constraint. `end_ids`: tokens that end a turn, by default `<|im_end|>` and
        the tokenizer's end of sequence.

        Raises SchemaError, naming the tool, for a schema that cannot be used, RequestError for a choice that names no
        declared tool.
        """
        if tool_choice.mode == "auto" and tools and not grammar:
            return None
        grammars = tool_grammars(tokenizer)
        return ToolConstraint(grammars, _plan(grammars, tools, tool_choice, first_index, end_ids))

    @property
    def is_finished(self) -> bool:
        """True: only the end of the turn may follow."""
        return self._state is _State.DONE

    def fill_mask(self, words: Words) -> bool:
        """Write the allowed tokens, bit i % 32 of word i // 32 (int32, contiguous, at least the vocabulary's size).

        Words past the vocabulary are cleared. False would mean that everything is allowed; that is never so here.
        """
        if self._matcher is None:
            self._grammars.fill(words, self._fixed_mask())
            return True
        self._grammars.fill_matched(words, self._matcher)
        if self._matcher.is_accepting():
            allow(words, self._closing_marker())
        if self._state is _State.ARGUMENTS:
            self._grammars.digits.limit(words, self._numbers.room)
        return True

    def accept(self, token_id: int) -> None:
        """Move on after a generated token. Raises ProviderError for one that the mask does not allow."""
        markers = self._grammars.markers
        match self._state:
            case _State.TEXT:
                if token_id == markers[Marker.SECTION_BEGIN] and self._plan.may_call:
                    self._state = _State.NEXT_CALL
            case _State.OPENING:
                self._expect(token_id, Marker.SECTION_BEGIN)
                self._state = _State.NEXT_CALL
            case _State.NEXT_CALL:
                if token_id == markers[Marker.SECTION_END] and self._calls:
                    self._state = _State.DONE
                else:
                    self._expect(token_id, Marker.CALL_BEGIN)
                    index = self._plan.first_index + self._calls
                    self._matcher = self._grammars.header_matcher(tuple(self._plan.grammars), index)
                    self._header, self._state = b"", _State.HEADER
            case _State.HEADER | _State.ARGUMENTS:
                self._accept_matched(token_id)
            case _State.DONE:
                pass

    def forced_tokens(self) -> list[int]:
        """Tokens that are the only continuation now: keys, quotes, markers, what is left of a name. May be empty."""
        step = self._forced_step()
        if not step:
            return []
        ahead = copy.copy(self)
        ahead._numbers = copy.copy(self._numbers)
        if self._matcher is not None:
            ahead._matcher = self._matcher.deep_copy()
        forced: list[int] = []
        while step and len(forced) < MAX_FORCED_TOKENS:
            for token_id in step:
                ahead.accept(token_id)
            forced += step
            step = ahead._forced_step()
        return forced

    def closing_tokens(self, token_id: int, room: int) -> list[int]:
        """See `TokenConstraint.closing_tokens`. Never chooses a tool: a call is closed once its arguments are begun."""
        markers = self._grammars.markers
        if self._closing is not None and self._matcher is not None and token_id != markers[Marker.CALL_END]:
            path = self._closing.tokens(self._matcher, token_id, room, tail=1)
            if path is None:
                return []
            end = [markers[Marker.CALL_END], markers[Marker.SECTION_END]]
            return [*path, *end][:room]
        begins_another = self._state is _State.NEXT_CALL and self._calls and token_id == markers[Marker.CALL_BEGIN]
        if begins_another and room <= WATCHED_ROOM and not self._another_fits(room):
            return [markers[Marker.SECTION_END]]
        return []

    def _another_fits(self, room: int) -> bool:
        """Whether any of the tools could still be called: once a call is begun, the model chooses which."""
        index = self._plan.first_index + self._calls
        for name, matcher in self._plan.grammars.items():
            shortest = self._grammars.shortest(matcher, required_names(self._plan.schemas[name]))
            header = 3 + len(self._grammars.tokenizer.encode(call_id(name, index)))  # 3: a call's markers
            if shortest is None or header + shortest > room:
                return False
        return True

    def _forced_step(self) -> list[int]:
        if self._matcher is None:
            allowed = self._fixed_ids()
            return list(allowed) if allowed is not None and len(allowed) == 1 else []
        if self._matcher.is_stopped():
            return [self._closing_marker()]
        return list(self._matcher.compute_ff_tokens())

    def _fixed_ids(self) -> tuple[int, ...] | None:
        """Allowed ids of the states without a matcher and with few choices; None for text and for the end."""
        markers = self._grammars.markers
        if self._state is _State.OPENING:
            return (markers[Marker.SECTION_BEGIN],)
        if self._state is _State.NEXT_CALL:
            options = []
            if self._calls < self._plan.max_calls:
                options.append(markers[Marker.CALL_BEGIN])
            if self._calls:
                options.append(markers[Marker.SECTION_END])
            return tuple(options)
        return None

    def _fixed_mask(self) -> Words:
        if self._state is _State.TEXT:
            return self._plan.text_mask
        allowed = self._fixed_ids()
        return self._grammars.mask_of(self._plan.end_ids if allowed is None else allowed)

    def _closing_marker(self) -> int:
        marker = Marker.ARGUMENT_BEGIN if self._state is _State.HEADER else Marker.CALL_END
        return self._grammars.markers[marker]

    def _accept_matched(self, token_id: int) -> None:
        assert self._matcher is not None
        if token_id != self._closing_marker():
            if not self._matcher.consume_token(token_id):
                self._refuse(token_id)
            text = self._grammars.tokenizer.token_bytes(token_id)
            if self._state is _State.HEADER:
                self._header += text
            else:
                self._numbers.feed(text)
            return
        if not self._matcher.is_accepting():
            self._refuse(token_id)
        if self._state is _State.HEADER:
            index = self._plan.first_index + self._calls
            name = next(name for name in self._plan.grammars if call_id(name, index).encode() == self._header)
            self._matcher, self._state = self._plan.grammars[name].deep_copy(), _State.ARGUMENTS
            self._closing = Closing(self._grammars.closer, self._plan.schemas[name])
            self._numbers = NumberWatch()
        else:
            self._calls += 1
            self._matcher, self._closing, self._state = None, None, _State.NEXT_CALL

    def _expect(self, token_id: int, marker: Marker) -> None:
        if token_id != self._grammars.markers[marker]:
            self._refuse(token_id)

    def _refuse(self, token_id: int) -> None:
        raise ProviderError(
            f"Token {token_id} was generated where the tool grammar ({self._state.name}) does not allow it."
        )


@dataclass(frozen=True)
class _Plan:
    """What a request's choice and tools allow."""

    schemas: Mapping[str, Mapping[str, object]]  # of the tools that may be called
    grammars: Mapping[str, LLMatcher]  # by such a tool: its arguments' matcher in its first state
    first_index: int
    max_calls: int
    may_call: bool
    must_call: bool
    text_mask: Words
    end_ids: tuple[int, ...]


def _plan(
    grammars: ToolGrammars, tools: Sequence[ToolSpec], choice: ToolChoice, first_index: int, end_ids: Collection[int]
) -> _Plan:
    schemas = dict(_declared(tools))
    if choice.name is not None and choice.name not in schemas:
        raise RequestError(f"tool_choice names {choice.name!r}, which is not declared in tools.", param="tool_choice")
    if choice.mode == "required" and not schemas:
        raise RequestError("tool_choice requires a call, but no tools are declared.", param="tool_choice")
    if choice.mode == "none":
        schemas = {}
    elif choice.name is not None:
        schemas = {choice.name: schemas[choice.name]}
    ends = grammars.ends(end_ids)
    return _Plan(
        schemas=schemas,
        grammars={name: grammars.arguments(name, schema) for name, schema in schemas.items()},
        first_index=first_index,
        max_calls=MAX_CALLS if choice.parallel else 1,
        may_call=bool(schemas),
        must_call=choice.mode == "required",
        text_mask=grammars.text_mask(ends, bool(schemas)),
        end_ids=ends,
    )


def _declared(tools: Iterable[ToolSpec]) -> Iterator[tuple[str, Mapping[str, object]]]:
    seen: set[str] = set()
    for position, tool in enumerate(tools):
        try:
            name, schema = tool.name, tool.enforced
        except (KeyError, TypeError, AttributeError):
            raise RequestError(
                f'tools[{position}] is not {{"type": "function", "function": {{"name": ...}}}}.', param="tools"
            ) from None
        if not isinstance(name, str) or not name.strip():
            raise RequestError(f"tools[{position}] has no name.", param="tools")
        if name in seen:
            raise RequestError(f"tools[{position}] declares {name!r} a second time.", param="tools")
        seen.add(name)
        yield name, schema
