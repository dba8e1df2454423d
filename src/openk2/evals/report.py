"""What an evaluation found, for programs (JSON) and for people (tables)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rich.table import Table

from openk2.chat.messages import Completion
from openk2.evals.cases import Case
from openk2.evals.figures import FIGURES, Share, figures_of
from openk2.evals.scoring import Score, score_reply


@dataclass(frozen=True)
class Report:
    """The replies of one model to cases, scored."""

    model: str
    replies: tuple[tuple[Case, bool, Completion | None], ...]
    """Case, whether the grammar was on, and the reply; None: the request was refused."""

    @cached_property
    def scored(self) -> tuple[tuple[Case, bool, Score], ...]:
        return tuple((case, grammar, score_reply(case, reply)) for case, grammar, reply in self.replies)

    @cached_property
    def runs(self) -> tuple[tuple[str, bool], ...]:
        """The sets and grammar settings that were measured, in order."""
        return tuple(sorted({(case.set, grammar): None for case, grammar, _ in self.replies}, key=_order))

    def figures(self, set_name: str, *, grammar: bool) -> dict[str, Share]:
        """Figure name -> share over one set with one grammar setting; see `openk2.evals.figures.FIGURES`."""
        return figures_of((case, score) for case, on, score in self.scored if case.set == set_name and on is grammar)

    def to_json(self) -> dict[str, Any]:
        """Plain data: per set and grammar setting, each figure with its count, share and 95% interval."""
        return {
            "task": "toolcalls",
            "model": self.model,
            "runs": [
                {
                    "set": set_name,
                    "grammar": grammar,
                    "cases": sum(case.set == set_name and on is grammar for case, on, _ in self.replies),
                    "figures": {
                        name: {
                            "right": share.right,
                            "n": share.n,
                            "share": share.value,
                            "interval_95": list(share.interval or ()),
                        }
                        for name, share in self.figures(set_name, grammar=grammar).items()
                    },
                }
                for set_name, grammar in self.runs
            ],
        }

    def tables(self) -> list[Table]:
        """One table for each set: figures down, grammar settings across; each fits 80 columns."""
        return [self._table(set_name) for set_name in dict.fromkeys(set_name for set_name, _ in self.runs)]

    def _table(self, set_name: str) -> Table:
        settings = [grammar for name, grammar in self.runs if name == set_name]
        columns = [self.figures(set_name, grammar=grammar) for grammar in settings]
        table = Table("figure", title=f"{self.model} on {set_name}", title_justify="left")
        for grammar in settings:
            table.add_column(f"grammar {'on' if grammar else 'off'}", justify="right", no_wrap=True)
        for figure in FIGURES:
            if any(figure.name in column for column in columns):
                table.add_row(figure.name, *(_cell(column.get(figure.name)) for column in columns))
        return table


def _order(run: tuple[str, bool]) -> tuple[str, bool]:
    set_name, grammar = run
    return set_name, not grammar


def _cell(share: Share | None) -> str:
    if share is None or share.value is None or share.interval is None:
        return "-"
    low, high = share.interval
    return f"{share.value:.1%} ({low:.0%}..{high:.0%}) n={share.n}"
