"""`openk2 train RECIPE --sweep KEY=V1,V2,...`: the runs, and a table of how they ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from openk2.errors import ConfigError, DivergedError


def train_sweep(
    recipe: Path,
    overrides: Sequence[str],
    axes: Sequence[str],
    output: Path | None,
    *,
    device: str,
    max_seconds: float | None,
    as_json: bool,
) -> None:
    """Raises ConfigError for axes or values that are wrong, before the first run, and DivergedError when all of the
    runs diverged."""
    import torch.distributed as dist

    from openk2.cli.train_progress import reporter, run_progress
    from openk2.training.recipe import load_recipe
    from openk2.training.sweep import combinations, parse_axis, run_sweep

    if dist.is_torchelastic_launched():
        raise ConfigError("--sweep trains in one process: start it without torchrun", param="sweep")
    rows = combinations([parse_axis(axis) for axis in axes])
    runs = {" ".join(row): load_recipe(recipe, [*overrides, *row]) for row in rows}
    folder = output or Path("runs") / f"{load_recipe(recipe, overrides).name}-sweep"
    if as_json:

        def tell(run: str, record: dict[str, Any]) -> None:
            typer.echo(json.dumps({"run": run, **record}))

        outcomes = run_sweep(runs, folder, device=device, max_seconds=max_seconds, report=tell)
        typer.echo(json.dumps({"sweep": [asdict(outcome) for outcome in outcomes]}))
    else:
        with run_progress() as progress:
            shown: dict[str, Callable[[dict[str, Any]], None]] = {}

            def show(run: str, record: dict[str, Any]) -> None:
                if run not in shown:
                    shown[run] = reporter(progress, runs[run].schedule.total_tokens, name=run)
                shown[run](record)

            outcomes = run_sweep(runs, folder, device=device, max_seconds=max_seconds, report=show)
        _print_table(folder, outcomes, len(runs))
    if len(outcomes) == len(runs) and all(outcome.status == "diverged" for outcome in outcomes):
        raise DivergedError("every run of the sweep diverged: a loss or gradient was no finite number")


def _print_table(folder: Path, outcomes: Sequence[Any], runs: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from openk2.training.sweep import OUTCOME_COLUMNS, outcome_rows

    typer.echo(f"{folder}: {len(outcomes)} of {runs} runs have ended")
    table = Table(box=None)
    for at, name in enumerate(OUTCOME_COLUMNS):
        table.add_column(name, justify="right" if at else "left", overflow="fold")
    for row in outcome_rows(outcomes):
        table.add_row(*row)
    Console().print(table)
