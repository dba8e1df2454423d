"""The claims as people read them: values with units, and the page `docs/claims.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from openk2.planner.claims.claim import TOPICS, CheckedClaim, Verdict

SCALES = {
    "B": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")),
    "B/s": ((1e12, "TB/s"), (1e9, "GB/s")),
    "parameters": ((1e12, "T"), (1e9, "B"), (1e6, "M")),
    "tokens": ((1e12, "T tokens"),),
}
"""Unit -> the names of its larger steps, largest first."""


def show(value: float | str | None, unit: str) -> str:
    """A value for a person, with four figures at most; whole counts in full."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if unit == "%":
        return f"{100 * value:.3g}%"
    if unit == "accepted":
        return "accepted" if value else "refused"
    if unit == "s":
        return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"
    if unit.startswith("USD"):
        return f"${value:,.2f}" if value < 100 else f"${value:,.0f}{unit.removeprefix('USD')}"
    for step, name in SCALES.get(unit, ()):
        if abs(value) >= step:
            return f"{value / step:.4g}{'' if unit in ('parameters', 'tokens') else ' '}{name}"
    if value == int(value) and abs(value) < 1e9:
        number = f"{value:,.0f}"
    elif 1e-3 <= abs(value) < 1e6:
        number = f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    else:
        number = f"{value:.3g}"
    return f"{number}x" if unit == "x" else f"{number} {unit}".strip()


def show_value(checked: CheckedClaim) -> str:
    """What the claim was held against; a bound says so."""
    value = show(checked.value, checked.unit)
    return f"at most {value}" if checked.claim.within_bound is not None else value


def evidence(checked: CheckedClaim) -> str:
    """How the value came about: formula, what belongs beside it, source, and what is to be said of it."""
    claim = checked.claim
    parts = [checked.formula] if checked.formula else []
    parts += [f"{about}: {show(quantity.value, quantity.unit)}" for about, quantity in checked.also]
    parts += [f"source: {claim.source}"] if claim.source else []
    return ". ".join(filter(None, ("; ".join(parts), claim.note.rstrip("."))))


INTRODUCTION = """# The public guide, checked

A public guide to Kimi K2-0905 is much repeated, and openk2 implements what it describes. This page holds its figures
against what the planner computes, or against what a named source states. It is generated: `openk2 claims --markdown`;
`openk2 claims --json` has every number unrounded, with the figure, the tolerance and the line of the guide's text.

A figure is **right** within 3% of the value, **approximate** within 15%, else **wrong**; counts must be exact, and
prices and rates have wider bounds, which `--json` shows. A number that is right and says the wrong thing is at best
approximate. **Cited elsewhere**: a measurement of others, which stands in their own table as the guide has it.
**Not checkable**: nothing public that was read settles it, or it lies within what arithmetic allows and names no
measurement. Sizes are decimal: 1 GB is 10^9 bytes. Rates and fits of hardware rest on assumptions that were not
measured, see [planner.md](planner.md).
"""


def _row(one: CheckedClaim) -> str:
    claim = one.claim
    cells = (claim.about, claim.guide, show_value(one), f"**{one.verdict}**", evidence(one))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def markdown(claims: Sequence[CheckedClaim]) -> str:
    """The page."""
    counts = Counter(one.verdict for one in claims)
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)
    lines = [INTRODUCTION, f"{len(claims)} claims: {summary}."]
    for topic in TOPICS:
        rows = [_row(one) for one in claims if one.claim.topic == topic]
        if rows:
            lines += ["", f"## {topic[0].upper()}{topic[1:]}", ""]
            lines += ["| claim | the guide | value | verdict | how |", "|---|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"
