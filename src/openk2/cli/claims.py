"""`openk2 claims`: the public guide's numbers, checked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from openk2.planner.claims import CheckedClaim


def command(
    topic: Annotated[str | None, typer.Option(help="Only this topic, such as memory or cost.")] = None,
    verdict: Annotated[str | None, typer.Option(help="Only these: right, approximate, wrong ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/claims.md.")] = False,
) -> None:
    """Hold the public guide's figures against what the planner computes.

    Exit codes: 0 shown; 2 wrong usage.
    """
    from openk2.planner.claims import check_claims
    from openk2.planner.claims.page import markdown

    claims = _chosen(check_claims(), topic, verdict)
    if as_json:
        typer.echo(json.dumps({"claims": [claim_json(one) for one in claims]}, indent=2, ensure_ascii=False))
    elif as_markdown:
        typer.echo(markdown(claims), nl=False)
    else:
        _print(claims)


def _chosen(claims: tuple[CheckedClaim, ...], topic: str | None, verdict: str | None) -> tuple[CheckedClaim, ...]:
    from openk2.errors import ConfigError
    from openk2.planner.claims.claim import TOPICS, Verdict

    for name, value, valid in (("topic", topic, TOPICS), ("verdict", verdict, tuple(Verdict))):
        if value is not None and value not in valid:
            raise ConfigError(f"no {name} {value!r}; there are {', '.join(valid)}", param=name)
    return tuple(one for one in claims if topic in (None, one.claim.topic) and verdict in (None, str(one.verdict)))


def claim_json(checked: CheckedClaim) -> dict[str, Any]:
    """One claim; numbers in base units (B, B/s, USD), shares as fractions of 1."""
    from dataclasses import asdict

    claim = checked.claim
    return {
        "id": claim.id,
        "topic": claim.topic,
        "lines": claim.lines,
        "claim": claim.about,
        "guide": claim.guide,
        "figure": claim.figure,
        "value": checked.value,
        "unit": checked.unit,
        "is_bound": claim.within_bound is not None,
        "formula": checked.formula,
        "source": claim.source,
        "error": checked.error,
        "right_within": claim.right_within,
        "approximate_within": claim.approximate_within,
        "verdict": checked.verdict,
        "note": claim.note,
        "also": [{"about": about, **asdict(quantity)} for about, quantity in checked.also],
    }


COLOURS = {
    "right": "green",
    "approximate": "yellow",
    "wrong": "red",
    "cited elsewhere": "cyan",
    "not checkable": "dim",
}


def _print(claims: tuple[CheckedClaim, ...]) -> None:
    from collections import Counter

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from openk2.planner.claims.page import evidence, show_value

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for one in claims:
        value = show_value(one)
        said = f"{one.claim.about}: the guide has {one.claim.guide}" + (f"; here {value}" if value else "")
        table.add_row(Text(one.verdict, style=COLOURS[one.verdict]), Text(said))
        table.add_row("", Text(evidence(one), style="dim"))
    console = Console()
    console.print(table)
    counts = Counter(one.verdict for one in claims)
    console.print(f"{len(claims)} claims: {', '.join(f'{count} {name}' for name, count in counts.items())}")
