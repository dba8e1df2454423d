"""How training looks in a terminal: data being read, a run on its way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def reading_progress() -> Iterator[Callable[[list[Path]], Iterable[Path]]]:
    """Gives what passes files on and shows how many have been read. It ends with the block, also by an error: a bar
    that a suspended generator holds would be stopped by the garbage collector, in whatever thread."""
    from rich.progress import Progress

    with Progress(transient=True) as progress:

        def watched(paths: list[Path]) -> Iterable[Path]:
            task = progress.add_task("reading data", total=len(paths))
            for path in paths:
                yield path
                progress.advance(task)

        yield watched


def run_progress() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}{task.completed:,.0f}/{task.total:,.0f} tokens"),
        BarColumn(),
        TextColumn("{task.fields[line]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def reporter(
    progress: Progress, total_tokens: int, tokens: int = 0, name: str = ""
) -> Callable[[dict[str, Any]], None]:
    """Shows the records of one run: a bar of its tokens, a line for each validation."""
    label = f"{name}  " if name else ""
    task = progress.add_task(label, total=total_tokens, completed=tokens, line="")

    def report(entry: dict[str, Any]) -> None:
        if "loss" in entry:
            first = f"reward {entry['reward']:.3f}" if "reward" in entry else f"loss {entry['loss']:.3f}"
            line = f"{first}  {entry['tokens_per_second']:,.0f} tok/s"
            progress.update(task, completed=entry["tokens"], line=line)
            return
        calls = f", whole calls right {entry['held_exact_calls']:.1%}" if entry["held_exact_turns"] else ""
        progress.console.print(
            f"{label}{entry['tokens']:>12,} tokens: held-out loss {entry['held_loss']:.4f}, tokens right "
            f"{entry['held_token_accuracy']:.1%}{calls}"
        )

    return report
