"""`openk2 train RECIPE`: pretraining with MuonClip, resumed where the folder's last state left off."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, such as recipes/k2-nano/stage1.toml.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/NAME.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe value.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default all.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop (resumably) after so long.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    export: Annotated[Path | None, typer.Option(help="Only write the run's model as a checkpoint folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each record as a line of JSON.")] = False,
) -> None:
    """Train a model from a recipe; a run that was cut goes on when started again."""
    import torch

    from openk2.chat.template import ChatTemplate
    from openk2.training.data import conversations
    from openk2.training.export import export_model
    from openk2.training.recipe import load_recipe
    from openk2.training.source import BatchSource
    from openk2.training.trainer import Trainer
    from openk2.training.vocabulary import make_tokenizer

    if threads is not None:
        torch.set_num_threads(threads)
    plan = load_recipe(recipe, set_ or [])
    folder = output or Path("runs") / plan.name
    tokenizer = make_tokenizer(plan, folder / "tokenizer")
    source = BatchSource(
        ChatTemplate(tokenizer),
        lambda seed, stage: conversations(seed, "train", stage=stage),
        seed=plan.seed,
        max_length=plan.model.max_position_embeddings,
    )
    trainer = Trainer(plan, source, folder, device=device)
    resumed = trainer.resume()
    if export is not None:
        export_model(trainer, export)
        typer.echo(f"{export}: {trainer.tokens:,} tokens, step {trainer.step:,}")
        return
    if resumed and not as_json:
        typer.echo(f"resumed at {trainer.tokens:,} tokens (step {trainer.step:,})")
    last_stage = plan.stages[-1].data_stage
    held = list(islice(conversations(plan.seed, "held", stage=last_stage), plan.validation_conversations))
    seconds = None if max_minutes is None else 60 * max_minutes
    if as_json:
        trainer.run(held, max_seconds=seconds, report=lambda entry: typer.echo(json.dumps(entry)))
    else:
        _run_with_progress(trainer, held, seconds)


def _run_with_progress(trainer: Any, held: list[Any], max_seconds: float | None) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
        BarColumn(),
        TextColumn("{task.fields[line]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("train", total=trainer.total_tokens, completed=trainer.tokens, line="")

        def report(entry: dict[str, Any]) -> None:
            if "loss" in entry:
                line = f"loss {entry['loss']:.3f}  {entry['tokens_per_second']:,.0f} tok/s"
                progress.update(task, completed=entry["tokens"], line=line)
            else:
                progress.console.print(
                    f"{entry['tokens']:>12,} tokens: held-out loss {entry['held_loss']:.4f}, tokens right "
                    f"{entry['held_token_accuracy']:.1%}, whole calls right {entry['held_exact_calls']:.1%}"
                )

        trainer.run(held, max_seconds=max_seconds, report=report)
