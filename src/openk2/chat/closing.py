"""The short way out: the tokens that close a JSON value which a token limit is about to cut.

A search over the grammar's own states, so that whatever it finds is valid by construction. It takes what closes where
it can and what is required where it must, and steps back where that leads too far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from heapq import heappop, heappush
from itertools import count
from typing import Any

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from openk2.chat.schema import required_names
from openk2.tokenizer import Tokenizer

WATCHED_ROOM = 256
"""With more tokens left, a value that has just begun is not looked at: only nesting without end fills as much."""
CLOSE_LOOK = 32
"""With at most so many tokens to spare, every token is looked at before it is taken; with more, one in some."""
LEAST_GROWTH = 3.0
"""Tokens by which one token is expected to lengthen the way out, at least."""
MAX_STATES = 256
"""Grammar states off the preferred way that one search looks at before it gives up."""

_FEW = 64
"""Up to so many allowed tokens, all of them are tried: keys, literals, what is left of an enum's value."""
_MOST_CHILDREN = 16
_STRUCTURE = frozenset(b'{}[]":, ')
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyz")
_ONLY_IN_STRINGS = b"bcdgxzQZ_#"
"""No JSON number or literal, nor anything between values, has any of these."""

Ids = NDArray[np.int64]


class Closer:
    """Searches over one vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._n_ranks = tokenizer.n_ranks
        self._words = (tokenizer.vocab_size + 31) // 32
        structure: list[tuple[bool, int, int, int]] = []
        of_length: dict[int, int] = {}
        single: dict[int, int] = {}
        for token_id in range(tokenizer.n_ranks):
            text = tokenizer.token_bytes(token_id)
            if _STRUCTURE.issuperset(text):
                opened = sum(text.count(byte) for byte in b"{[,") - sum(text.count(byte) for byte in b"}]")
                value = text.lstrip(b":, [{")
                begins_text = value[:1] == b'"' and value[1:2] not in (b"", b'"')  # where it opens the string
                structure.append((begins_text, opened, -len(text), token_id))
            elif _LETTERS.issuperset(text):
                of_length.setdefault(len(text), token_id)
            if len(text) == 1:
                single[text[0]] = token_id
        self._openers = frozenset(token_id for *_, token_id in structure if _opens(tokenizer.token_bytes(token_id)))
        self._structure = _ids(token_id for *_, token_id in sorted(structure))
        by_closing = (token_id for *_, token_id in sorted(structure, key=lambda entry: entry[1:]))
        self._quoting = _ids(t for t in by_closing if tokenizer.token_bytes(t).startswith(b'"'))
        self._scalars = _ids(single[byte] for byte in b"01tfn")
        self._inside = _ids(single[byte] for byte in _ONLY_IN_STRINGS)
        # Text, where a string may not end yet: words, the longest first; then what patterns ask for.
        signs = [byte for byte in range(33, 127) if not chr(byte).isalnum() and byte not in _STRUCTURE | {ord("\\")}]
        signs += b"1aA234567890" + bytes(range(98, 123)) + bytes(range(66, 91))
        signs += b"\x80\x90\xa0\xb0"  # what is left of a character
        words = [of_length[length] for length in (16, 8) if length in of_length]
        self._filling = _ids([*words, *(single[byte] for byte in signs)])

    def path(self, matcher: LLMatcher, room: int, required: frozenset[bytes]) -> list[int] | None:
        """At most `room` tokens after which `matcher`, which stays as it is, accepts; None when none were found.

        `required`: keys to prefer where there is a choice. The path is short, not proven to be the shortest.
        """
        # Fewest deviations from the preferred choice first, and of those the furthest: greedy, with a way back.
        order = count()
        waiting: list[tuple[int, int, int, LLMatcher, list[int]]] = [(0, 0, next(order), matcher, [])]
        visits: Counter[bytes] = Counter()
        aside = 0
        while waiting and aside < MAX_STATES:
            deviations, _, _, parent, path = heappop(waiting)
            aside += deviations > 0
            state = parent.deep_copy()
            if path and not state.consume_token(path[-1]):
                continue
            if not state.is_accepting():
                forced = state.compute_ff_tokens()
                if not all(state.consume_token(token_id) for token_id in forced):
                    continue
                path = [*path, *forced]
            if len(path) > room:
                continue
            if state.is_accepting():
                return path
            words = np.zeros(self._words, np.int32)
            state.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            if state.is_error():
                continue
            for rank, token_id in enumerate(self._children(words, path, required, visits)):
                heappush(waiting, (deviations + (rank > 0), -len(path), next(order), state, [*path, token_id]))
        return None

    def _children(
        self, words: NDArray[np.int32], path: list[int], required: frozenset[bytes], visits: Counter[bytes]
    ) -> list[int]:
        """Tokens to go on with, the preferred one first."""
        in_string = len(_allowed(words, self._inside)) > 0
        structure = _allowed(words, self._quoting if in_string else self._structure).tolist()
        openers = [token_id for token_id in structure if token_id in self._openers]  # last: nesting may have no end
        children = [token_id for token_id in structure if token_id not in self._openers]
        allowed = np.unpackbits(words.view(np.uint8), bitorder="little")[: self._n_ranks].nonzero()[0]
        if len(allowed) <= _FEW:
            said = self._tokenizer.decode_bytes(path)
            known = set(structure)
            texts = {int(t): self._tokenizer.token_bytes(int(t)) for t in allowed if int(t) not in known}
            # A zero at the end last: bounds that want another digit after it are not reached by more of them, and a
            # fraction of hundreds of zeros is read as 0.
            children += sorted(
                texts,
                key=lambda t: (not _leads_to(said + texts[t], required), texts[t].endswith(b"0"), -len(texts[t])),
            )
            return [*children[: _MOST_CHILDREN - len(openers[:1])], *openers][:_MOST_CHILDREN]
        if structure and not in_string:
            return [*children, *_allowed(words, self._scalars).tolist(), *openers][:_MOST_CHILDREN]
        filling = _allowed(words, self._filling).tolist()[:_MOST_CHILDREN]
        if structure or not filling:
            return [*children, *openers, *filling][:_MOST_CHILDREN]
        # Text that may not end yet. Too short, or on a turn around a pattern's loop? Every other time something else.
        mask = words.tobytes()
        visits[mask] += 1
        turn, same = divmod(visits[mask], 2)
        at = 0 if same else turn % len(filling)
        return [filling[at], *filling[:at], *filling[at + 1 :]]


class Closing:
    """When to leave one JSON value of a request, so that the token limit does not cut it."""

    def __init__(self, closer: Closer, schema: Mapping[str, Any]) -> None:
        self._closer = closer
        self._schema = schema
        self._next_look: int | None = None
        self._last: tuple[int, int] | None = None  # room, and length of the way out, at the last look
        self._growth = LEAST_GROWTH

    def tokens(self, matcher: LLMatcher, token_id: int, room: int, *, tail: int = 0) -> list[int] | None:
        """The tokens that close the value, in place of `token_id`: none for one that is whole, such as a number that
        might go on. None: `token_id` may be taken.

        matcher: the value's state before that token. room: the tokens left, that one included, of which `tail` have to
        remain after the value. None as well where no way out was found that fits.
        """
        if self._next_look is None:
            self._next_look = max(WATCHED_ROOM, room * 3 // 4)
        if room > self._next_look:
            return None
        after = matcher.deep_copy()
        if not after.consume_token(token_id):
            return None
        path = self._closer.path(after, room - 1 - tail, self._required)
        if path is not None:
            self._plan_next_look(room - 1, len(path) + tail)
            return None
        path = self._closer.path(matcher, room - tail, self._required)
        if path is None:
            self._next_look = room - 1 - CLOSE_LOOK // 4
        return path

    def _plan_next_look(self, room: int, way_out: int) -> None:
        """As far off as the way out, growing as it has at worst, leaves room for itself."""
        if self._last is not None and room < self._last[0]:
            self._growth = max(self._growth, 2 * (way_out - self._last[1]) / (self._last[0] - room))
        self._last = room, way_out
        spare = room - way_out
        self._next_look = room - int(max(0, spare - CLOSE_LOOK) / (1 + self._growth))

    @cached_property
    def _required(self) -> frozenset[bytes]:
        return required_names(self._schema)


def _ids(ids: Iterator[int] | list[int]) -> Ids:
    return np.array(list(ids), np.int64)


def _allowed(words: NDArray[np.int32], ids: Ids) -> Ids:
    return ids[(words[ids >> 5] >> (ids & 31) & 1).astype(bool)]


def _opens(text: bytes) -> bool:
    return sum(text.count(byte) for byte in b"{[") > sum(text.count(byte) for byte in b"}]")


def _leads_to(said: bytes, names: frozenset[bytes]) -> bool:
    """Whether the key or value that `said` ends in is, or begins, one of the names."""
    last = said.rstrip(b'": ').rpartition(b'"')[2]
    return bool(last) and any(name.startswith(last) for name in names)
