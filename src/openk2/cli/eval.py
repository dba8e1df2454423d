"""`openk2 eval TASK`: measure how good a model is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from openk2.chat.provider import ChatProvider
    from openk2.config import SamplingParams
    from openk2.evals import Case, RecordFile, Report
    from openk2.evals.context import ContextReport

GENERATED_CASES = 400
CONTEXT_CASES = 10
CONTEXT_PLACES = 5


class _Tasks(TyperGroup):
    """Tells which tasks there are."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            ctx.fail(f"there is no evaluation {args[0]!r}; there are {' and '.join(self.commands)}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Tasks,
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Measure how good a model is.",
)


class CaseSet(StrEnum):
    generated = "generated"
    handwritten = "handwritten"
    builtin = "builtin"
    all = "all"


class Grammar(StrEnum):
    on = "on"
    off = "off"
    both = "both"


Model = Annotated[str, typer.Argument(help="k2-nano, a checkpoint folder, or a remote model's name.")]
BaseUrl = Annotated[str | None, typer.Option(help="Ask this OpenAI-compatible server; key: OPENAI_API_KEY.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests at a time.")]
Output = Annotated[Path | None, typer.Option(help="Keep every reply here (JSON lines); resumes when it exists.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


@app.command()
def toolcalls(
    model: Model = "k2-nano",
    base_url: BaseUrl = None,
    case_set: Annotated[CaseSet, typer.Option("--set", help="Which cases.")] = CaseSet.all,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help=f"Cases per set; else all, and {GENERATED_CASES} generated ones.")
    ] = None,
    grammar: Annotated[
        Grammar | None,
        typer.Option(help="Hold calls to the declared tools while sampling; else both. A server has its own setting."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the generated cases.")] = 0,
    concurrency: Concurrency = 8,
    output: Output = None,
    as_json: AsJson = False,
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
    run = {"task": "toolcalls", "model": model, "base_url": base_url, "seed": seed}
    with RecordFile(output, run) if output else nullcontext() as records, _opened(model, base_url) as provider:
        report = _evaluate(provider, cases, settings, concurrency, records)
    _print(report, seed, as_json)


@app.command()
def context(
    model: Model = "k2-nano",
    base_url: BaseUrl = None,
    lengths: Annotated[
        str | None,
        typer.Option(help="Tokens of prompt and answer, such as 1k,4k,16k; else 1k, doubled up to the model's window."),
    ] = None,
    depths: Annotated[
        int, typer.Option(min=1, help="At how many places, evenly from the beginning to the end, what is asked lies.")
    ] = CONTEXT_PLACES,
    n: Annotated[int, typer.Option("--n", min=1, help="Contexts of each length: cases at each place.")] = CONTEXT_CASES,
    seed: Annotated[int, typer.Option(help="Draws the texts.")] = 0,
    concurrency: Concurrency = 8,
    output: Output = None,
    plot: Annotated[
        Path | None, typer.Option(help="Folder for heat maps as PNG and SVG (needs openk2[plots]).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how far back a model reads: needle and copy tasks in long conversations with tools.

    Exit codes: 0 measured; 1 the provider failed (what was answered is kept in --output); 2 wrong usage or model.
    """
    from openk2.evals import RecordFile

    if plot is not None:
        _draw([], plot)  # raises before minutes of measuring what it would raise after them
    wanted = _lengths(lengths)
    run = {"task": "context", "model": model, "base_url": base_url, "seed": seed}
    with RecordFile(output, run) if output else nullcontext() as records, _opened(model, base_url) as provider:
        report = _evaluate_contexts(provider, wanted, depths, n, seed, concurrency, records)
    if plot is not None:
        _draw([report], plot)
    _print(report, seed, as_json)


def _lengths(text: str | None) -> list[int] | None:
    from openk2.planner import read_tokens

    if text is None:
        return None
    return sorted({read_tokens(part.strip(), param="lengths") for part in text.split(",") if part.strip()})


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


@contextmanager
def _opened(model: str, base_url: str | None) -> Iterator[ChatProvider]:
    provider = _provider(model, base_url)
    try:
        yield provider
    finally:
        close = getattr(provider, "close", None)
        if close is not None:
            close()


def _evaluate(
    provider: ChatProvider,
    cases: Sequence[Case],
    settings: Iterable[bool],
    concurrency: int,
    records: RecordFile | None,
    sampling: SamplingParams | None = None,
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
            sampling=sampling,
            records=records,
            on_record=lambda record: advance(),
        )


def _evaluate_contexts(
    provider: ChatProvider,
    lengths: Sequence[int] | None,
    depths: int,
    n: int,
    seed: int,
    concurrency: int,
    records: RecordFile | None,
) -> ContextReport:
    import asyncio

    from openk2.config import SamplingParams
    from openk2.errors import ConfigError
    from openk2.evals.context import (
        ContextReport,
        Filler,
        check_lengths,
        default_lengths,
        make_contexts,
        max_answer_tokens,
        places,
        token_counter,
    )
    from openk2.evals.runner import MAX_ANSWER_TOKENS

    window: int | None = getattr(provider, "max_model_len", None)
    if not lengths:
        if window is None:
            raise ConfigError(f"{provider.model} does not tell its window: give --lengths", param="lengths")
        lengths = default_lengths(window)
    check_lengths(lengths, window, provider.model)
    count, exact = asyncio.run(token_counter(provider))
    asked = list(make_contexts(Filler(count), lengths, places(depths), n, seed=seed, concurrency=concurrency))
    most = max_answer_tokens(max(lengths), window, MAX_ANSWER_TOKENS)
    sampling = SamplingParams(temperature=0.0, max_tokens=most)
    found = _evaluate(provider, [one.case for one in asked], (True,), concurrency, records, sampling)
    answers = tuple((one, reply) for one, (_, _, reply) in zip(asked, found.replies, strict=True))
    return ContextReport(found.model, window, exact, answers)


def _draw(reports: Sequence[ContextReport], folder: Path) -> None:
    from openk2.planner.plots import HeatMap, draw

    maps = [
        HeatMap(
            name=f"context-{task}",
            title=f"{report.model}, {task}",
            x_label="tokens of context",
            y_label="place of what is asked",
            columns=tuple(f"{length:,}" for length in report.lengths),
            rows=tuple(f"{depth:.0%}" for depth in report.depths(task)),
            values=tuple(
                tuple(report.share(task, length, depth).value or 0.0 for length in report.lengths)
                for depth in report.depths(task)
            ),
        )
        for report in reports
        for task in report.tasks
        if report.depths(task)
    ]
    for file in draw(maps, folder):
        typer.echo(str(file), err=True)


def _print(report: Report | ContextReport, seed: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**report.to_json(), "seed": seed}, indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        Console().print(*report.tables(), sep="\n")
