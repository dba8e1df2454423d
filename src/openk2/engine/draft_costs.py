"""How long a draft pays: from the time of steps by their rows, and from how often guesses were right.

A step's time grows with its rows as the machine and the model have it: rows share what is read of dense matrices, but
read the union of their experts. So times are measured, not computed, and the model learns while it serves. Seconds are
of the clock; they decide about the number of steps only, never about a token.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_GAIN = 1.1
"""Below so many times the speed without, there are no drafts."""
LONGEST_MATCH = 5
"""Longer matches count as this one."""
PROBE_EVERY = 64
"""Of the steps whose drafts do not seem to pay, one in so many has them nevertheless, so that a time which was measured
on a busy machine is measured again."""

_WEIGHT = 0.1
"""Of the newest step's time in an average."""
_GUESS_WEIGHT = 0.03
_UNKNOWN = 0.5
"""How likely a token of a draft is right before any was seen."""


@dataclass(frozen=True)
class Chances:
    """Of one request's guess."""

    match: int
    tokens: int
    sampled_share: float
    """Of the request's tokens; the others were forced, and take no step of their own."""


class DraftCosts:
    """Learned averages, of one engine."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        """Of a forward pass over generated tokens, by rows."""
        self._known: list[int] = []
        """Those counts of rows, in order."""
        self._rest: float | None = None
        """Seconds of a step beside the pass, by sampled token."""
        self._right = [_UNKNOWN] * (LONGEST_MATCH + 1)
        self._seen = [0] * (LONGEST_MATCH + 1)
        """By the tokens that were the same before it: how often the next one of a guess was right; and of how many."""
        self._declined = 0

    def saw_step(self, rows: int, seconds: float, sampled: int, rest_seconds: float) -> None:
        """A step without prompts: its pass over `rows`, and sampling so many tokens after it."""
        if rows not in self._seconds:
            insort(self._known, rows)
        self._seconds[rows] = _moved(self._seconds.get(rows), seconds)
        self._rest = _moved(self._rest, rest_seconds / sampled)

    def saw_guess(self, match: int, was_right: Sequence[bool]) -> None:
        """Which tokens of a guess came, up to the first that did not."""
        for number, right in enumerate(was_right):
            key = min(match + number, LONGEST_MATCH)
            self._seen[key] += 1
            self._right[key] += max(_GUESS_WEIGHT, 1 / (self._seen[key] + 1)) * (right - self._right[key])
            if not right:
                return

    def lengths(self, rows: int, guesses: Sequence[Chances], room: int) -> list[int]:
        """How many tokens of each guess go into a step of `rows`, at most `room` together."""
        lengths = [0] * len(guesses)
        if not any(guess.tokens for guess in guesses) or not self._seconds or self._rest is None:
            return lengths
        tokens = [
            (chance, index, chance * guess.sampled_share)  # a step is saved where all up to a sampled token is right
            for index, guess in enumerate(guesses)
            for chance in self._chances(guess)
        ]
        # A guess's chances fall from token to token, so that its first tokens are also the first in this order.
        tokens.sort(key=lambda token: -token[0])
        now = self.seconds(rows) + self._rest * len(guesses)
        # What a right token saves is its part of a later step, which would compute the forced ones after it as well.
        later_rows = sum(1 / guess.sampled_share for guess in guesses)
        later = self.seconds(later_rows) / len(guesses) + self._rest
        best, best_count, saved = 0.0, 0, 0.0
        for count, (_, _, more) in enumerate(tokens[:room], 1):
            saved += more
            drafted = self.seconds(rows + count) + self._rest * (len(guesses) + saved)
            gain = (now + later * saved) / drafted
            if gain > best:
                best, best_count = gain, count
        if best < LEAST_GAIN:
            self._declined += bool(best_count)
            if not best_count or self._declined % PROBE_EVERY:
                return lengths
        for _, index, _ in tokens[:best_count]:
            lengths[index] += 1
        return lengths

    def seconds(self, rows: float) -> float:
        """Of a pass over `rows`: measured, or on the line through the nearest counts that were, which never falls."""
        known = self._known
        at = bisect_left(known, rows)
        if (at < len(known) and known[at] == rows) or len(known) == 1:
            return self._seconds[known[min(at, len(known) - 1)]]
        low = min(max(at - 1, 0), len(known) - 2)
        from_count, to_count = known[low], known[low + 1]
        slope = (self._seconds[to_count] - self._seconds[from_count]) / (to_count - from_count)
        return max(self._seconds[from_count] + max(slope, 0.0) * (rows - from_count), 0.0)

    def _chances(self, guess: Chances) -> list[float]:
        """That the guess is right up to each of its tokens."""
        chances, chance = [], 1.0
        for place in range(guess.tokens):
            chance *= self._right[min(guess.match + place, LONGEST_MATCH)]
            chances.append(chance)
        return chances


def _moved(average: float | None, value: float) -> float:
    """An average that one slow step hardly moves, and that leaves the slow first one, which also warms up, at once."""
    if average is None or value < average / 2:
        return value
    return average + _WEIGHT * (min(value, 2 * average) - average)
