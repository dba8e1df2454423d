"""Fewer steps: tokens guessed from a request's own text, several of which one step checks.

Tool calls copy names, keys and values out of their prompt. What followed the last tokens where they stood before is a
draft of what follows them now (arXiv:2304.04487). The step computes the draft's tokens beside its own, each as a
generated token; then tokens are sampled one after the other as ever, under the mask, penalties and random number of
their place, for as long as they are the draft's. So drafts change how many steps an answer takes, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from openk2.engine.draft_costs import LONGEST_MATCH, Chances, DraftCosts
from openk2.engine.request import RequestState
from openk2.engine.scheduler import Chunk, Scheduler

MOST_DRAFT_TOKENS = 32
"""Of one step, over all its requests: their logits are in memory at once."""

_START = -1
"""No token's id."""


@dataclass(frozen=True)
class Draft:
    """Guessed tokens, and how many tokens before them were the same in the place they are from; 0: no guess."""

    tokens: tuple[int, ...] = ()
    match: int = 0


class PromptLookup:
    """The text of one request, in which its last tokens are looked up."""

    def __init__(self) -> None:
        # Matches that run into the beginning end there.
        self._ids = np.full(LONGEST_MATCH, _START, np.int32)
        self._end = LONGEST_MATCH
        self._place, self._match = 0, 0
        """Where what followed is the guess; and how many tokens before it are those at the end of the text."""

    def draft(self, token_ids: Sequence[int], count: int) -> Draft:
        """`count` tokens that may follow; `token_ids` begin with those of the last call.

        They are from the latest of the places with the longest match, or from the place of the last call as long as
        it goes on being right. A place so near the end that it has fewer tokens after it is taken to repeat.
        """
        if not self._extend(token_ids):
            self._find()
        if count < 1 or not self._match:
            return Draft()
        ids = self._ids[self._place : min(self._place + count, self._end)]
        return Draft(tuple((ids if len(ids) == count else np.resize(ids, count)).tolist()), self._match)

    def _find(self) -> None:
        ids = self._ids[: self._end]
        places = np.flatnonzero(ids[:-1] == ids[-1])
        match = min(1, len(places))
        while match and match < LONGEST_MATCH:
            further = places[ids[places - match] == ids[-1 - match]]
            if not len(further):
                break
            places, match = further, match + 1
        self._match = match
        if match:
            self._place = int(places[-1]) + 1

    def _extend(self, token_ids: Sequence[int]) -> bool:
        """Take the new tokens in; whether a long match goes on through them."""
        new = token_ids[self._end - LONGEST_MATCH :]
        end = self._end + len(new)
        if end > len(self._ids):
            self._ids = np.resize(self._ids, 2 * end)
        self._ids[self._end : end] = new
        self._end = end
        place = self._place
        self._place += len(new)
        return self._match == LONGEST_MATCH and self._ids[place : self._place].tolist() == new


class Drafter:
    """Puts drafts into steps, as many as pay, and learns from what became of them."""

    def __init__(self, most: int) -> None:
        """`most`: drafted tokens of one request in one step, at least 1."""
        self.most = most
        self.costs = DraftCosts()
        self.num_drafts = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self._lookups: dict[RequestState, PromptLookup] = {}
        self._guesses: list[tuple[Chunk, Draft]] = []
        """Of the step that runs, drafted or not."""

    def extend(self, chunks: Sequence[Chunk], scheduler: Scheduler) -> list[Chunk]:
        """The step's chunks, with the drafts that pay."""
        self._guesses = [(chunk, self._guess(chunk)) for chunk in chunks if chunk.samples and chunk.is_answer]
        room = max(0, scheduler.max_num_batched_tokens - sum(chunk.num_tokens for chunk in chunks))
        rows = sum(chunk.num_tokens for chunk in chunks if chunk.is_answer)
        chances = [
            Chances(draft.match, len(draft.tokens), chunk.request.sampled_share) for chunk, draft in self._guesses
        ]
        lengths = self.costs.lengths(rows, chances, min(room, MOST_DRAFT_TOKENS))
        drafted = {}
        for (chunk, draft), length in zip(self._guesses, lengths, strict=True):
            if length:
                drafted[chunk.request] = extended = scheduler.extend(chunk, draft.tokens[:length])
                self.num_drafts += bool(extended.drafts)
                self.num_draft_tokens += len(extended.drafts)
        return [drafted.get(chunk.request, chunk) for chunk in chunks]

    def _guess(self, chunk: Chunk) -> Draft:
        request = chunk.request
        lookup = self._lookups.setdefault(request, PromptLookup())
        # The last token of an answer at its limit follows from the one before it.
        return lookup.draft(request.token_ids, min(self.most, request.max_total_tokens - chunk.end - 1))

    def learn(self) -> None:
        """Compare the guesses of the step that ran, used or not, with the tokens that came."""
        for chunk, draft in self._guesses:
            came = chunk.request.token_ids[chunk.end :]
            self.costs.saw_guess(draft.match, [a == b for a, b in zip(draft.tokens, came, strict=False)])
        self._guesses = []

    def forget(self, request: RequestState) -> None:
        self._lookups.pop(request, None)


def common(draft: Sequence[int], tokens: Sequence[int]) -> int:
    """How many leading tokens are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(draft, tokens, strict=False)))
