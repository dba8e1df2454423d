"""`openk2 verify URL`: is a deployment faithful."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from openk2.client import RemoteProvider
    from openk2.evals.verify import Report, SchemaCase


def command(
    url: Annotated[str | None, typer.Argument(help="An OpenAI-compatible endpoint, with or without /v1.")] = None,
    model: Annotated[str | None, typer.Option(help="Its model; else the first that it lists.")] = None,
    requests: Annotated[
        Path | None, typer.Option(help="Request lines (JSON lines of whole bodies) instead of generated ones.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Generated request lines.")] = 100,
    schemas: Annotated[int, typer.Option(min=0, help="Generated schemas, each asked twice.")] = 30,
    seed: Annotated[int, typer.Option(help="Draws the generated lines and schemas.")] = 0,
    schema_cases: Annotated[
        Path | None, typer.Option(help="A folder of published schemas (*.jsonl, *.json), asked as well.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=1, help="Of every request line.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of every request line.")] = None,
    extra_body: Annotated[str, typer.Option(help="Further fields of every request line, as a JSON object.")] = "{}",
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Requests at a time, at most. Left out: 8, and once 32 to see load.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds of silence after which a request fails.")] = 600.0,
    output: Annotated[
        Path | None, typer.Option(help="Keep a record of every line here (JSON lines); resumes when it exists.")
    ] = None,
    write_requests: Annotated[
        Path | None, typer.Option(help="Only write the generated lines to this file, and ask nothing.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write the checks to this file as JUnit XML.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report to this file as one HTML page.")] = None,
) -> None:
    """Check whether a deployment answers as the model's vendor means it: tool calls above all. Key: OPENAI_API_KEY.

    Exit codes: 0 every check passed; 1 one failed, or the endpoint cannot be used; 2 wrong usage or input.
    """
    from openk2.evals.verify import generate_lines, html_page, junit_xml, write_lines

    if write_requests is not None:
        write_lines(write_requests, generate_lines(n, seed))
        return
    if url is None:
        raise typer.BadParameter("give the URL of an endpoint, such as http://127.0.0.1:8000", param_hint="URL")
    for file in (junit, html):
        if file is not None and not file.parent.is_dir():  # found out before the questions, not after
            raise typer.BadParameter(f"{file.parent} is no folder", param_hint="--junit, --html")
    extra = _object(extra_body)
    cases = _schema_cases(schemas, seed, schema_cases)
    report = _verify(
        _provider(url, model, timeout),
        cases,
        requests=requests,
        n=n,
        seed=seed,
        overrides={"temperature": temperature, "max_tokens": max_tokens, "extra_body": extra},
        concurrency=concurrency,
        output=output,
    )
    if junit is not None:
        _write(junit, junit_xml(report))
    if html is not None:
        _write(html, html_page(report))
    if as_json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        Console().print(*report.tables(), report.verdict, sep="\n")
    if not report.passed:
        raise typer.Exit(1)


def _write(path: Path, text: str) -> None:
    from openk2.config.whole_file import whole_file
    from openk2.errors import DataError

    try:
        with whole_file(path) as aside:
            aside.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}", param=str(path)) from error


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--extra-body") from error
    if not isinstance(value, dict):
        raise typer.BadParameter("not a JSON object", param_hint="--extra-body")
    return value


def _schema_cases(n: int, seed: int, folder: Path | None) -> list[SchemaCase]:
    from openk2.evals.verify import cases_in, generated_cases

    return [*generated_cases(n, seed), *(cases_in(folder) if folder is not None else ())]


def _provider(url: str, model: str | None, timeout: float) -> RemoteProvider:
    from openk2.client import RemoteProvider
    from openk2.errors import RequestError

    try:
        return RemoteProvider(url, model, os.environ.get("OPENAI_API_KEY"), timeout=timeout)
    except RequestError as error:
        raise typer.BadParameter(str(error), param_hint="URL") from error


def _verify(
    provider: RemoteProvider,
    cases: list[SchemaCase],
    *,
    requests: Path | None,
    n: int,
    seed: int,
    overrides: dict[str, Any],
    concurrency: int | None,
    output: Path | None,
) -> Report:
    from openk2.cli.progress import progress_bar
    from openk2.evals.verify import Overrides, Plan, RecordLog, generate_lines, read_lines, verify

    given = read_lines(requests) if requests is not None else None
    window = _window(provider)
    lines = given if given is not None else generate_lines(n, seed, window=window)
    plan = Plan.of(lines, Overrides(provider.model, **overrides), cases, window=window, concurrency=concurrency)
    with (
        RecordLog(output, plan.hashes) if output else nullcontext() as log,
        progress_bar("steps", plan.steps) as advance,
    ):
        return asyncio.run(verify(provider, plan, log=log, on_done=advance))


def _window(provider: RemoteProvider) -> int | None:
    """Raises ProviderError when the endpoint cannot be reached; one that lists no models is used all the same."""
    from openk2.errors import RequestError

    provider.model  # noqa: B018 - an endpoint that was given no model must list one
    try:
        return provider.max_model_len
    except RequestError:
        return None
