"""`openk2 compare REF RUN`: the records of two verifications."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    reference: Annotated[Path, typer.Argument(metavar="REF", help="Records of the reference (verify --output).")],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Records of the run to judge.")],
    again: Annotated[
        Path | None, typer.Option(help="A second run of the reference: how well it agrees with itself.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the bootstrap's samples.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compare two runs over the same request lines: precision, recall and F1 of calling, schema accuracy.

    Reads the vendor verifier's results too. Exit codes: 0 compared; 2 wrong usage, or records of different lines.
    """
    from openk2.evals.compare import compare
    from openk2.evals.verify import read_records

    known = read_records(reference)
    found = compare(known, read_records(run), seed=seed)
    ceiling = compare(known, read_records(again), seed=seed) if again is not None else None
    if as_json:
        report = found.to_json()
        if ceiling is not None:
            report["reference_again"] = ceiling.to_json()
        print(json.dumps(report, indent=2))
    else:
        from rich.console import Console

        Console().print(found.table(ceiling))
