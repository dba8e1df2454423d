"""`openk2 bench`: the engine's speed beside this machine's limits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from openk2.bench import Bench
    from openk2.models.packed_stored import ExpertCacheStats


def command(
    model: Annotated[
        str, typer.Argument(help="k2-nano, a checkpoint folder, or random:PRESET, such as random:mini.")
    ] = "k2-nano",
    quantization: Annotated[
        str | None, typer.Option(help="int8, int4 or bf16: weights packed for the native CPU kernels.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="What the process keeps to, such as 8GiB; experts that do not fit stay on disk.")
    ] = None,
    packed_folder: Annotated[
        Path | None, typer.Option(help="Folder of those experts; default: the user's cache.")
    ] = None,
    prefill: Annotated[str, typer.Option(help="Prompt lengths.")] = "128,512,2k",
    depth: Annotated[str, typer.Option(help="Tokens before the decoded ones.")] = "16,1k",
    batch: Annotated[str, typer.Option(help="Requests that decode together, at the first depth.")] = "4,8",
    mode: Annotated[
        str | None, typer.Option(help="Experts per decoded token: reflex, auto or deliberative (all, the default).")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each case, of which the median counts.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default all.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Folder for decode over depth as PNG and SVG (needs openk2[plots]).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure prefill, decode and memory, beside what this machine's memory and arithmetic allow.

    Exit codes: 0 measured; 2 wrong usage or model.
    """
    import torch

    from openk2.bench import make_cases, measure_limits, run
    from openk2.cli.progress import progress_bar
    from openk2.config import read_bytes, read_mode
    from openk2.llm.source import Source

    if threads is not None:
        torch.set_num_threads(threads)
    if plot is not None:
        _check_plot(depth)
    source = Source.find(model)
    cases = make_cases(
        _sizes(prefill, "prefill"),
        _sizes(depth, "depth"),
        _sizes(batch, "batch"),
        window=source.config.max_position_embeddings,
    )
    with progress_bar("rounds", len(cases) * (rounds + 1)) as on_round:
        done = run(
            source,
            cases,
            measure_limits(),
            quantization=quantization,
            packed_folder=packed_folder,
            memory=None if memory is None else read_bytes(memory, param="memory"),
            mode=read_mode(mode),
            rounds=rounds,
            on_round=on_round,
        )
    if plot is not None:
        _draw(done, plot)
    if as_json:
        typer.echo(json.dumps(_facts(done), indent=2))
    else:
        _print(done)


def _sizes(text: str, param: str) -> list[int]:
    from openk2.planner import read_tokens

    return [read_tokens(part.strip(), param=param) for part in text.split(",") if part.strip()]


def _facts(done: Bench) -> dict[str, Any]:
    from dataclasses import asdict

    facts = asdict(done)
    facts["results"] = [
        asdict(one) | {"name": one.case.name, "limit_tokens_per_s": one.limit_tokens_per_s, "share": one.share}
        for one in done.results
    ]
    return facts


def _print(done: Bench) -> None:
    from rich.console import Console
    from rich.table import Table

    limits, console = done.limits, Console(width=None if sys.stdout.isatty() else 110)
    console.print(
        f"{done.model}, {done.formats}: {done.parameters / 1e6:,.1f}M parameters, {done.active_parameters / 1e6:,.1f}M "
        f"read for a token; loaded in {done.load_s:.1f} s, {done.resident_bytes / 2**30:.2f} GiB resident"
    )
    console.print(
        f"{limits.processor}, {limits.threads} threads: reads {limits.read_bytes_per_s / 1e9:.1f} GB/s, multiplies "
        f"{limits.f32_flops_per_s / 1e9:.0f} GFLOP/s in float32"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("case", "tokens/s", "rounds", "ms", "limit", "share", "binds"):
        table.add_column(name, justify="left" if name in ("case", "binds") else "right", no_wrap=True)
    for one in done.results:
        table.add_row(
            one.case.name,
            f"{one.tokens_per_s:,.1f}",
            f"{one.slowest:,.0f}-{one.fastest:,.0f}",
            f"{1000 * one.seconds:,.1f}",
            f"{one.limit_tokens_per_s:,.0f}",
            f"{one.share:.0%}",
            one.limit.binds,
        )
    console.print(table)
    if done.experts is not None:
        _print_experts(console, done.experts)
    for one in done.results:
        if one.experts_per_token is not None:
            console.print(f"{one.case.name}: {one.experts_per_token:.2f} experts per token and layer")
    console.print(
        f"Medians of {done.rounds} rounds. ms: to the first token of a prompt, or of a decode step. "
        "limit: by roofline, at the rates above.",
        style="dim",
    )


def _print_experts(console: Console, experts: ExpertCacheStats) -> None:
    lookups = max(experts.lookups, 1)
    console.print(
        f"experts: {experts.slots:,} of {experts.experts:,} in memory; of {experts.lookups:,} lookups "
        f"{experts.hits / lookups:.1%} were there, {experts.hits_ahead / lookups:.1%} fetched ahead; "
        f"{experts.bytes_read / 1e9:,.2f} GB read"
    )


def _check_plot(depth: str) -> None:
    """Before minutes of measuring: raises as drawing would."""
    from openk2.errors import ConfigError
    from openk2.planner.plots import draw

    if not _sizes(depth, "depth"):
        raise ConfigError("--plot draws decode over depth: give --depth", param="depth")
    draw([], Path())


def _draw(done: Bench, folder: Path) -> None:
    from openk2.planner.curves import Figure, Line
    from openk2.planner.plots import draw

    alone = [one for one in done.results if one.case.kind == "decode" and one.case.batch == 1]
    depths = tuple(float(one.case.context) for one in alone)
    figure = Figure(
        name="decode-over-depth",
        title=f"{done.model}, {done.formats}, {done.limits.threads} threads",
        x_label="tokens of context",
        y_label="tokens/s",
        lines=(
            Line(name="measured", x=depths, y=tuple(one.tokens_per_s for one in alone)),
            Line(name="limit of the machine", x=depths, y=tuple(one.limit_tokens_per_s for one in alone)),
        ),
    )
    for file in draw([figure], folder):
        typer.echo(str(file), err=True)
