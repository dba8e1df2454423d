"""Figures as PNG and SVG, with matplotlib (the extra `plots`)."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openk2.errors import EnvironmentFault
from openk2.planner.curves import Figure

FORMATS = ("png", "svg")


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Shares from 0 to 1 over two axes."""

    name: str
    """Of the file, without its ending."""
    title: str
    x_label: str
    y_label: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    """One tuple a row."""


def draw(figures: Sequence[Figure | HeatMap], folder: Path) -> list[Path]:
    """Write every figure in every format into `folder`, which is made if need be; the files.

    Raises EnvironmentFault without matplotlib, or where the folder cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError as error:
        raise EnvironmentFault(
            f"plots need {error.name}, which is not installed; add it with: pip install 'openk2[plots]'"
        ) from None
    written = []
    # A canvas of its own needs neither a display nor global state; without a date and with fixed ids the same plan
    # gives the same SVG.
    with matplotlib.rc_context({"svg.hashsalt": "openk2", "font.size": 9}):
        for figure in figures:
            canvas = Canvas(figsize=(7, 4.2), layout="constrained")
            if isinstance(figure, HeatMap):
                _draw_map(figure, canvas.subplots())
            else:
                _draw(figure, canvas.subplots())
            written += [_save(canvas, folder / f"{figure.name}.{ending}") for ending in FORMATS]
    return written


def _draw(figure: Figure, axes: Any) -> None:
    if figure.is_stacked:
        names = [line.name for line in figure.lines]
        axes.stackplot(figure.lines[0].x, [line.y for line in figure.lines], labels=names, alpha=0.85)
    else:
        for line in figure.lines:
            axes.plot(line.x, line.y, label=line.name)
    if figure.limit is not None:
        name, level = figure.limit
        axes.axhline(level, color="black", linestyle="--", label=name)
    axes.set(title=figure.title, xlabel=figure.x_label, ylabel=figure.y_label)
    axes.set_xscale("log", base=figure.x_base)
    axes.xaxis.set_major_formatter(lambda x, _position: f"{x:,.0f}")
    if figure.is_log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=8)


def _draw_map(figure: HeatMap, axes: Any) -> None:
    axes.imshow(figure.values, vmin=0.0, vmax=1.0, cmap="RdYlGn", aspect="auto")
    for y, row in enumerate(figure.values):
        for x, value in enumerate(row):
            axes.text(x, y, f"{value:.0%}", ha="center", va="center", fontsize=8)
    axes.set(title=figure.title, xlabel=figure.x_label, ylabel=figure.y_label)
    axes.set_xticks(range(len(figure.columns)), figure.columns)
    axes.set_yticks(range(len(figure.rows)), figure.rows)


def _save(canvas: Any, file: Path) -> Path:
    ending = file.suffix[1:]
    drawn = io.BytesIO()
    canvas.savefig(drawn, format=ending, dpi=150, metadata={"Date": None} if ending == "svg" else None)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(drawn.getvalue())
        aside.replace(file)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {file}: {error.strerror}") from None
    return file
