"""Two runs over the same request lines: does the second call tools where the first, the reference, does?

A positive is an answer with finish_reason `tool_calls`, as the vendor's acceptance has it. Intervals are bootstrap
percentiles over request lines (B. Efron, Annals of Statistics 7, 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from openk2.errors import DataError
from openk2.evals.verify.records import Record

RESAMPLES = 2000
LEVEL = 0.95
_CHUNK = 100
"""Resamples drawn at a time, which bounds the memory of large runs."""


@dataclass(frozen=True)
class Estimate:
    """A figure between 0 and 1 with its interval; None where nothing was counted."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0

    @property
    def shown(self) -> str:
        if self.value is None:
            return "-"
        interval = "" if self.low is None or self.high is None else f" ({self.low:.1%}..{self.high:.1%})"
        return f"{self.value:.2%}{interval}"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    lines: int
    """Request lines that both runs answered."""
    left_out: int
    """Lines that only one run has, or that one of them failed to answer."""
    precision: Estimate
    recall: Estimate
    f1: Estimate
    schema_accuracy: tuple[Estimate, Estimate]
    """Of the reference and of the run, over the lines compared."""
    same_calls: Estimate
    """Of lines where both call: the same names in the same order."""

    def to_json(self) -> dict[str, Any]:
        def plain(estimate: Estimate) -> dict[str, Any]:
            return {"value": estimate.value, "interval_95": [estimate.low, estimate.high], "n": estimate.n}

        return {
            "lines": self.lines,
            "left_out": self.left_out,
            "tool_call_precision": plain(self.precision),
            "tool_call_recall": plain(self.recall),
            "tool_call_f1": plain(self.f1),
            "schema_accuracy": {
                "reference": plain(self.schema_accuracy[0]),
                "run": plain(self.schema_accuracy[1]),
            },
            "same_calls": plain(self.same_calls),
        }

    def table(self, ceiling: Comparison | None = None) -> Table:
        """One row for each figure; `ceiling` is the reference compared with itself run again."""
        left_out = f", {self.left_out} left out" if self.left_out else ""
        table = Table("figure", title=f"{self.lines} request lines{left_out}", title_justify="left")
        table.add_column("run (95% interval)", justify="right")
        columns = [self._estimates(), *([ceiling._estimates()] if ceiling is not None else [])]
        if ceiling is not None:
            table.add_column("reference again", justify="right")
        for name in columns[0]:
            table.add_row(name, *(column[name].shown for column in columns))
        return table

    def _estimates(self) -> dict[str, Estimate]:
        return {
            "precision": self.precision,
            "recall": self.recall,
            "F1": self.f1,
            "same calls": self.same_calls,
            "schema accuracy": self.schema_accuracy[1],
            "schema accuracy, reference": self.schema_accuracy[0],
        }


def compare(reference: Sequence[Record], run: Sequence[Record], *, seed: int = 0) -> Comparison:
    """Join two runs by `data_index`. Lines that were not answered in both are left out, and counted.

    Raises DataError when a line of the two asks different things, or when nothing is left to compare.
    """
    others = {record.data_index: record for record in run}
    pairs = [(record, others[record.data_index]) for record in reference if record.data_index in others]
    for one, other in pairs:
        if one.request.get("messages") != other.request.get("messages"):
            raise DataError(f"line {one.data_index} asks different things in the two runs: they cannot be compared")
    answered = [pair for pair in pairs if pair[0].status == pair[1].status == "success"]
    if not answered:
        raise DataError("the two runs have no request line that both answered")
    wanted, called = (np.array([_calls(pair[side]) for pair in answered]) for side in (0, 1))
    draws = _resamples(len(answered), seed)
    return Comparison(
        lines=len(answered),
        left_out=len({record.data_index for record in (*reference, *run)}) - len(answered),
        precision=_estimate(wanted & called, called, draws),
        recall=_estimate(wanted & called, wanted, draws),
        # F1 is the harmonic mean of the two: 2 TP / (2 TP + FP + FN).
        f1=_estimate(2.0 * (wanted & called), 1.0 * wanted + called, draws, n=len(answered)),
        schema_accuracy=(
            _estimate(np.array([one.tool_calls_valid is True for one, _ in answered]) & wanted, wanted, draws),
            _estimate(np.array([other.tool_calls_valid is True for _, other in answered]) & called, called, draws),
        ),
        same_calls=_estimate(
            np.array([_names(one) == _names(other) for one, other in answered]) & wanted & called,
            wanted & called,
            draws,
        ),
    )


def _calls(record: Record) -> bool:
    return record.finish_reason == "tool_calls"


def _names(record: Record) -> list[str]:
    return [call.name for call in record.calls]


def _resamples(n: int, seed: int) -> list[np.ndarray]:
    """How often each line is drawn: chunks of (resamples, n)."""
    generator = np.random.default_rng(seed)
    chunks = [min(_CHUNK, RESAMPLES - start) for start in range(0, RESAMPLES, _CHUNK)]
    return [generator.multinomial(n, np.full(n, 1.0 / n), size=chunk) for chunk in chunks]


def _estimate(hits: np.ndarray, counted: np.ndarray, draws: Sequence[np.ndarray], n: int | None = None) -> Estimate:
    """The share sum(hits) / sum(counted); resamples that count nothing say nothing."""
    hits, counted = hits.astype(float), counted.astype(float)
    if not counted.sum():
        return Estimate(None)
    tops = np.concatenate([draw @ hits for draw in draws])
    bottoms = np.concatenate([draw @ counted for draw in draws])
    shares = tops[bottoms > 0] / bottoms[bottoms > 0]
    low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(hits.sum() / counted.sum()), float(low), float(high), n or int(counted.sum()))
