"""`openk2 plan`: memory and speed of a model on hardware, by arithmetic."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from openk2.config import ModelConfig
    from openk2.planner import Hardware, ModelShape, Plan
    from openk2.planner.cost import Cost, HostedPrice, Prices


def command(
    model: Annotated[
        str, typer.Argument(help="A preset, qwen3-coder-480b, glm-4.5, a folder, or a safetensors index.")
    ] = "k2-0905",
    hardware: Annotated[
        str | None, typer.Option(help="A count and a device: CPU-12ch-DDR5-6000-768GB; else 16xH200.")
    ] = None,
    here: Annotated[bool, typer.Option("--here", help="This machine, measured now, in place of --hardware.")] = False,
    hardware_file: Annotated[Path | None, typer.Option(help="TOML with devices of your own.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Of each device, such as 8GiB, in place of all that it has.")
    ] = None,
    context: Annotated[str, typer.Option(help="Longest request in tokens, such as 128k.")] = "32k",
    quantization: Annotated[str | None, typer.Option(help="bf16, fp8, int8, int4, awq, gptq, q4_k_m ...")] = None,
    cache: Annotated[str, typer.Option(help="Numbers of the cache: bf16, fp8, fp8_ds_mla, f32.")] = "bf16",
    load: Annotated[str, typer.Option(help="Such as in=1000,out=2000,cached=50%,batch=32.")] = "",
    against: Annotated[list[str] | None, typer.Option(help="Another model, beside the first.")] = None,
    target_tps: Annotated[
        float | None, typer.Option("--target-tps", help="Find the cheapest hardware with this decode rate in all.")
    ] = None,
    price: Annotated[
        str, typer.Option(help="Dollars of your own: hour=2.5 per device; in=0.6,out=2.5,cached=0.15 per million.")
    ] = "",
    price_file: Annotated[Path | None, typer.Option(help="TOML in place of openk2's own dated prices.")] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for cost, memory and speed as PNG and SVG (needs openk2[plots]).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Plan a deployment: what it needs, what fits, how fast, and what binds.

    Exit codes: 0 it fits; 1 it does not; 2 wrong usage.
    """
    from dataclasses import asdict, replace

    from openk2.config import read_bytes
    from openk2.errors import ConfigError
    from openk2.planner import Load, read_hardware, read_load, read_tokens
    from openk2.planner.cost import PRICE_FILE, prices
    from openk2.planner.hardware import with_memory
    from openk2.planner.make_plan import make_plan

    if here and hardware is not None:
        raise ConfigError("--here measures this machine: leave --hardware out", param="hardware")
    machine = _measured() if here else read_hardware(hardware or "16xH200", file=hardware_file)
    if memory is not None:
        machine = with_memory(machine, read_bytes(memory, param="memory"))
    tokens = read_tokens(context)
    if load:
        wanted = read_load(load, context_tokens=tokens)
    else:
        wanted = Load(context_tokens=tokens, prompt_tokens=max(1, tokens // 2), output_tokens=max(1, tokens // 2))
    own = _read_price(price)
    book = prices(price_file or PRICE_FILE)
    if target_tps is not None:
        from openk2.planner.cost import cheapest_plan

        first = cheapest_plan(
            _shape(model),
            wanted,
            target_tokens_per_s=target_tps,
            quantization=quantization,
            cache_format=cache,
            book=book,
        )
    else:
        first = make_plan(_shape(model), machine, wanted, quantization=quantization, cache_format=cache)
        if here:
            first = _probed(first, model)
    cost = _cost(first, *_own_prices(first, own, book))
    drawn = _draw(first, *_own_prices(first, own, book), plots) if plots else []
    plans = [first]
    for name in against or ():
        shape = _shape(name)
        window = min(tokens, shape.max_context_tokens)
        kind = "fp8" if quantization is None and shape.native_scheme == "bf16" else quantization
        plans.append(
            make_plan(
                shape, first.hardware, replace(wanted, context_tokens=window), quantization=kind, cache_format=cache
            )
        )
    if as_json:
        shown = [plan_json(plan) for plan in plans]
        typer.echo(
            json.dumps(shown[0] | {"cost": cost and asdict(cost), "against": shown[1:], "plots": drawn}, indent=2)
        )
    else:
        for plan in plans:
            _print(plan, cost if plan is first else None)
        for file in drawn:
            typer.echo(f"wrote {file}")
    if first.refusal is not None:
        raise typer.Exit(1)


def _shape(model: str) -> ModelShape:
    from openk2 import assets
    from openk2.planner.read_model import read_model

    return read_model(str(assets.path(model)) if model in assets.names() else model)


def _measured() -> Hardware:
    """This machine's processors by their measured limits, with what openk2's own engine is assumed to reach of them."""
    from openk2.bench.limits import measure_disk, measure_limits
    from openk2.llm.source import default_packed_folder
    from openk2.planner.hardware import OPENK2_CPU_EFFICIENCY, Hardware

    disk, folder = 0.0, default_packed_folder()
    with suppress(OSError):  # nowhere to keep packed experts: none are left on disk then
        folder.mkdir(parents=True, exist_ok=True)
        disk = measure_disk(folder)
    return Hardware(device=measure_limits().as_device(disk), efficiency=OPENK2_CPU_EFFICIENCY)


PACKED = {"bf16": "bf16", "int8": "int8", "q8_0": "int8", "int4": "int4", "q4_0": "int4"}
"""What openk2 serves a scheme's weights in on a processor."""


def _probed(plan: Plan, model: str) -> Plan:
    """The plan with its speed measured on some layers of the model's shape, where openk2 would serve it from memory."""
    from openk2.bench.probe import NUM_ROUNDS, SLICE_BYTES, probe
    from openk2.checkpoint import Quantization
    from openk2.cli.progress import progress_bar
    from openk2.planner.measured import with_measured_speed

    config, formats, load = _config(model), PACKED.get(plan.quantization), plan.load
    if config is None or formats is None or plan.speed is None or plan.memory.disk_experts_fraction:
        return plan
    if plan.memory.weights_bytes > SLICE_BYTES * config.num_hidden_layers:
        return plan  # to draw a few layers would take minutes
    chunk = min(512, load.uncached_prompt_tokens)
    with progress_bar("timing layers", NUM_ROUNDS) as on_round:
        speed = probe(
            config,
            Quantization.parse(formats),
            weights_bytes=plan.memory.weights_bytes,
            chunk_tokens=chunk,
            batch=load.batch,
            on_round=on_round,
        )
    return with_measured_speed(
        plan,
        decode_step_s=speed.decode_s(load.mean_context_tokens),
        prompt_s=speed.prompt_s(load.uncached_prompt_tokens, load.prompt_tokens - load.uncached_prompt_tokens),
        measured=f"speed: measured here with openk2's engine on {speed.layers[0]} and {speed.layers[1]} of "
        f"{config.num_hidden_layers} layers with random weights, {formats} packed, at depths of 0 and 2,048",
    )


def _config(model: str) -> ModelConfig | None:
    """What openk2 can build of the model: None where it is another family's, or only its tensors' sizes are known."""
    from openk2 import assets
    from openk2.checkpoint import load_config
    from openk2.config import PRESETS

    if model.lower() in PRESETS:
        return PRESETS[model.lower()]()
    folder = assets.path(model) if model in assets.names() else Path(model)
    return load_config(folder) if (folder / "config.json").exists() else None


PRICE_KEYS = ("hour", "in", "out", "cached")


def _read_price(text: str) -> dict[str, float]:
    from openk2.errors import ConfigError

    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.strip().partition("=")
        try:
            found[key] = float(value)
        except ValueError:
            found[key] = -1.0
        if key not in PRICE_KEYS or not 0 <= found[key] < float("inf"):
            raise ConfigError(f"price is written as {'=, '.join(PRICE_KEYS)}=, not {part!r}", param="price")
    if ("in" in found) != ("out" in found):
        raise ConfigError("a hosted price takes both in= and out=", param="price")
    return found


def _own_prices(plan: Plan, own: dict[str, float], book: Prices) -> tuple[float | None, tuple[HostedPrice, ...]]:
    """A device's hour, None where nobody says it, and the hosted prices of the model, the user's first."""
    from openk2.planner.cost import HostedPrice

    hosted = tuple(one for one in book.hosted if plan.model.name in one.models)
    if "in" in own:
        yours = HostedPrice(
            provider="yours",
            models=(plan.model.name,),
            input_usd=own["in"],
            cached_input_usd=own.get("cached", own["in"]),
            output_usd=own["out"],
            source="--price",
            date="now",
        )
        hosted = (yours, *hosted)
    return own.get("hour", book.device_hour_usd.get(plan.hardware.device.name)), hosted


def _cost(plan: Plan, hour: float | None, hosted: tuple[HostedPrice, ...]) -> Cost | None:
    """None where the plan does not fit, or nobody said what its device costs."""
    from openk2.planner.cost import plan_cost

    return None if plan.speed is None or hour is None else plan_cost(plan, hour, hosted)


def _draw(plan: Plan, hour: float | None, hosted: tuple[HostedPrice, ...], folder: Path) -> list[str]:
    """The files: memory always, speed of a plan that fits, cost where its device has a price."""
    from openk2.planner.curves import cost_over_load, memory_over_context, speed_over_batch
    from openk2.planner.plots import draw

    figures = [memory_over_context(plan)]
    if plan.speed is not None:
        figures.append(speed_over_batch(plan))
        if hour is not None:
            figures.append(cost_over_load(plan, hour, hosted))
    return [str(file) for file in draw(figures, folder)]


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


def _print(plan: Plan, cost: Cost | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in [*_rows(plan), *(_cost_rows(cost) if cost else [])]:
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


def _cost_rows(cost: Cost) -> list[tuple[str, str]]:
    rows = [
        ("cost", f"${cost.month_usd:,.0f} for 30 days of {cost.deployments} deployment(s)"),
        ("  one answers", f"{cost.capacity_requests_per_day:,.0f} requests a day at the load's utilization"),
    ]
    for one in cost.hosted:
        even = one.break_even_requests_per_day
        reach = "out of reach" if even is None or even > cost.capacity_requests_per_day else "within reach"
        when = "no break-even" if even is None else f"break-even at {even:,.0f} requests a day, {reach}"
        rows.append(
            (
                f"  {one.provider}",
                f"${one.month_usd:,.0f}, ${one.request_usd:.5f} a request, ${one.task_usd:.5f} a task; {when} "
                f"({one.source}, {one.date})",
            )
        )
    return rows
