"""Tokens per second by roofline: bandwidth and arithmetic overlap, interconnect and overhead come on top.

Source of the model: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009. Experts touched by a batch: see
`ModelShape.experts_touched`.
"""

from __future__ import annotations

from math import ceil, log, sqrt

from openk2.planner.formats import Scheme, cache_bytes_per_token
from openk2.planner.hardware import Hardware
from openk2.planner.load import Load
from openk2.planner.memory import PREFILL_CHUNK_TOKENS
from openk2.planner.parallel import Parallelism, device_cache_bytes_per_token, device_weights_bytes_by_kind
from openk2.planner.plan import Speed, TimeTerms
from openk2.planner.shape import Kind, ModelShape


def experts_read_share(shape: ModelShape, layout: Parallelism, tokens: float) -> float:
    """Share of its routed experts that the busiest device reads for a step of `tokens` tokens per replica.

    With expert parallelism the tokens of all replicas meet at the experts, and the fullest of n ranks holds about
    m + sqrt(2 m ln n) of the chosen ones, m being the mean: at small batches far more than the mean.
    """
    if not shape.num_experts:
        return 1.0
    if not layout.expert_parallel:
        return shape.experts_touched(tokens) / shape.num_experts
    touched = shape.experts_touched(tokens * layout.dp_size)
    mean = touched / layout.ep_size
    most = shape.num_experts / layout.ep_size
    return min(most, touched, mean + sqrt(2 * mean * log(layout.ep_size))) / most


def step_time(
    shape: ModelShape,
    scheme: Scheme,
    cache_format: str,
    hardware: Hardware,
    layout: Parallelism,
    *,
    tokens: float,
    context_tokens: float,
    is_prefill: bool,
    disk_experts_fraction: float = 0.0,
) -> TimeTerms:
    """Seconds of one step: `tokens` tokens of each replica, each seeing `context_tokens`.

    In decode every token is another request's, and reads its own cache; in prefill all are one request's.
    `disk_experts_fraction`: of the routed experts that are called, so many are read from disk first. That is the share
    that is not in memory, if routing is even; a cache of hot experts does better when it is not.
    """
    device, gain = hardware.device, hardware.efficiency
    weights = device_weights_bytes_by_kind(shape, scheme, layout)
    share = experts_read_share(shape, layout, tokens)
    read = sum(
        size * (share if kind is Kind.ROUTED_EXPERTS else 1)
        for kind, size in weights.items()
        if kind is not Kind.EMBEDDING  # a lookup
    )
    called = share * weights.get(Kind.ROUTED_EXPERTS, 0)
    bandwidth = device.bandwidth_bytes_per_s * gain.bandwidth_fraction
    cached = float(device_cache_bytes_per_token(cache_bytes_per_token(shape, cache_format), shape, layout))
    readers = 1 if is_prefill else tokens
    attention = shape.attention
    per_context = (
        attention.prefill_flops_per_context_token() if is_prefill else attention.decode_flops_per_context_token()
    )
    flops = tokens * (shape.linear_flops_per_token + per_context * shape.num_layers * context_tokens)
    flops += (1 if is_prefill else tokens) * shape.head_flops
    rate = device.flops_per_s(scheme.arithmetic) * gain.flops_fraction
    stages = layout.pp_size
    return TimeTerms(
        weights_s=stages * read / bandwidth,
        cache_s=stages * readers * context_tokens * cached / bandwidth,
        arithmetic_s=flops / layout.tp_size / rate,
        interconnect_s=interconnect_time(shape, hardware, layout, tokens),
        disk_s=called * disk_experts_fraction / device.disk_bytes_per_s if disk_experts_fraction else 0.0,
        overhead_s=gain.overhead_s_per_step + shape.num_layers * gain.overhead_s_per_layer,
    )


def interconnect_time(shape: ModelShape, hardware: Hardware, layout: Parallelism, tokens: float) -> float:
    """Two all-reduces per layer over tp ranks (bfloat16, ring: 2 (n-1)/n of the data), and with expert parallelism a
    dispatch in FP8 and a combine in bfloat16 of each token's experts. The slowest link on the way counts."""
    device, gain = hardware.device, hardware.efficiency

    def link(ranks: int) -> tuple[float, float]:
        if ranks <= device.devices_per_node:
            return device.link_bytes_per_s * gain.link_fraction, device.link_latency_s
        return device.network_bytes_per_s * gain.link_fraction, device.network_latency_s

    seconds = 0.0
    if layout.tp_size > 1:
        rate, latency = link(layout.tp_size)
        size = 2 * (layout.tp_size - 1) / layout.tp_size * tokens * shape.hidden_size * 2
        seconds += 2 * shape.num_layers * (size / rate + latency)
    if layout.ep_size > 1:
        rate, latency = link(layout.ep_size)
        size = tokens / layout.tp_size * shape.num_experts_per_token * shape.hidden_size * 3
        seconds += shape.num_moe_layers * (size / rate + 2 * latency)
    if layout.pp_size > 1:
        rate, latency = link(hardware.num_devices)
        seconds += (layout.pp_size - 1) * (tokens * shape.hidden_size * 2 / rate + latency)
    return seconds


def plan_speed(
    shape: ModelShape,
    scheme: Scheme,
    cache_format: str,
    hardware: Hardware,
    layout: Parallelism,
    load: Load,
    disk_experts_fraction: float = 0.0,
) -> Speed:
    """Decode of the load's batch in the middle of its answers, and prefill of its mean prompt.

    `disk_experts_fraction`: see `step_time`.
    """
    per_replica = ceil(load.batch / layout.dp_size)
    decode = step_time(
        shape,
        scheme,
        cache_format,
        hardware,
        layout,
        tokens=per_replica,
        context_tokens=load.mean_context_tokens,
        is_prefill=False,
        disk_experts_fraction=disk_experts_fraction,
    )
    prompt, seen = load.uncached_prompt_tokens, load.prompt_tokens - load.uncached_prompt_tokens
    chunks = [min(PREFILL_CHUNK_TOKENS, prompt - start) for start in range(0, prompt, PREFILL_CHUNK_TOKENS)]
    steps = []
    for chunk in chunks:
        steps.append(
            step_time(
                shape,
                scheme,
                cache_format,
                hardware,
                layout,
                tokens=chunk,
                context_tokens=seen + chunk / 2,
                is_prefill=True,
                disk_experts_fraction=disk_experts_fraction,
            )
        )
        seen += chunk
    names = TimeTerms.__dataclass_fields__
    prefill = TimeTerms(**{name: sum(getattr(step, name) for step in steps) for name in names})
    prefill_s = sum(step.total_s for step in steps)
    seconds_per_request = prefill_s / layout.dp_size + load.output_tokens * decode.total_s / load.batch
    return Speed(
        decode=decode,
        prefill=prefill,
        decode_tokens_per_s_per_request=1 / decode.total_s,
        decode_tokens_per_s=load.batch / decode.total_s,
        prefill_tokens_per_s=prompt / prefill_s,
        time_to_first_token_s=prefill_s,
        experts_touched_per_layer=shape.experts_touched(load.batch),
        requests_per_s=1 / seconds_per_request,
    )
