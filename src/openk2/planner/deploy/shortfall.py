"""Where no GPU is: what a model needs, what is missing here, what would hold it, and the nearest model that fits."""

from __future__ import annotations

from dataclasses import dataclass

from openk2.planner.cost import prices
from openk2.planner.deploy.here import Here
from openk2.planner.deploy.make_deployment import plan_for_engine
from openk2.planner.formats import scheme, weights_bytes
from openk2.planner.hardware import catalogue, read_hardware
from openk2.planner.load import Load
from openk2.planner.make_plan import make_plan
from openk2.planner.parallel import Parallelism
from openk2.planner.plan import Plan
from openk2.planner.read_model import read_model
from openk2.planner.shape import ModelShape

OWN_MODELS = ("k2-0905", "deepseek-v3", "moonlight", "nano")
"""Of the K2 architecture, the largest first: those that openk2 itself can serve on a processor."""
OWN_FORMATS = ("bf16", "int8", "int4")
COUNTS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    here: Here
    needs: Plan
    """Of the wanted model, on this machine's memory as one device."""
    holding: tuple[tuple[Plan, float], ...]
    """Hardware that holds it, with dollars per hour; the cheapest first."""
    nearest: Plan | None
    """The largest model that this machine holds."""


def find_shortfall(
    shape: ModelShape,
    load: Load,
    here: Here,
    *,
    quantization: str | None = None,
    cache_format: str = "bf16",
    layout: Parallelism | None = None,
) -> Shortfall:
    """`layout`: hardware that holds the model must hold it so."""
    return Shortfall(
        here=here,
        needs=make_plan(
            shape,
            here.processor,
            load,
            quantization=quantization,
            cache_format=cache_format,
            layout=Parallelism(tp_size=1),
        ),
        holding=tuple(
            holding_hardware(shape, load, quantization=quantization, cache_format=cache_format, layout=layout)
        ),
        nearest=nearest_model(here, load.context_tokens),
    )


def nearest_model(here: Here, context_tokens: int) -> Plan | None:
    """The largest model of the K2 architecture that this machine's memory holds whole, in its finest format, with a
    context as near to the wanted one as its window allows; None where not even the smallest fits."""
    for name in OWN_MODELS:
        shape = read_model(name)
        context = min(context_tokens, shape.max_context_tokens)
        for form in OWN_FORMATS:
            load = Load(context_tokens=context, prompt_tokens=1, output_tokens=1)
            plan = make_plan(shape, here.processor, load, quantization=form)
            if plan.refusal is None and not plan.memory.disk_experts_fraction:
                return plan
    return None


def holding_hardware(
    shape: ModelShape, load: Load, *, quantization: str | None, cache_format: str, layout: Parallelism | None
) -> list[tuple[Plan, float]]:
    """For each priced GPU its smallest count that holds the model, with dollars per hour; the cheapest first."""
    total = weights_bytes(shape, scheme(quantization or shape.native_scheme))
    found = []
    for device in catalogue().values():
        usd = prices().device_hour_usd.get(device.name)
        if usd is None or device.kind != "gpu":
            continue
        for count in COUNTS if layout is None else (layout.num_devices,):
            per_node = device.devices_per_node
            if device.memory_bytes * device.usable_fraction * count < total or (count > per_node and count % per_node):
                continue
            plan = plan_for_engine(
                shape,
                read_hardware(f"{count}x{device.name}"),
                load,
                quantization=quantization,
                cache_format=cache_format,
                layout=layout,
            )
            if plan.refusal is None:
                found.append((plan, usd * count))
                break
    return sorted(found, key=lambda pair: pair[1])
