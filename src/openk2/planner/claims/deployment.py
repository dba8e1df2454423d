"""What hardware and prices say: what fits, how fast, what it costs. The planner's plans, as single numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from openk2.planner.claims.quantity import K2, Quantity
from openk2.planner.cost import DAYS_PER_MONTH, HostedPrice, device_hour_usd, hosted_price, plan_cost
from openk2.planner.hardware import Hardware, read_hardware
from openk2.planner.load import SECONDS_PER_DAY, Load
from openk2.planner.make_plan import make_plan
from openk2.planner.plan import Plan
from openk2.planner.read_model import read_model


def device_memory(device: str) -> Quantity:
    found = read_hardware(device).device
    return Quantity(value=float(found.memory_bytes), unit="B", formula=f"{found.name}: {found.source}")


def device_bandwidth(device: str) -> Quantity:
    found = read_hardware(device).device
    return Quantity(value=found.bandwidth_bytes_per_s, unit="B/s", formula=f"{found.name}: {found.source}")


def bandwidth_gain(device: str, over: str) -> Quantity:
    a, b = (read_hardware(name).device.bandwidth_bytes_per_s for name in (device, over))
    return Quantity(value=a / b - 1, unit="%", formula=f"{a / 1e12:g} / {b / 1e12:g} TB/s - 1")


def price_gain(device: str, over: str) -> Quantity:
    a, b = (device_hour_usd(name) for name in (device, over))
    return Quantity(value=a / b - 1, unit="%", formula=f"{a:g} / {b:g} USD an hour - 1")


def _plan(hardware: str, quantization: str, context: int, batch: int = 1, model: str = K2) -> Plan:
    load = Load(context_tokens=context, batch=batch, prompt_tokens=min(1000, context), output_tokens=min(2000, context))
    return make_plan(read_model(model), read_hardware(hardware), load, quantization=quantization)


def largest_context(hardware: str, quantization: str = "fp8", model: str = K2) -> Quantity:
    """Of one request, at most the model's window; 0 where the weights alone do not fit."""
    plan = _plan(hardware, quantization, read_model(model).max_context_tokens, model=model)
    fixed = sum(term.bytes for term in plan.memory.terms if term.name != "cache")
    memory = plan.memory
    formula = (
        f"{plan.hardware}, {plan.parallelism}: {memory.device_bytes / 1e9:.1f} GB, less {fixed / 1e9:.1f} of weights, "
        f"activations, runtime and reserve, by {memory.device_cache_bytes_per_token:,.0f} B a token; at most the window"
    )
    return Quantity(value=float(plan.largest_context_tokens), unit="tokens", formula=formula)


def least_devices(device: str, quantization: str, context: int, step: int = 8, model: str = K2) -> Quantity:
    """Of this device, in whole nodes of `step`."""
    count = step
    while _plan(f"{count}x{device}", quantization, context, model=model).refusal is not None:
        count += step
    formula = f"the first multiple of {step} that holds {context:,} tokens in {quantization}"
    return Quantity(value=float(count), unit="", formula=formula)


def needed_per_device(hardware: str, quantization: str, context: int, model: str = K2) -> Quantity:
    """Of the fullest device, its reserve included."""
    plan = _plan(hardware, quantization, context, model=model)
    return Quantity(value=float(plan.memory.needed_bytes), unit="B", formula=f"{plan.hardware}, {plan.parallelism}")


def decode_rate(hardware: str, quantization: str, context: int = 4096, batch: int = 1, model: str = K2) -> Quantity:
    """Tokens/s of each request by roofline, with the assumed efficiency; 0 where it does not fit."""
    plan = _plan(hardware, quantization, context, batch, model)
    if plan.speed is None:
        return Quantity(value=0.0, unit="tokens/s", formula=f"{plan.hardware}: does not fit")
    step = plan.speed.decode
    formula = (
        f"{plan.hardware}, {plan.parallelism}, batch {batch}: 1 / {step.total_s * 1e3:.2f} ms, of which weights "
        f"{step.weights_s * 1e3:.2f}, interconnect {step.interconnect_s * 1e3:.2f} and overhead "
        f"{step.overhead_s * 1e3:.2f}"
    )
    return Quantity(value=plan.speed.decode_tokens_per_s_per_request, unit="tokens/s", formula=formula)


def decode_total(hardware: str, quantization: str, context: int = 4096, batch: int = 64, model: str = K2) -> Quantity:
    """Tokens/s of all requests together."""
    one = decode_rate(hardware, quantization, context, batch, model)
    return Quantity(value=one.value * batch, unit=one.unit, formula=f"{batch} x ({one.formula})")


def first_token(hardware: str, prompt_tokens: int, quantization: str = "fp8", model: str = K2) -> Quantity:
    """Seconds of prefill of one prompt that does not wait."""
    load = Load(context_tokens=prompt_tokens, prompt_tokens=prompt_tokens, output_tokens=1)
    plan = make_plan(read_model(model), read_hardware(hardware), load, quantization=quantization)
    value = plan.speed.time_to_first_token_s if plan.speed else float("inf")
    return Quantity(value=value, unit="s", formula=f"{plan.hardware}, {plan.parallelism}, {prompt_tokens:,} tokens")


def hardware_month(hardware: str) -> Quantity:
    """Thirty days at the price file's hour."""
    machine: Hardware = read_hardware(hardware)
    hour = device_hour_usd(machine.device.name)
    value = machine.num_devices * hour * 24 * DAYS_PER_MONTH
    return Quantity(
        value=value, unit="USD/month", formula=f"{machine.num_devices} x {hour:g} USD x {24 * DAYS_PER_MONTH} h"
    )


def _load(input_tokens: int, output_tokens: int, requests_per_day: float) -> Load:
    return Load(
        context_tokens=input_tokens + output_tokens,
        prompt_tokens=input_tokens,
        output_tokens=output_tokens,
        requests_per_day=requests_per_day,
    )


def hosted_month(
    requests_per_day: float, provider: str, input_tokens: int = 1000, output_tokens: int = 2000
) -> Quantity:
    price: HostedPrice = hosted_price(provider, K2)
    each = price.request_usd(_load(input_tokens, output_tokens, requests_per_day))
    value = each * requests_per_day * DAYS_PER_MONTH
    formula = f"{requests_per_day:,.0f} x {DAYS_PER_MONTH} x {each:g} USD a request"
    return Quantity(value=value, unit="USD/month", formula=formula)


def self_hosted_month(
    hardware: str, requests_per_day: float, batch: int, input_tokens: int = 1000, output_tokens: int = 2000
) -> Quantity:
    """As many copies of the hardware as the requests take, each answering `batch` of them at a time."""
    load = replace(_load(input_tokens, output_tokens, requests_per_day), batch=batch)
    plan = make_plan(read_model(K2), read_hardware(hardware), load)
    cost = plan_cost(plan, device_hour_usd(plan.hardware.device.name), ())
    formula = f"{cost.deployments} x {plan.hardware}, each {cost.capacity_requests_per_day:,.0f} requests a day"
    return Quantity(value=cost.month_usd, unit="USD/month", formula=formula)


def break_even(
    hardware: str, provider: str, month_usd: float | None = None, input_tokens: int = 1000, output_tokens: int = 2000
) -> Quantity:
    """Requests a day from which the hardware, running all day, costs less than the hosted price."""
    plan = make_plan(read_model(K2), read_hardware(hardware), _load(input_tokens, output_tokens, 0))
    hours = 24 * DAYS_PER_MONTH * plan.hardware.num_devices
    hour = device_hour_usd(plan.hardware.device.name) if month_usd is None else month_usd / hours
    hosted = plan_cost(plan, hour, (hosted_price(provider, K2),)).hosted[0]
    formula = f"{plan.hardware} at {hour:.2f} USD x 24 h / {hosted.request_usd:g} USD a request"
    assert hosted.break_even_requests_per_day is not None, "it has a price"
    return Quantity(value=hosted.break_even_requests_per_day, unit="requests/day", formula=formula)


def output_rate(requests_per_day: float, output_tokens: int = 2000) -> Quantity:
    """That so many requests take, spread evenly over the day."""
    value = requests_per_day * output_tokens / SECONDS_PER_DAY
    return Quantity(
        value=value, unit="tokens/s", formula=f"{requests_per_day:,.0f} x {output_tokens} / {SECONDS_PER_DAY:,} s"
    )


DEPLOYMENT_QUANTITIES: dict[str, Callable[..., Quantity]] = {
    function.__name__: function
    for function in (
        device_memory,
        device_bandwidth,
        bandwidth_gain,
        price_gain,
        largest_context,
        least_devices,
        needed_per_device,
        decode_rate,
        decode_total,
        first_token,
        hardware_month,
        hosted_month,
        self_hosted_month,
        break_even,
        output_rate,
    )
}
