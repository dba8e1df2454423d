"""What a verification found, for programs (JSON) and for people (tables)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from rich.markup import escape
from rich.table import Table

from openk2 import __version__
from openk2.evals.verify.check import Check, Figure

_SIGNS = {"passed": "[green]pass[/]", "failed": "[red]FAIL[/]", "skipped": "[dim]skip[/]"}
_MOST_ROWS = 12
"""A group of more checks is one row, but for its failed ones."""


@dataclass(frozen=True)
class Report:
    url: str
    model: str
    summary: Mapping[str, Any]
    """Of the request lines, with the vendor verifier's keys."""
    checks: tuple[Check, ...]
    figures: tuple[Figure, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.outcome != "failed" for check in self.checks)

    @property
    def place(self) -> str:
        """The URL without a user's name and password."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    @property
    def verdict(self) -> str:
        counts = {name: sum(check.outcome == name for check in self.checks) for name in _SIGNS}
        return f"{counts['passed']} checks passed, {counts['failed']} failed, {counts['skipped']} skipped"

    def to_json(self) -> dict[str, Any]:
        return {
            "openk2": __version__,
            "url": self.place,
            "model": self.model,
            "passed": self.passed,
            "summary": dict(self.summary),
            "checks": [
                {
                    "group": check.group,
                    "name": check.name,
                    "outcome": check.outcome,
                    "asked": check.asked,
                    "faults": list(check.faults),
                    "note": check.note,
                }
                for check in self.checks
            ],
            "figures": [asdict(figure) for figure in self.figures],
        }

    def tables(self) -> list[Table]:
        """The checks, and the figures that are not judged."""
        checks = Table("check", "", "answers", "faults", title=f"{self.model} at {self.place}", title_justify="left")
        for group, members in self.groups():
            checks.add_row(f"[bold]{escape(group)}[/]", "", "", "")
            shown = [check for check in members if len(members) <= _MOST_ROWS or check.outcome == "failed"]
            for check in shown:
                checks.add_row(f"  {escape(check.name)}", _SIGNS[check.outcome], str(check.asked), escape(check.detail))
            if len(shown) < len(members):
                checks.add_row(f"  {len(members) - len(shown)} others", _SIGNS["passed"], "", "")
        figures = Table("reported, not judged", "", "answers", "", title_justify="left")
        for figure in self.figures:
            figures.add_row(figure.name, figure.shown, str(figure.counted), figure.meaning)
        return [checks, figures]

    def groups(self) -> Iterator[tuple[str, list[Check]]]:
        """The checks by group, in order."""
        for group in dict.fromkeys(check.group for check in self.checks):
            yield group, [check for check in self.checks if check.group == group]
