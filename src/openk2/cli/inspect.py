"""`openk2 inspect MODEL`: the architecture, sizes and tensors of a checkpoint or a preset, without loading weights."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import typer

from openk2.config import PRESETS, ModelConfig, preset

PARTS = (
    (".mlp.experts.", "routed experts"),
    (".mlp.shared_experts.", "shared experts"),
    (".mlp.gate.", "router"),
    (".self_attn.", "attention"),
    (".mlp.", "dense feed-forward"),
    ("embed_tokens.", "embedding"),
    ("lm_head.", "output head"),
)
"""First match wins; what is left are norms."""


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: str
    """safetensors' spelling; empty for a preset."""


def command(
    model: str = typer.Argument("k2-nano", help="A checkpoint folder, k2-nano, or a preset such as k2-0905."),
    tensors: bool = typer.Option(False, "--tensors", help="List every tensor."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Show what is in a model, without loading its weights."""
    config, found, weight_bytes = _read(model)
    report = summary(model, config, found, weight_bytes)
    if as_json:
        import json

        if tensors:
            report["tensors"] = {t.name: {"shape": t.shape, "dtype": t.dtype} for t in found}
        typer.echo(json.dumps(report, indent=2))
        return
    _print(report, found if tensors else [])


def _read(model: str) -> tuple[ModelConfig, list[Tensor], int | None]:
    """The architecture, every tensor, and the size of the weight files (None for a preset)."""
    from openk2 import assets

    if model in PRESETS:
        return preset(model), _tensors_of(preset(model)), None
    from openk2.checkpoint import load_config
    from openk2.checkpoint.files import Checkpoint

    folder = assets.path(model) if model == "k2-nano" else model
    checkpoint = Checkpoint.open(folder)
    found = [Tensor(name, stored.shape, stored.dtype) for _, name, stored in checkpoint.tensors()]
    return load_config(folder), found, checkpoint.weight_bytes


def _tensors_of(config: ModelConfig) -> list[Tensor]:
    import torch

    from openk2.models import K2Model

    with torch.device("meta"):
        return [Tensor(name, tuple(t.shape), "") for name, t in K2Model(config).checkpoint_tensors()]


def summary(model: str, config: ModelConfig, tensors: list[Tensor], weight_bytes: int | None) -> dict[str, Any]:
    """What is shown, as JSON values; parameters are counted from the tensors themselves."""
    parts: Counter[str] = Counter()
    for tensor in tensors:
        part = next((part for infix, part in PARTS if infix in tensor.name), "norms")
        parts[part] += math.prod(tensor.shape)
    total = sum(parts.values())
    idle = 0
    if config.n_routed_experts:
        idle = (
            parts["routed experts"] * (config.n_routed_experts - config.num_experts_per_tok) // config.n_routed_experts
        )
    return {
        "model": model,
        "parameters": total,
        "parameters_per_token": total - idle,
        "parts": dict(parts.most_common()),
        "num_tensors": len(tensors),
        "dtypes": dict(Counter(tensor.dtype for tensor in tensors if tensor.dtype)),
        "weight_bytes": weight_bytes,
        "unknown_keys": config.unknown_keys,
        "config": config.to_hf(),
    }


def _print(report: dict[str, Any], tensors: list[Tensor]) -> None:
    from rich.console import Console
    from rich.table import Table

    config = report["config"]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    table.add_row("model", f"{report['model']} ({config['model_type']})")
    table.add_row("parameters", f"{report['parameters']:,} in {report['num_tensors']:,} tensors")
    table.add_row("per token", f"{report['parameters_per_token']:,}")
    for part, count in report["parts"].items():
        table.add_row(f"  {part}", f"{count:,}")
    if report["weight_bytes"] is not None:
        kinds = ", ".join(f"{count} x {dtype}" for dtype, count in report["dtypes"].items())
        table.add_row("files", f"{report['weight_bytes'] / 1e6:,.1f} MB ({kinds})")
    table.add_row("layers", f"{config['num_hidden_layers']}, hidden size {config['hidden_size']}")
    if config.get("n_routed_experts"):
        shared = config.get("n_shared_experts") or 0
        chosen = config["num_experts_per_tok"]
        table.add_row("experts", f"{config['n_routed_experts']} routed, {chosen} chosen, {shared} shared")
    table.add_row("window", f"{config['max_position_embeddings']:,} tokens")
    table.add_row("vocabulary", f"{config['vocab_size']:,}")
    if report["unknown_keys"]:
        table.add_row("unknown keys", ", ".join(report["unknown_keys"]))
    console = Console()
    console.print(table)
    for tensor in tensors:
        console.print(f"{tensor.name}  {list(tensor.shape)}  {tensor.dtype}", soft_wrap=True, highlight=False)
