"""What an evaluation of long contexts found: a share for each task, length and depth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from rich.table import Table

from openk2.chat.messages import Completion
from openk2.evals.context.cases import ANSWER_TOKENS, ContextCase, ContextTask
from openk2.evals.figures import Share
from openk2.evals.scoring import Score, score_reply


@dataclass(frozen=True)
class ContextReport:
    """The answers of one model."""

    model: str
    window: int | None
    """Tokens of the model's window, where it is known."""
    exact: bool
    """Whether the prompts' tokens were counted, and not estimated."""
    answers: tuple[tuple[ContextCase, Completion | None], ...]
    """None: the request was refused."""

    @cached_property
    def scored(self) -> tuple[tuple[ContextCase, Score], ...]:
        return tuple((one, score_reply(one.case, reply)) for one, reply in self.answers)

    @property
    def tasks(self) -> list[ContextTask]:
        return list(dict.fromkeys(one.task for one, _ in self.answers))

    @property
    def lengths(self) -> list[int]:
        return sorted({one.length for one, _ in self.answers})

    def depths(self, task: ContextTask) -> list[float]:
        """None of a task that needs no record."""
        return sorted({one.depth for one, _ in self.answers if one.task == task and one.depth is not None})

    def share(self, task: ContextTask, length: int, depth: float | None = None) -> Share:
        """Right answers of a cell; without a depth, of all depths together."""
        return _right(
            score
            for one, score in self.scored
            if one.task == task and one.length == length and depth in (None, one.depth)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data: each cell, and each length, with count, share and 95% interval."""
        return {
            "task": "context",
            "model": self.model,
            "window": self.window,
            "exact_lengths": self.exact,
            "answer_tokens": ANSWER_TOKENS,
            "cells": [
                {"task": task, "length": length, "depth": depth, **_plain(self.share(task, length, depth))}
                for task in self.tasks
                for length in self.lengths
                for depth in self.depths(task)
            ],
            "lengths": [
                {
                    "task": task,
                    "length": length,
                    "prompt_tokens": round(fmean(one.prompt_tokens for one, _ in self.answers if one.length == length)),
                    **_plain(self.share(task, length)),
                    "unparsed": sum(s.unparsed for one, s in self.scored if (one.task, one.length) == (task, length)),
                    "failed": sum(s.failed for one, s in self.scored if (one.task, one.length) == (task, length)),
                }
                for task in self.tasks
                for length in self.lengths
            ],
        }

    def tables(self) -> list[Table]:
        """One for each task: lengths down, depths across, all depths last; with five depths it fits 80 columns."""
        return [self._table(task) for task in self.tasks]

    def _table(self, task: ContextTask) -> Table:
        depths = self.depths(task)
        n = self.share(task, self.lengths[0], *depths[:1]).n
        about = "" if self.exact else ", lengths estimated"
        title = f"{self.model}, {task}: % right, 95% interval, n={n} each{about}"
        table = Table("tokens", title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.min_width = len(title)  # else rich folds it over a narrow table
        for depth in depths:
            table.add_column(f"{depth:.0%} deep", justify="right", no_wrap=True)
        table.add_column("all", justify="right", no_wrap=True)
        for length in self.lengths:
            cells = [self.share(task, length, depth) for depth in (*depths, None)]
            table.add_row(f"{length:,}", *map(_cell, cells))
        return table


def _right(scores: Iterable[Score]) -> Share:
    right = [score.right_calls for score in scores]
    return Share(sum(right), len(right))


def _plain(share: Share) -> dict[str, Any]:
    interval = list(share.interval or ())
    return {"right": share.right, "n": share.n, "share": share.value, "interval_95": interval}


def _cell(share: Share) -> str:
    if share.value is None or share.interval is None:
        return "-"
    low, high = share.interval
    return f"{100 * share.value:.0f} {100 * low:.0f}-{100 * high:.0f}"
