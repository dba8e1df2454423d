"""What verification says: checks, which pass or fail, and figures, which are only reported."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SHOWN_FAULTS = 3


@dataclass(frozen=True)
class Check:
    """One thing that a faithful deployment does."""

    group: str
    name: str
    asked: int
    """How many answers were looked at; none: the check was not applicable, and is skipped."""
    faults: tuple[str, ...] = ()
    """One line for each answer that failed it."""
    note: str = ""
    """Why it was skipped."""

    @property
    def outcome(self) -> str:
        """passed, failed or skipped"""
        return "failed" if self.faults else "passed" if self.asked else "skipped"

    @property
    def detail(self) -> str:
        """A line for a person: the first faults, or why it was skipped."""
        if not self.faults:
            return self.note
        more = len(self.faults) - SHOWN_FAULTS
        return "; ".join(self.faults[:SHOWN_FAULTS]) + (f"; and {more} more" if more > 0 else "")


def check_of(group: str, name: str, results: Iterable[str | None]) -> Check:
    """A check over many answers, of which each gives None or its fault."""
    results = list(results)
    return Check(group, name, len(results), tuple(fault for fault in results if fault is not None))


@dataclass(frozen=True)
class Figure:
    """A number that needs a reference, or a person, to be judged."""

    name: str
    value: float | None
    meaning: str
    counted: int = 0
    """The answers that it is about."""
    percent: bool = True

    @property
    def shown(self) -> str:
        if self.value is None:
            return "-"
        return f"{self.value:.1%}" if self.percent else f"{self.value:,.4g}"
