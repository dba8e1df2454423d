"""Charts as SVG text, for pages that load nothing: lines over tokens, and heat maps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#64748b")
WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 28, 30
FEW_POINTS = 40
"""Of one line: so few are marked each."""
MOST_POINTS = 360
"""Of one line; more are drawn as the means of equal stretches."""


def line_chart(title: str, lines: Mapping[str, Points], *, log_scale: bool = False) -> str:
    """Lines over a common axis of tokens, the first thin and the others thick where there are several.

    Points that are no finite numbers (on a logarithmic scale: none above 0) are left out.
    """
    drawn = {name: _thinned([p for p in points if _fits(p[1], log_scale)]) for name, points in lines.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    ys = [y for points in drawn.values() for _, y in points]
    xs = [x for points in drawn.values() for x, _ in points]
    if not ys:
        return ""
    scale = math.log10 if log_scale else float
    low, high = scale(min(ys)), scale(max(ys))
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    left, right = min(xs), max(max(xs), min(xs) + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        up = (scale(y) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return LEFT + across, HEIGHT - BOTTOM - up

    parts = [_head(title, WIDTH, HEIGHT)]
    for tick in _ticks(low, high):
        value = 10**tick if log_scale else tick
        y = place(left, value)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for tick in _ticks(left, right):
        x = place(tick, ys[0])[0]
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{_count(tick)}</text>')
    for i, (name, points) in enumerate(drawn.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in points))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="{1 + (i > 0)}" points="{path}"/>')
        if len(points) <= FEW_POINTS:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in (place(*p) for p in points)
            ]
        at = LEFT + 8 + 150 * i
        parts.append(f'<rect x="{at}" y="{TOP}" width="10" height="3" fill="{colour}"/>')
        parts.append(f'<text x="{at + 14}" y="{TOP + 5}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"])


def heat_map(title: str, rows: Sequence[str], values: Sequence[Sequence[float]], *, middle: float) -> str:
    """One row of cells a name; `middle` is white, half of it and less blue, twice and more red, by the logarithm."""
    columns = max(map(len, values), default=0)
    if not columns:
        return ""
    cell = max(4.0, min(22.0, (WIDTH - 2 * LEFT) / columns))
    height = TOP + 18 * len(rows) + BOTTOM
    parts = [_head(title, WIDTH, height)]
    for i, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = TOP + 18 * i
        parts.append(f'<text x="{2 * LEFT - 6}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        for j, value in enumerate(row):
            colour = _heat(value / middle if middle else 0.0)
            parts.append(
                f'<rect x="{2 * LEFT + j * cell:.1f}" y="{y}" width="{cell:.1f}" height="17" fill="{colour}">'
                f"<title>{escape(name)}, {j}: {value:.3g}</title></rect>"
            )
    parts.append(f'<text x="{2 * LEFT}" y="{height - 10}">expert 0 to {columns - 1}</text>')
    return "\n".join([*parts, "</svg>"])


def page(title: str, blocks: Sequence[str]) -> str:
    """A whole HTML page: nothing is loaded from elsewhere, no script runs."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(title)}</h1>" + "\n".join(blocks) + "</body></html>\n"
    )


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is text, the others are numbers."""
    lines = ["<table><tr>" + "".join(f"<th>{escape(h)}" for h in head) + "</tr>"]
    for first, *others in rows:
        lines.append(f"<tr><td>{escape(first)}" + "".join(f'<td class="n">{escape(o)}' for o in others) + "</tr>")
    return "\n".join([*lines, "</table>"])


_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } svg { width: 100%; height: auto; margin: .8rem 0 }
table { border-collapse: collapse } th, td { text-align: left; padding: .2rem .8rem .2rem 0 }
td.n { text-align: right; font-variant-numeric: tabular-nums }
"""


def _head(title: str, width: int, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="sans-serif" '
        'font-size="11" fill="currentColor"><style>.grid { stroke: currentColor; stroke-opacity: .15 }</style>'
        f'<text x="{LEFT}" y="14" font-size="13" font-weight="600">{escape(title)}</text>'
    )


def _fits(y: float, log_scale: bool) -> bool:
    return math.isfinite(y) and (y > 0 or not log_scale)


def _thinned(points: Points) -> Points:
    stretch = -(-len(points) // MOST_POINTS)
    if stretch <= 1:
        return points
    parts = [points[i : i + stretch] for i in range(0, len(points), stretch)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _ticks(low: float, high: float) -> Iterator[float]:
    """Three to seven round numbers between `low` and `high`."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    number = math.ceil(low / step)
    while number * step <= high:
        yield number * step
        number += 1


def _count(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _heat(ratio: float) -> str:
    depth = max(-1.0, min(1.0, math.log2(ratio))) if ratio > 0 else -1.0
    faded = round(255 - 170 * abs(depth))
    return f"rgb(255,{faded},{faded})" if depth > 0 else f"rgb({faded},{faded},255)"
