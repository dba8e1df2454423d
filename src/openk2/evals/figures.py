"""Shares with their intervals, and which of them an evaluation of tool calls reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from openk2.evals.cases import CALLING_KINDS, Case
from openk2.evals.scoring import Score

Z_95 = 1.959963984540054
"""The normal distribution's two-sided 95% quantile."""


@dataclass(frozen=True)
class Share:
    """`right` of `n`."""

    right: int
    n: int

    @property
    def value(self) -> float | None:
        """Between 0 and 1; None of nothing."""
        return self.right / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% Wilson score interval (E. B. Wilson, JASA 22, 1927): unlike the normal one, sound near 0 and 1."""
        if not self.n:
            return None
        share, z2 = self.right / self.n, Z_95 * Z_95
        center = (share + z2 / (2 * self.n)) / (1 + z2 / self.n)
        half = Z_95 / (1 + z2 / self.n) * math.sqrt(share * (1 - share) / self.n + z2 / (4 * self.n * self.n))
        return max(0.0, center - half), min(1.0, center + half)


Test = Callable[[Case, Score], bool]


@dataclass(frozen=True)
class Figure:
    """One line of a report: of the replies that are `counted`, the share that is `right`."""

    name: str
    meaning: str
    counted: Test
    right: Test


def _of(*kinds: str) -> Test:
    return lambda case, score: case.kind in kinds


def _wants_text(case: Case, score: Score) -> bool:
    return case.kind not in CALLING_KINDS


FIGURES: tuple[Figure, ...] = (
    Figure("tool choice", "one call wanted: one call, of the right tool", _of("single"), lambda c, s: s.right_tools),
    Figure(
        "arguments",
        "right tool chosen: all arguments right",
        lambda c, s: c.kind == "single" and s.right_tools,
        lambda c, s: s.right_calls,
    ),
    Figure("whole call", "one call wanted: tool and arguments right", _of("single"), lambda c, s: s.right_calls),
    Figure("parallel", "several calls wanted: all right, in any order", _of("parallel"), lambda c, s: s.right_calls),
    Figure("chain", "call after a result: tool and arguments right", _of("chain"), lambda c, s: s.right_calls),
    Figure("ask-back", "an argument is missing: asks, calls nothing", _of("ask_back"), lambda c, s: s.asks),
    Figure("no tool fits", "no tool fits: calls nothing", _of("no_tool"), lambda c, s: s.no_call),
    Figure("no-call precision", "called nothing: no call was right", lambda c, s: s.no_call, _wants_text),
    Figure("no-call recall", "no call was right: called nothing", _wants_text, lambda c, s: s.no_call),
    Figure("text answer", "last result given: tells it, calls nothing", _of("answer"), lambda c, s: s.right_text),
    Figure("chat", "small talk: talks, calls nothing", _of("chat"), lambda c, s: s.right_text),
    Figure("unparsed", "broken calls or cut off (less is better)", lambda c, s: True, lambda c, s: s.unparsed),
    Figure("failed", "requests refused (less is better)", lambda c, s: True, lambda c, s: s.failed),
)


def figures_of(scored: Iterable[tuple[Case, Score]], figures: Sequence[Figure] = FIGURES) -> dict[str, Share]:
    """Figure name -> share, leaving out figures that count none of these cases."""
    scored = list(scored)
    shares = {}
    for figure in figures:
        counted = [(case, score) for case, score in scored if figure.counted(case, score)]
        if counted:
            shares[figure.name] = Share(sum(figure.right(case, score) for case, score in counted), len(counted))
    return shares
