"""What a plan looks like when one of its inputs changes: cost over load, memory over context, tokens/s over batch.

Numbers only; `plots` draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from openk2.planner.cost import HostedPrice, plan_cost
from openk2.planner.formats import scheme
from openk2.planner.memory import plan_memory
from openk2.planner.plan import Plan
from openk2.planner.roofline import plan_speed


@dataclass(frozen=True, kw_only=True)
class Line:
    """y over x."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Lines of one question, with what their axes are."""

    name: str
    """Of the file, without its ending."""
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    is_stacked: bool = False
    """Lines add up, and are drawn as areas on each other."""
    limit: tuple[str, float] | None = None
    """A level not to be crossed, with its name."""
    is_log_y: bool = False
    x_base: int = 2
    """Of the x axis, which is logarithmic."""


def _between(low: int, high: int) -> tuple[int, ...]:
    """Powers of two from `low` on, and `high` itself."""
    values = []
    while low < high:
        values.append(low)
        low *= 2
    return (*values, high)


def _subject(plan: Plan) -> str:
    return f"{plan.model.name} in {plan.quantization} on {plan.hardware}, {plan.parallelism}"


def cost_over_load(plan: Plan, device_hour_usd: float, hosted: Sequence[HostedPrice]) -> Figure:
    """Thirty days from a thousand to ten million requests a day: one's own devices in whole deployments, and each
    hosted price. Raises ConfigError for a plan that does not fit."""
    requests = tuple(10 ** (3 + step / 32) for step in range(129))
    costs = [
        plan_cost(replace(plan, load=replace(plan.load, requests_per_day=each)), device_hour_usd, tuple(hosted))
        for each in requests
    ]
    lines = [Line(name=str(plan.hardware), x=requests, y=tuple(cost.month_usd for cost in costs))]
    names: dict[tuple[float, ...], list[str]] = {}  # those that cost the same are one line
    for index, price in enumerate(hosted):
        names.setdefault(tuple(cost.hosted[index].month_usd for cost in costs), []).append(price.provider)
    lines += [Line(name=", ".join(providers), x=requests, y=y) for y, providers in names.items()]
    load = plan.load
    return Figure(
        name="cost",
        title=f"{plan.model.name}: {load.prompt_tokens} + {load.output_tokens} tokens a request, batch {load.batch}",
        x_label="requests a day",
        y_label="US dollars in 30 days",
        lines=tuple(lines),
        is_log_y=True,
        x_base=10,
    )


def memory_over_context(plan: Plan) -> Figure:
    """Of the fullest device, by term, up to the model's window, in the plan's layout."""
    contexts = _between(1024, plan.model.max_context_tokens)
    amounts: dict[str, list[float]] = {}
    for context in contexts:
        memory = plan_memory(
            plan.model,
            scheme(plan.quantization),
            plan.cache_format,
            plan.hardware.device,
            plan.parallelism,
            replace(plan.load, context_tokens=context),
        )
        sums: dict[str, float] = {}
        for term in memory.terms:
            name = term.name.partition(":")[0]
            sums[name] = sums.get(name, 0.0) + term.bytes / 1e9
        for name, size in sums.items():
            amounts.setdefault(name, []).append(size)
    x = tuple(float(context) for context in contexts)
    return Figure(
        name="memory",
        title=f"{_subject(plan)}, batch {plan.load.batch}",
        x_label="context, tokens",
        y_label="GB on the fullest device",
        lines=tuple(Line(name=name, x=x, y=tuple(sizes)) for name, sizes in amounts.items()),
        is_stacked=True,
        limit=(plan.hardware.device.name, plan.memory.device_bytes / 1e9),
    )


def speed_over_batch(plan: Plan) -> Figure:
    """Decode of the whole deployment and of one request, up to the largest batch that fits the planned context."""
    batches = _between(1, max(1, plan.largest_batch))
    speeds = [
        plan_speed(
            plan.model,
            scheme(plan.quantization),
            plan.cache_format,
            plan.hardware,
            plan.parallelism,
            replace(plan.load, batch=batch),
            plan.memory.disk_experts_fraction,
        )
        for batch in batches
    ]
    x = tuple(float(batch) for batch in batches)
    return Figure(
        name="speed",
        title=f"{_subject(plan)}, context {plan.load.context_tokens:,}",
        x_label="requests at the same time",
        y_label="tokens/s, decode, by roofline",
        lines=(
            Line(name="all requests", x=x, y=tuple(speed.decode_tokens_per_s for speed in speeds)),
            Line(name="each request", x=x, y=tuple(speed.decode_tokens_per_s_per_request for speed in speeds)),
        ),
        is_log_y=True,
    )
