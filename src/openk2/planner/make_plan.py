"""From a question to a `Plan`: choose a layout, check that it fits, time it, say what would help."""

from __future__ import annotations

from dataclasses import replace

from openk2.errors import ConfigError
from openk2.planner.formats import Scheme
from openk2.planner.formats import scheme as find_scheme
from openk2.planner.hardware import Hardware
from openk2.planner.load import Load
from openk2.planner.memory import least_expert_bytes, plan_memory, tokens_that_fit, with_experts_on_disk
from openk2.planner.parallel import Parallelism, check_parallelism
from openk2.planner.plan import Plan, Refusal
from openk2.planner.roofline import plan_speed
from openk2.planner.shape import LatentAttention, ModelShape


def layouts(shape: ModelShape, num_devices: int) -> list[Parallelism]:
    """Those that the engines offer for so many devices: TP with PP where heads do not divide, and DP with EP."""
    heads = shape.attention.num_heads
    found = [
        Parallelism(tp_size=tp, pp_size=num_devices // tp)
        for tp in range(1, min(num_devices, heads) + 1)
        if num_devices % tp == 0 and heads % tp == 0 and num_devices // tp <= shape.num_layers
    ]
    if num_devices > 1 and shape.num_experts >= num_devices:
        found.append(Parallelism(dp_size=num_devices, expert_parallel=True))
    return found


def make_plan(
    shape: ModelShape,
    hardware: Hardware,
    load: Load,
    *,
    quantization: str | None = None,
    cache_format: str = "bf16",
    layout: Parallelism | None = None,
) -> Plan:
    """The plan for one question; with no `layout`, the one that answers the load's requests fastest of those that fit,
    else the one that holds the longest context, else the one that lacks least. A plan that does not fit has a `refusal`
    and no speed.

    Raises ConfigError for a context beyond the model's window or a layout that cannot be.
    """
    if load.context_tokens > shape.max_context_tokens:
        raise ConfigError(
            f"a context of {load.context_tokens} is beyond the window of {shape.name}; "
            f"the nearest valid choice is {shape.max_context_tokens}",
            param="context",
        )
    if layout is not None:
        check_parallelism(shape, layout)
        if layout.num_devices != hardware.num_devices:
            raise ConfigError(
                f"{layout} takes {layout.num_devices} devices, not {hardware.num_devices}", param="hardware"
            )
    choices = [layout] if layout is not None else layouts(shape, hardware.num_devices)
    if not choices:
        raise ConfigError(f"{shape.name} cannot be cut over {hardware.num_devices} devices", param="hardware")
    name = quantization or shape.native_scheme
    plans = [_plan(shape, hardware, load, name, cache_format, choice) for choice in choices]
    fitting = [plan for plan in plans if plan.speed is not None]
    if fitting:
        return max(fitting, key=lambda plan: plan.speed.requests_per_s if plan.speed else 0.0)
    return max(plans, key=lambda plan: (plan.largest_context_tokens, -plan.memory.missing_bytes))


_STREAMED = (
    "routed experts on disk, as openk2 keeps them with --memory: read at {:.1f} GB/s before they are used, in memory "
    "as often as if routing were even"
)


_PACKED = ("bf16", "int8", "int4")
"""What openk2 packs for its kernels."""


def can_stream_experts(shape: ModelShape, hardware: Hardware, scheme: Scheme) -> bool:
    """Whether openk2's engine can leave routed experts on this hardware's disk: processors of one machine, a model of
    the K2 family, and a format that it packs."""
    device = hardware.device
    is_one_machine = device.kind == "cpu" and hardware.num_devices == 1 and device.disk_bytes_per_s > 0
    is_ours = isinstance(shape.attention, LatentAttention) and shape.num_experts > 0
    return is_one_machine and is_ours and scheme.name in _PACKED


def _plan(
    shape: ModelShape, hardware: Hardware, load: Load, quantization: str, cache_format: str, layout: Parallelism
) -> Plan:
    scheme = find_scheme(quantization)
    memory = plan_memory(shape, scheme, cache_format, hardware.device, layout, load)
    streams = memory.missing_bytes > 0 and can_stream_experts(shape, hardware, scheme)
    if streams:
        memory = with_experts_on_disk(memory, shape, scheme)
    room = tokens_that_fit(memory, least_expert_bytes(shape, scheme) if streams else None)
    plan = Plan(
        model=shape,
        quantization=scheme.name,
        cache_format=cache_format,
        hardware=hardware,
        parallelism=layout,
        load=load,
        memory=memory,
        speed=None,
        largest_context_tokens=min(room, shape.max_context_tokens),
        largest_batch=room // load.context_tokens * layout.dp_size,
        assumptions=(
            f"peaks: {hardware.device.source} ({hardware.device.read_on})",
            f"reached of them: {hardware.efficiency.bandwidth_fraction:.0%} of bandwidth, "
            f"{hardware.efficiency.flops_fraction:.0%} of arithmetic; {hardware.efficiency.source}",
            *((_STREAMED.format(hardware.device.disk_bytes_per_s / 1e9),) if streams else ()),
        ),
    )
    if memory.missing_bytes:
        missing = memory.missing_bytes
        refusal = Refusal(
            reason=f"each device lacks {missing:,} bytes of {memory.needed_bytes:,} that it needs",
            missing_bytes=missing,
            missing_total_bytes=missing * hardware.num_devices,
        )
        return replace(plan, refusal=refusal, advice=_room_advice(plan))
    speed = plan_speed(shape, scheme, cache_format, hardware, layout, load, memory.disk_experts_fraction)
    return replace(plan, speed=speed, advice=(SPEED_ADVICE[speed.decode.binds],))


def _room_advice(plan: Plan) -> tuple[str, ...]:
    if plan.memory.disk_experts_fraction and plan.largest_context_tokens < 1:
        return (f"give it at least {plan.memory.needed_bytes:,} bytes of memory, or a smaller --context",)
    if plan.largest_batch >= 1:
        return (f"lower the batch to {plan.largest_batch}: --load batch={plan.largest_batch}",)
    if plan.largest_context_tokens >= 1:
        return (f"lower --context to {plan.largest_context_tokens}",)
    weights = sum(term.bytes for term in plan.memory.terms if term.name.startswith("weights"))
    others = plan.memory.needed_bytes - weights
    free = plan.hardware.device.memory_bytes - others
    if free <= 0:
        return ("take devices with more memory, or a smaller --quantization",)
    more = -(-weights * plan.hardware.num_devices // free)
    per_node = plan.hardware.device.devices_per_node
    if more > per_node:
        more = -(-more // per_node) * per_node
    return (f"take at least {more} x {plan.hardware.device.name}, or a smaller --quantization",)


SPEED_ADVICE = {
    "weight bandwidth": "reading weights binds: a larger batch is nearly free; fewer bits or more bandwidth help",
    "cache bandwidth": "reading the cache binds: an fp8 cache or shorter contexts help",
    "arithmetic": "arithmetic binds: the batch is large enough; more or faster devices help",
    "interconnect": "the interconnect binds: a smaller tensor-parallel group, or one within a node, helps",
    "disk": "the disk binds: more memory helps",
    "overhead": "fixed overhead per step binds: a larger batch is nearly free",
}
