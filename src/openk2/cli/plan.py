"""`openk2 plan`: memory and speed of a model on hardware, by arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from openk2.planner import Plan


def command(
    model: Annotated[str, typer.Argument(help="A preset, qwen3-coder-480b, glm-4.5, or a folder.")] = "k2-0905",
    hardware: Annotated[str, typer.Option(help="A count and a device: 16xH200, CPU-12ch-DDR5-6000-768GB.")] = "16xH200",
    hardware_file: Annotated[Path | None, typer.Option(help="TOML with devices of your own.")] = None,
    context: Annotated[str, typer.Option(help="Longest request in tokens, such as 128k.")] = "32k",
    quantization: Annotated[str | None, typer.Option(help="bf16, fp8, int8, int4, awq, gptq, q4_k_m ...")] = None,
    cache: Annotated[str, typer.Option(help="Numbers of the cache: bf16, fp8, fp8_ds_mla, f32.")] = "bf16",
    load: Annotated[str, typer.Option(help="Such as in=1000,out=2000,cached=50%,batch=32.")] = "",
    against: Annotated[list[str] | None, typer.Option(help="Another model, beside the first.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Plan a deployment: what it needs, what fits, how fast, and what binds.

    Exit codes: 0 it fits; 1 it does not; 2 wrong usage.
    """
    from dataclasses import replace

    from openk2.planner import Load, read_hardware, read_load, read_tokens
    from openk2.planner.make_plan import make_plan
    from openk2.planner.read_model import read_model

    machine = read_hardware(hardware, file=hardware_file)
    tokens = read_tokens(context)
    if load:
        wanted = read_load(load, context_tokens=tokens)
    else:
        wanted = Load(context_tokens=tokens, prompt_tokens=max(1, tokens // 2), output_tokens=max(1, tokens // 2))
    first = make_plan(read_model(model), machine, wanted, quantization=quantization, cache_format=cache)
    plans = [first]
    for name in against or ():
        shape = read_model(name)
        window = min(tokens, shape.max_context_tokens)
        kind = "fp8" if quantization is None and shape.native_scheme == "bf16" else quantization
        plans.append(
            make_plan(shape, machine, replace(wanted, context_tokens=window), quantization=kind, cache_format=cache)
        )
    if as_json:
        shown = [plan_json(plan) for plan in plans]
        typer.echo(json.dumps(shown[0] | {"against": shown[1:]}, indent=2))
    else:
        for plan in plans:
            _print(plan)
    if first.refusal is not None:
        raise typer.Exit(1)


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as one JSON object; bytes and seconds as numbers."""
    from dataclasses import asdict

    speed = plan.speed
    return {
        "model": plan.model.name,
        "parameters": plan.model.parameters,
        "active_parameters": plan.model.active_parameters,
        "quantization": plan.quantization,
        "cache_format": plan.cache_format,
        "hardware": str(plan.hardware),
        "parallelism": asdict(plan.parallelism) | {"ep_size": plan.parallelism.ep_size},
        "load": asdict(plan.load),
        "weights_bytes": plan.memory.weights_bytes,
        "memory": asdict(plan.memory)
        | {"needed_bytes": plan.memory.needed_bytes, "missing_bytes": plan.memory.missing_bytes},
        "largest_context_tokens": plan.largest_context_tokens,
        "largest_batch": plan.largest_batch,
        "speed": None if speed is None else asdict(speed) | {"binds": speed.decode.binds},
        "refusal": None if plan.refusal is None else asdict(plan.refusal),
        "advice": plan.advice,
        "assumptions": plan.assumptions,
    }


def _print(plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _rows(plan):
        table.add_row(name, value)
    Console().print(table)


def _rows(plan: Plan) -> list[tuple[str, str]]:
    memory, speed = plan.memory, plan.speed
    rows = [
        ("model", f"{plan.model.name}, {plan.quantization}: {memory.weights_bytes:,} bytes"),
        ("hardware", f"{plan.hardware}, {plan.parallelism}"),
        ("load", f"context {plan.load.context_tokens:,}, batch {plan.load.batch}"),
        ("per device", ""),
        *((f"  {term.name}", f"{term.bytes / 1e9:.2f} GB  ({term.formula})") for term in memory.terms),
        ("  needed", f"{memory.needed_bytes / 1e9:.2f} of {memory.device_bytes / 1e9:.2f} GB"),
        ("  copies", f"{memory.replicated_bytes / 1e9:.2f} GB of weights beyond one model, over all devices"),
        ("largest context", f"{plan.largest_context_tokens:,} tokens (one request per replica)"),
        ("largest batch", f"{plan.largest_batch:,} requests of this context"),
    ]
    if plan.refusal is not None:
        rows.append(("does not fit", plan.refusal.reason))
    if speed is not None:
        rows += [
            ("decode", f"{speed.decode_tokens_per_s:,.1f} tokens/s, {speed.decode_tokens_per_s_per_request:,.1f} each"),
            ("prefill", f"{speed.prefill_tokens_per_s:,.0f} tokens/s of one replica"),
            ("first token", f"{speed.time_to_first_token_s:.2f} s"),
            ("experts", f"{speed.experts_touched_per_layer:.0f} touched per layer and step"),
            ("binds", speed.decode.binds),
        ]
    rows += [("advice", text) for text in plan.advice]
    rows += [("assumed", text) for text in plan.assumptions]
    return rows
