"""`openk2 eval TASK`: measure how good a model is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from openk2.chat.provider import ChatProvider
    from openk2.evals import Case, RecordFile, Report

GENERATED_CASES = 400


class Task(StrEnum):
    toolcalls = "toolcalls"


class CaseSet(StrEnum):
    generated = "generated"
    handwritten = "handwritten"
    builtin = "builtin"
    all = "all"


class Grammar(StrEnum):
    on = "on"
    off = "off"
    both = "both"


def command(
    task: Annotated[Task, typer.Argument(help="What to measure.")],
    model: Annotated[str, typer.Argument(help="k2-nano, a checkpoint folder, or a remote model's name.")] = "k2-nano",
    base_url: Annotated[
        str | None, typer.Option(help="Ask this OpenAI-compatible server; key: OPENAI_API_KEY.")
    ] = None,
    case_set: Annotated[CaseSet, typer.Option("--set", help="Which cases.")] = CaseSet.all,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help=f"Cases per set; else all, and {GENERATED_CASES} generated ones.")
    ] = None,
    grammar: Annotated[
        Grammar | None,
        typer.Option(help="Hold calls to the declared tools while sampling; else both. A server has its own setting."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the generated cases.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    output: Annotated[
        Path | None, typer.Option(help="Keep every reply here (JSON lines); resumes when it exists.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure tool calling: tool choice, arguments, parallel calls, chains, asking back, knowing when not to call.

    Exit codes: 0 measured; 1 the provider failed (what was answered is kept in --output); 2 wrong usage or model.
    """
    from openk2.evals import RecordFile

    sets = [one for one in CaseSet if one is not CaseSet.all] if case_set is CaseSet.all else [case_set]
    cases = [case for one in sets for case in _cases(one, n, seed)]
    if base_url is not None and grammar in (Grammar.off, Grammar.both):
        raise typer.BadParameter("only a model that runs here can be asked without the grammar, not one at --base-url")
    chosen = grammar or (Grammar.both if base_url is None else Grammar.on)
    settings = {Grammar.on: (True,), Grammar.off: (False,), Grammar.both: (True, False)}[chosen]
    run = {"task": task.value, "model": model, "base_url": base_url, "seed": seed}
    with RecordFile(output, run) if output else nullcontext() as records:
        provider = _provider(model, base_url)
        try:
            report = _evaluate(provider, cases, settings, concurrency, records)
        finally:
            close = getattr(provider, "close", None)
            if close is not None:
                close()
    if as_json:
        print(json.dumps({**report.to_json(), "seed": seed}, indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        Console().print(*report.tables(), sep="\n")


def _cases(case_set: CaseSet, n: int | None, seed: int) -> Sequence[Case]:
    """The cases of one set; of a written set, `n` spread evenly over it."""
    from openk2.evals import generated_cases, written_cases

    if case_set is CaseSet.generated:
        from openk2.training.data import held_cases

        return generated_cases(held_cases, n or GENERATED_CASES, seed)
    cases = written_cases(case_set.value)
    if n is None or n >= len(cases):
        return cases
    return [cases[at * len(cases) // n] for at in range(n)]


def _provider(model: str, base_url: str | None) -> ChatProvider:
    if base_url is not None:
        from openk2.client import RemoteProvider

        return RemoteProvider(base_url=base_url, model=model, api_key=os.environ.get("OPENAI_API_KEY"))
    from openk2.llm import LLM

    return LLM(model)


def _evaluate(
    provider: ChatProvider,
    cases: Sequence[Case],
    settings: Iterable[bool],
    concurrency: int,
    records: RecordFile | None,
) -> Report:
    """Evaluate with a progress bar on standard error."""
    from openk2.cli.progress import progress_bar
    from openk2.evals import evaluate

    settings = tuple(settings)
    known = sum(records.find(case, on) is not None for case in cases for on in settings) if records is not None else 0
    with progress_bar("cases", len(cases) * len(settings), done=known) as advance:
        return evaluate(
            provider,
            cases,
            grammar=settings,
            concurrency=concurrency,
            records=records,
            on_record=lambda record: advance(),
        )
