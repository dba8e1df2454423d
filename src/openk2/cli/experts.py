"""`openk2 experts MODEL`: which experts serve code, prose, numbers, tool calls."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from openk2.training.specialisation import LayerLoad


def command(
    model: Annotated[str, typer.Argument(help="A checkpoint folder, or k2-nano.")] = "k2-nano",
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE|generated", help="What to run it on; may be given several times."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens in all, the same number of each --data.")] = 20_000,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    html: Annotated[Path | None, typer.Option(help="Write heat maps to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Show which of a model's experts serve which kind of token, layer by layer, and how even their load is.

    Kinds: tool calls, declarations (of tools), code (code files and fenced blocks), numbers, prose, control tokens.
    Exit codes: 0 shown; 2 no such model or data.
    """
    import torch

    from openk2.chat.template import ChatTemplate
    from openk2.checkpoint import load_model
    from openk2.llm.source import check_device, model_folder
    from openk2.tokenizer import Tokenizer
    from openk2.training.specialisation import experts_of

    check_device(device)
    folder = model_folder(model)
    template = ChatTemplate.from_folder(Tokenizer.from_folder(folder), folder)
    loaded = load_model(folder, device=device, dtype=torch.float32 if device == "cpu" else None)
    layers = experts_of(loaded, template, data or ["generated"], tokens)
    if html is not None:
        from openk2.cli.train import write_text

        write_text(html, _page(model, layers))
    if as_json:
        typer.echo(json.dumps({"model": model, "layers": [asdict(layer) for layer in layers]}))
    else:
        _print(layers)


def _print(layers: list[LayerLoad]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("layer", "fullest", "idle", "kind", "tokens", "apart", "top experts"):
        table.add_column(name, justify="left" if name in ("kind", "top experts") else "right", no_wrap=True)
    for layer in layers:
        first = (str(layer.layer), f"{layer.imbalance:.2f}", str(layer.idle))
        for kind in layer.kinds:
            top = " ".join(f"{e} ({'only' if times is None else f'{times:.1f}x'})" for e, times in kind.top)
            table.add_row(*first, kind.kind, f"{kind.tokens:,}", f"{kind.distance:.2f}", top)
            first = ("", "", "")
    Console().print(table)
    typer.echo(
        "fullest: load over the mean. apart: 0 the same experts as other tokens, 1 none in common. Nx: times as often."
    )


def _page(model: str, layers: list[LayerLoad]) -> str:
    from openk2.training.charts import heat_map, page

    maps = []
    for layer in layers:
        rows = [kind.kind for kind in layer.kinds]
        values = [[share * len(kind.shares) for share in kind.shares] for kind in layer.kinds]
        title = f"Layer {layer.layer}: share of each kind's choices over an even one (white 1, red 2, blue 1/2)"
        maps.append(heat_map(title, rows, values, middle=1.0))
    return page(f"Experts of {model}", maps)
