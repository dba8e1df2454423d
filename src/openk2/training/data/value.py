"""A value of an argument, with the words for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openk2.training.data.dice import Dice

_NUMBERS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 20, 30, 40, 50, 60, 90)
SPOKEN = dict(
    zip(
        _NUMBERS,
        (
            "one two three four five six seven eight nine ten eleven twelve fifteen "
            "twenty thirty forty fifty sixty ninety"
        ).split(),
        strict=True,
    )
)
"""Numbers that are now and then said as words."""


@dataclass(frozen=True)
class Value:
    """An argument value and the words that stand for it in a request."""

    value: Any
    surface: str
    verbatim: bool = True
    """False where the call carries something else than the words said (a language code, a number said as a word)."""


def plain(text: str) -> Value:
    """A value that is said as it is."""
    return Value(text, text)


def enumeration(items: Sequence[str], rng: Dice) -> str:
    """`a, b and c`."""
    if len(items) == 1:
        return items[0]
    return ", ".join(items[:-1]) + rng.choice((" and ", " and ", ", ")) + items[-1]


def listed(texts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]
