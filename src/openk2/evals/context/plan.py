"""Which contexts an evaluation asks about: lengths, places and how many of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from openk2.errors import ConfigError
from openk2.evals.context.cases import ANSWER_TOKENS, Context, ContextCase, context_cases
from openk2.evals.context.fill import Filler

SHORTEST = 1024
"""Of the default lengths, in tokens."""


def default_lengths(window: int) -> list[int]:
    """1k, doubled up to the window, which is the last."""
    lengths = []
    length = SHORTEST
    while length < window:
        lengths.append(length)
        length *= 2
    return [*lengths, window]


def places(count: int) -> list[float]:
    """So many depths evenly from 0 to 1; one is the middle."""
    return [0.5] if count == 1 else [at / (count - 1) for at in range(count)]


def check_lengths(lengths: Sequence[int], window: int | None, model: str) -> None:
    """Raises ConfigError for a length that no prompt with its answer can have."""
    for length in lengths:
        if window is not None and length > window:
            raise ConfigError(
                f"a length of {length:,} tokens is beyond the window of {model}, which is {window:,} tokens",
                param="lengths",
            )


def make_contexts(
    filler: Filler, lengths: Sequence[int], depths: Sequence[float], n: int, *, seed: int, concurrency: int = 1
) -> Iterator[ContextCase]:
    """`n` contexts of each length, each asked every task at every depth.

    The order is of requests that are made `concurrency` at a time: together those over different contexts, and then
    the next over the same ones, whose beginning an engine has kept.

    Raises ConfigError for a length in which there is no record for each depth.
    """
    for length in lengths:
        filled = []
        for number in range(n):
            context = Context(f"{seed}-{number}")
            records, tokens = filler.fill(context, length - ANSWER_TOKENS)
            if records < len(depths):
                raise ConfigError(
                    f"a length of {length:,} tokens has room for {records} records, and {len(depths)} places need one "
                    "each: give more tokens or fewer places",
                    param="lengths",
                )
            filled.append((context, records, length, tokens))
        for start in range(0, n, concurrency):
            together = [context_cases([one], depths) for one in filled[start : start + concurrency]]
            for same_request in zip(*together, strict=True):
                yield from same_request


def max_answer_tokens(longest: int, window: int | None, most: int) -> int:
    """Tokens of an answer, at most `most`: what the window leaves beyond the longest prompt, for models that think."""
    room = most if window is None else window - longest + ANSWER_TOKENS
    return max(ANSWER_TOKENS, min(most, room))
