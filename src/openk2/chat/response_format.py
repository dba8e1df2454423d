"""Answers that are JSON by construction: the text is one object, valid under a schema, and then the turn ends.

Where tools may be called as well, the first token decides: it begins the object or the tool section. `required` and a
named tool leave only the section.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

from openk2.chat.closing import Closing
from openk2.chat.constraints import ToolConstraint
from openk2.chat.grammars import ToolGrammars, Words, tool_grammars
from openk2.chat.lexers import Marker
from openk2.chat.messages import ResponseFormat, ToolChoice, ToolSpec
from openk2.chat.numbers import NumberWatch
from openk2.chat.schema import reply_grammar
from openk2.errors import ProviderError, SchemaError
from openk2.tokenizer import Tokenizer


def build_constraint(
    tokenizer: Tokenizer,
    tools: Sequence[ToolSpec],
    tool_choice: ToolChoice,
    first_index: int,
    grammar: bool = True,
    response_format: ResponseFormat | None = None,
    *,
    end_ids: Collection[int] = (),
) -> ToolConstraint | ReplyConstraint | None:
    """The constraint of a request, or None when nothing is to be constrained.

    See `ToolConstraint.build`; with a `response_format`, calls are held to their schemas whatever `grammar` says.
    Raises SchemaError and RequestError as that does, and SchemaError for a response format that cannot be used.
    """
    if response_format is None:
        return ToolConstraint.build(tokenizer, tools, tool_choice, first_index, grammar, end_ids=end_ids)
    grammars = tool_grammars(tokenizer)
    schema = {"type": "object"} if response_format.schema is None else response_format.schema
    matcher = _reply_matcher(grammars, _schema_json(schema)).deep_copy()
    calls: ToolConstraint | None = None
    if tool_choice.mode == "required" or (tools and tool_choice.mode == "auto"):
        calls = ToolConstraint.build(tokenizer, tools, tool_choice, first_index, end_ids=end_ids)
        if tool_choice.mode == "required":
            return calls
    return ReplyConstraint(grammars, matcher, Closing(grammars.closer, schema), grammars.ends(end_ids), calls)


class ReplyConstraint:
    """The state of one request whose text is JSON. Make it with `build_constraint`."""

    def __init__(
        self,
        grammars: ToolGrammars,
        matcher: LLMatcher,
        closing: Closing,
        end_ids: tuple[int, ...],
        calls: ToolConstraint | None,
    ) -> None:
        self._grammars = grammars
        self._matcher = matcher
        self._closing = closing
        self._end_ids = end_ids
        self._numbers = NumberWatch()
        self._undecided = calls  # until the first token: what would take over
        self._calls: ToolConstraint | None = None  # what took over

    @property
    def is_finished(self) -> bool:
        """True: only the end of the turn may follow."""
        if self._calls is not None:
            return self._calls.is_finished
        return bool(self._matcher.is_stopped())

    def fill_mask(self, words: Words) -> bool:
        """See `ToolConstraint.fill_mask`."""
        if self._calls is not None:
            return self._calls.fill_mask(words)
        self._grammars.fill_matched(words, self._matcher)
        if self._undecided is not None:
            words[: self._grammars.mask_words] |= self._grammars.mask_of((self._section_begin,))
        if self._matcher.is_accepting():
            words[: self._grammars.mask_words] |= self._grammars.mask_of(self._end_ids)
        self._grammars.digits.limit(words, self._numbers.room)
        return True

    def accept(self, token_id: int) -> None:
        """Move on after a generated token. Raises ProviderError for one that the mask does not allow."""
        if self._undecided is not None:
            if token_id == self._section_begin:
                self._calls = self._undecided
            self._undecided = None
        if self._calls is not None:
            self._calls.accept(token_id)
            return
        if self._matcher.is_accepting() and token_id in self._end_ids:
            return
        if not self._matcher.consume_token(token_id):
            raise ProviderError(f"Token {token_id} was generated where the response format does not allow it.")
        self._numbers.feed(self._grammars.tokenizer.token_bytes(token_id))

    def closing_tokens(self, token_id: int, room: int) -> list[int]:
        """See `TokenConstraint.closing_tokens`."""
        if self._calls is not None:
            return self._calls.closing_tokens(token_id, room)
        if self._undecided is not None or token_id in self._end_ids:
            return []
        return self._closing.tokens(self._matcher, token_id, room) or []  # an object is never whole and yet open

    def forced_tokens(self) -> list[int]:
        """Tokens that are the only continuation now: braces, keys, what is left of a word. May be empty."""
        if self._calls is not None:
            return self._calls.forced_tokens()
        return [] if self._undecided is not None else list(self._matcher.compute_ff_tokens())

    @property
    def _section_begin(self) -> int:
        return self._grammars.markers[Marker.SECTION_BEGIN]


def _schema_json(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"The response format's schema is not JSON: {error}.", param="response_format") from None


@lru_cache(maxsize=256)
def _reply_matcher(grammars: ToolGrammars, schema_json: str) -> LLMatcher:
    try:
        return grammars.compile([reply_grammar(json.loads(schema_json))])
    except SchemaError as error:
        raise SchemaError(
            f"The response format's schema cannot be used: {error}. Simplify the schema.", param="response_format"
        ) from None
