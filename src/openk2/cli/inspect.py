"""`openk2 inspect`: what is in a model, from its config and the headers of its weight files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from openk2.checkpoint import Checkpoint
    from openk2.config import ModelConfig


PARTS = (
    (".mlp.experts.", "routed experts"),
    (".mlp.shared_experts.", "shared experts"),
    (".mlp.gate.", "router"),
    (".self_attn.", "attention"),
    (".mlp.", "dense feed-forward"),
    ("embed_tokens.", "embedding"),
    ("lm_head.", "output head"),
)
"""What a tensor belongs to, by its name; the first match wins, and what is left are norms."""


@dataclass(frozen=True)
class TensorEntry:
    name: str
    shape: tuple[int, ...]
    dtype: str | None
    """As the file spells it (BF16, F8_E4M3, I32 ...); None without weight files."""
    file: str | None


@dataclass(frozen=True)
class Inspection:
    model: str
    config: dict[str, Any]
    """As in config.json."""
    unknown_config_keys: list[str]
    parameters_total: int
    parameters_active: int
    """Used by one token, the embedding table included."""
    parameters_by_part: dict[str, int]
    tensors: int
    """In the weight files; without files, as the config makes them."""
    bytes: int
    """Of the weight files; without files, in bfloat16."""
    weight_files: int
    stored_dtypes: dict[str, int]
    """Tensors of each dtype in the weight files."""
    cache_bytes_per_token: int
    """Of the latent cache, in bfloat16."""
    problem: str | None
    """What keeps the weights from being loaded."""
    tensor_list: list[TensorEntry] | None = None
    """Every tensor, where it was asked for."""


def command(
    model: Annotated[
        str, typer.Argument(help="A checkpoint folder, k2-nano, or a preset such as k2-0905.")
    ] = "k2-nano",
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor: name, shape, dtype, file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is in a model. No weight is read.

    Exit codes: 0 shown; 1 shown, but its weights cannot be loaded; 2 no such model.
    """
    inspection = inspect_model(model, tensors=tensors)
    if as_json:
        typer.echo(json.dumps(asdict(inspection), indent=2, ensure_ascii=False))
    else:
        _print(inspection)
    if inspection.problem is not None:
        raise typer.Exit(1)


def inspect_model(model: str, *, tensors: bool = False) -> Inspection:
    """What is in `model`; with `tensors`, each of them too.

    Raises CheckpointError or ConfigError for a model that is not there or not of this architecture.
    """
    from openk2 import assets
    from openk2.checkpoint import Checkpoint, load_config
    from openk2.config import PRESETS, preset

    folder = Path(model)
    if not folder.is_dir() and model in assets.names():
        folder = assets.path(model)
    if not folder.exists() and model.lower() in PRESETS:
        return _inspection(model, preset(model), None, tensors)
    config = load_config(folder)
    return _inspection(model, config, Checkpoint.open(folder), tensors)


def _inspection(model: str, config: ModelConfig, checkpoint: Checkpoint | None, tensors: bool) -> Inspection:
    import torch

    from openk2.models import K2Model, num_active_parameters

    with torch.device("meta"):
        empty = K2Model(config)
    parts: dict[str, int] = {}
    for name, expected in empty.checkpoint_tensors():
        part = next((part for infix, part in PARTS if infix in name), "norms")
        parts[part] = parts.get(part, 0) + expected.numel()
    total = sum(parts.values())
    dtypes: dict[str, int] = {}
    if checkpoint is not None:
        for _, _, tensor in checkpoint.tensors():
            dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + 1
    return Inspection(
        model=model,
        config=config.to_hf(),
        unknown_config_keys=config.unknown_keys,
        parameters_total=total,
        parameters_active=num_active_parameters(config),
        parameters_by_part=dict(sorted(parts.items(), key=lambda item: -item[1])),
        tensors=sum(dtypes.values()) if checkpoint else sum(1 for _ in empty.checkpoint_tensors()),
        bytes=checkpoint.weight_bytes if checkpoint else 2 * total,
        weight_files=len(checkpoint.shards) if checkpoint else 0,
        stored_dtypes=dtypes,
        cache_bytes_per_token=2 * config.latent_dim * config.num_hidden_layers,
        problem=_problem(checkpoint, config, empty) if checkpoint else None,
        tensor_list=_tensor_list(checkpoint, empty) if tensors else None,
    )


def _tensor_list(checkpoint: Checkpoint | None, empty: Any) -> list[TensorEntry]:
    if checkpoint is None:
        return [TensorEntry(name, tuple(t.shape), None, None) for name, t in empty.checkpoint_tensors()]
    return [TensorEntry(name, stored.shape, stored.dtype, path.name) for path, name, stored in checkpoint.tensors()]


def _problem(checkpoint: Checkpoint, config: ModelConfig, empty: Any) -> str | None:
    from openk2.checkpoint import check_tensors
    from openk2.errors import CheckpointError

    if config.quantization_config is not None:
        return f"quantization {config.quantization_config.get('quant_method')} cannot be loaded yet"
    try:
        check_tensors(checkpoint, empty)
    except CheckpointError as error:
        return str(error)
    return None


def _print(inspection: Inspection) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _rows(inspection):
        table.add_row(name, value)
    Console().print(table)
    for entry in inspection.tensor_list or ():  # plain lines, for grep
        shape = "x".join(map(str, entry.shape))
        typer.echo("  ".join(filter(None, (entry.name, shape, entry.dtype, entry.file))))


def _rows(inspection: Inspection) -> list[tuple[str, str]]:
    c = inspection.config
    total, active = inspection.parameters_total, inspection.parameters_active
    experts = "none"
    if c["n_routed_experts"]:
        experts = (
            f"{c['n_routed_experts']} routed, {c['num_experts_per_tok']} per token, "
            f"{c['n_shared_experts'] or 0} shared; {c['scoring_func']}/{c['topk_method']}"
        )
    scaling = c["rope_scaling"]
    yarn = f", YaRN x{scaling['factor']:g}" if scaling else ""
    rows = [
        ("model", inspection.model),
        ("type", f"{c['model_type']}, {', '.join(c['architectures'])}"),
        ("parameters", f"{total:,}; {active:,} active per token ({active / total:.1%})"),
        *((f"  {part}", f"{count:,}") for part, count in inspection.parameters_by_part.items()),
        ("layers", f"{c['num_hidden_layers']}, hidden {c['hidden_size']}, vocabulary {c['vocab_size']:,}"),
        ("attention", f"{c['num_attention_heads']} heads, latent {c['kv_lora_rank']} + {c['qk_rope_head_dim']} rotary"),
        ("experts", experts),
        ("window", f"{c['max_position_embeddings']:,} tokens, rope theta {c['rope_theta']:g}{yarn}"),
        ("cache", f"{inspection.cache_bytes_per_token:,} bytes per token in bfloat16"),
        ("tensors", f"{inspection.tensors:,}{_dtypes(inspection.stored_dtypes)}"),
        ("size", _size(inspection)),
        ("unknown keys", ", ".join(inspection.unknown_config_keys) or "none"),
    ]
    if inspection.problem is not None:
        rows.append(("problem", inspection.problem))
    return rows


def _dtypes(stored: dict[str, int]) -> str:
    return f" ({', '.join(f'{count:,} {dtype}' for dtype, count in sorted(stored.items()))})" if stored else ""


def _size(inspection: Inspection) -> str:
    shown = f"{inspection.bytes:,} bytes"
    files = "1 file" if inspection.weight_files == 1 else f"{inspection.weight_files} files"
    return f"{shown} in {files}" if inspection.weight_files else f"{shown} in bfloat16"
