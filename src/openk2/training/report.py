"""What a run's log says: figures for a table, charts for a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openk2.training.charts import heat_map, html_table, line_chart, page
from openk2.training.run_log import Entry, RunLog, read_log

SMOOTHED = 50
"""Steps that the smoothed loss is the mean of, and of which a figure's `last` is."""


@dataclass(frozen=True)
class Series:
    """A quantity over the run."""

    name: str
    first: float
    last: float
    """Of a quantity of single steps: the mean of the last `SMOOTHED`."""
    least: float
    most: float


@dataclass(frozen=True)
class RunReport:
    run: str
    steps: int
    tokens: int
    cuts: int
    """How often the run was cut and did some steps again."""
    series: list[Series]
    held_exact_turns: dict[str, str]
    """Of the last validation: right turns / turns, by kind."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


STEP_QUANTITIES: Sequence[tuple[str, Callable[[Entry], float | None]]] = (
    ("loss", lambda e: e.get("loss")),
    ("reward", lambda e: e.get("reward")),
    ("answers right", lambda e: e.get("right")),
    ("learning rate, of its peak", lambda e: e.get("lr_scale")),
    ("max attention logit", lambda e: e.get("max_logit")),
    ("heads clipped", lambda e: e.get("clipped_heads")),
    ("expert imbalance", lambda e: e.get("imbalance")),
    ("update RMS", lambda e: e.get("update_rms")),
    ("gradient norm", lambda e: e.get("grad_norm")),
    ("tokens per second", lambda e: e.get("tokens_per_second")),
)
HELD_QUANTITIES: Sequence[tuple[str, Callable[[Entry], float | None]]] = (
    ("held-out loss", lambda e: e.get("held_loss")),
    ("held-out tokens right", lambda e: e.get("held_token_accuracy")),
    ("held-out whole calls right", lambda e: e["held_exact_calls"] if e.get("held_exact_turns") else None),
)


def run_report(folder: Path) -> tuple[RunReport, RunLog]:
    """The figures of a run's folder, and the log that they are from. Raises DataError as `read_log` does."""
    log = read_log(folder)
    series = [
        *_series(HELD_QUANTITIES, log.validations, 1),
        *_series(STEP_QUANTITIES, log.steps, SMOOTHED),
    ]
    turns = log.validations[-1].get("held_exact_turns", {}) if log.validations else {}
    last = log.steps[-1]
    return RunReport(folder.resolve().name, last["step"], last["tokens"], log.cuts, series, turns), log


def _series(
    quantities: Sequence[tuple[str, Callable[[Entry], float | None]]], entries: Sequence[Entry], smoothed: int
) -> list[Series]:
    found = []
    for name, value in quantities:
        values = [v for e in entries if (v := value(e)) is not None]
        if values:
            end = values[-smoothed:]
            found.append(Series(name, values[0], sum(end) / len(end), min(values), max(values)))
    return found


def _line(entries: Sequence[Entry], value: Callable[[Entry], float | None]) -> list[tuple[float, float]]:
    return [(e["tokens"], v) for e in entries if (v := value(e)) is not None]


def smooth(points: Sequence[tuple[float, float]], window: int = SMOOTHED) -> list[tuple[float, float]]:
    """Each point the mean of itself and up to `window - 1` before it."""
    made, total = [], 0.0
    for i, (x, y) in enumerate(points):
        total += y - (points[i - window][1] if i >= window else 0.0)
        made.append((x, total / min(i + 1, window)))
    return made


def report_page(report: RunReport, log: RunLog) -> str:
    """The report as one HTML page with its charts inside."""
    steps = dict(STEP_QUANTITIES)
    losses = _line(log.steps, steps["loss"])
    held = dict(HELD_QUANTITIES)
    charts = [
        line_chart(
            "Loss, nats",
            {
                "step": losses,
                f"mean of {SMOOTHED}": smooth(losses),
                "held out": _line(log.validations, held["held-out loss"]),
            },
            log_scale=True,
        ),
        line_chart(
            "Held out: share right",
            {
                "tokens": _line(log.validations, held["held-out tokens right"]),
                "whole calls": _line(log.validations, held["held-out whole calls right"]),
            },
        ),
        *(
            line_chart(name[0].upper() + name[1:], {name: _line(log.steps, steps[name])})
            for name in (
                "max attention logit",
                "expert imbalance",
                "update RMS",
                "learning rate, of its peak",
                "gradient norm",
            )
        ),
        *_load_maps(log),
    ]
    table = html_table(("", "first", "last", "least", "most"), [row(s) for s in report.series])
    turns = html_table(("held-out turns", "right"), list(report.held_exact_turns.items()))
    return page(
        f"Run {report.run}: {report.tokens:,} tokens, {report.steps:,} steps",
        [table, *filter(None, charts), turns if report.held_exact_turns else ""],
    )


def _load_maps(log: RunLog) -> list[str]:
    """The experts' load of the last validation's stretch, over its mean."""
    loads = [e["expert_load"] for e in log.validations if e.get("expert_load")]
    rows = [(i, row) for i, row in enumerate(loads[-1]) if sum(row)] if loads else []
    if not rows:
        return []
    shares = [[count * len(row) / sum(row) for count in row] for _, row in rows]
    title = "Expert load before the last validation, over the mean (white 1, red 2, blue 1/2)"
    return [heat_map(title, [f"layer {i}" for i, _ in rows], shares, middle=1.0)]


def row(series: Series) -> tuple[str, ...]:
    """Name and figures as text."""
    return (series.name, *(f"{v:,.4g}" for v in (series.first, series.last, series.least, series.most)))
