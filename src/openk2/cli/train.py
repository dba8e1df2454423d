"""`openk2 train RECIPE`: training with MuonClip, resumed where the folder's last state left off."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _RecipeFirst(TyperGroup):
    """`openk2 train RECIPE` is `openk2 train run RECIPE`: what is no subcommand is a recipe."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help", "-h"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RecipeFirst,
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Train a model from a recipe: `openk2 train RECIPE`; its options: `openk2 train run --help`.",
)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, such as recipes/k2-nano/stage1.toml.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/NAME.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe value.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default all.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop (resumably) after so long.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    export: Annotated[Path | None, typer.Option(help="Only write the run's model (or adapter) to a folder.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", metavar="KEY=V1,V2,...", help="A run for each value, or combination."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each record as a line of JSON.")] = False,
) -> None:
    """Train a model from a recipe; a run that was cut goes on when started again. Under torchrun several processes
    train one model.

    Exit codes: 0 done, or stopped by --max-minutes; 1 the run (of a sweep: every run) cannot go on; 2 recipe, data or
    state are wrong.
    """
    import torch

    from openk2.cli.train_progress import reading_progress, reporter, run_progress
    from openk2.cli.train_sweep import train_sweep
    from openk2.errors import CheckpointError, ConfigError
    from openk2.llm.source import check_device
    from openk2.training.assemble import open_run
    from openk2.training.export import export_model
    from openk2.training.parallel import joined
    from openk2.training.recipe import load_recipe

    if threads is not None:
        torch.set_num_threads(threads)
    check_device(device)
    seconds = None if max_minutes is None else 60 * max_minutes
    if sweep:
        if export is not None:
            raise ConfigError("--export is of one run: name its folder with --output, without --sweep", param="export")
        train_sweep(recipe, set_ or [], sweep, output, device=device, max_seconds=seconds, as_json=as_json)
        return
    plan = load_recipe(recipe, set_ or [])
    folder = output or Path("runs") / plan.name
    with joined(device, plan.parallel.expert_parallel) as ranks:
        quiet = as_json or ranks.index > 0
        if export is not None and ranks.size > 1:
            raise ConfigError("--export is for one process: start it without torchrun", param="export")
        with nullcontext(_quiet) if quiet else reading_progress() as watch:
            trainer, held = open_run(plan, folder, device=ranks.device, ranks=ranks, watch=watch)
        resumed = trainer.resume()
        if export is not None:
            if not resumed:
                raise CheckpointError(
                    f"{folder} holds no state of a run to export; name the run's folder with --output"
                )
            export_model(trainer, export)
            typer.echo(f"{export}: {trainer.tokens:,} tokens, step {trainer.step:,}")
            return
        if resumed and not quiet:
            typer.echo(f"resumed at {trainer.tokens:,} tokens (step {trainer.step:,})")
        if quiet:  # of several ranks, `run` reports on the first alone
            trainer.run(held, max_seconds=seconds, report=lambda entry: typer.echo(json.dumps(entry)))
        else:
            with run_progress() as progress:
                report = reporter(progress, trainer.total_tokens, trainer.tokens)
                trainer.run(held, max_seconds=seconds, report=report)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="A run's folder, with its log.jsonl.")],
    html: Annotated[Path | None, typer.Option(help="Write the report with its charts to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Show how a run went: losses, attention logits, expert load, update size, learning rate."""
    from openk2.training.report import report_page, row, run_report

    found, log = run_report(folder)
    if html is not None:
        write_text(html, report_page(found, log))
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, title=f"{found.run}: {found.tokens:,} tokens, {found.steps:,} steps", title_justify="left")
    table.add_column("")
    for name in ("first", "last", "least", "most"):
        table.add_column(name, justify="right")
    for series in found.series:
        table.add_row(*row(series))
    Console().print(table)
    for kind, share in found.held_exact_turns.items():
        typer.echo(f"held-out turns right, {kind}: {share}")


@app.command()
def tokenizer(
    files: Annotated[list[str], typer.Argument(help="Texts: plain, .jsonl or .parquet; patterns too.")],
    vocab_size: Annotated[
        int, typer.Option(min=513, help="Tokens in all: the model's vocab_size, 256 special ones included.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to write; a recipe's tokenizer.folder.")],
    text_field: Annotated[str, typer.Option(help="Of JSON lines and parquet: what holds the text.")] = "text",
    merges: Annotated[
        str, typer.Option(help="any, or copy: only those that help a small model to copy values.")
    ] = "any",
) -> None:
    """Learn a byte-pair vocabulary, in the tiktoken format that K2 publishes.

    Exit codes: 0 written; 2 the files are wrong, or give fewer tokens than asked.
    """
    from openk2.cli.train_progress import reading_progress
    from openk2.errors import ConfigError
    from openk2.training.bpe import MERGES, train_ranks
    from openk2.training.files import collect_texts, expand_paths
    from openk2.training.vocabulary import RANKS, SPECIAL_SLOTS, write_tokenizer

    if merges not in MERGES:
        raise ConfigError(f"--merges must be {' or '.join(MERGES)}, not {merges!r}")
    if (output / RANKS).exists():
        raise ConfigError(f"{output} holds a vocabulary already; checkpoints may depend on it: choose another --output")
    with reading_progress() as watch:
        documents = collect_texts(watch(expand_paths(files)), text_field)
    texts = (documents.read(i).text for i in range(len(documents)))
    ranks = train_ranks(texts, vocab_size - SPECIAL_SLOTS, allow=MERGES[merges])
    if (found := len(ranks) + SPECIAL_SLOTS) < vocab_size:
        raise ConfigError(f"these files give only {found} tokens; give more text, or --vocab-size {found}")
    write_tokenizer(ranks, output)
    typer.echo(f"{output}: {found:,} tokens from {len(documents):,} documents")


@app.command()
def merge(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="The checkpoint folder that the adapter is of.")],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="An adapter's folder, as PEFT writes it.")],
    output: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
) -> None:
    """Add a LoRA adapter to the weights of its checkpoint. The weights keep their dtype."""
    from openk2.checkpoint import load_model, save_model
    from openk2.training.adapter_files import merge_adapter_

    model = load_model(base)
    merged = merge_adapter_(model, adapter)
    save_model(model, output, copy_from=base)
    typer.echo(f"{output}: {merged} matrices merged")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all. Raises EnvironmentFault when it cannot be written."""
    from openk2.config.whole_file import whole_file
    from openk2.errors import EnvironmentFault

    if path.is_dir():
        raise EnvironmentFault(f"cannot write {path}: it is a folder")
    try:
        with whole_file(path) as aside:
            aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EnvironmentFault(f"cannot write {path}: {error.strerror or error}") from None


def _quiet(paths: list[Path]) -> Iterable[Path]:
    return paths
