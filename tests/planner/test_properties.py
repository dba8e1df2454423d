"""What must hold for every plan, and for every input that is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openk2.errors import ConfigError
from openk2.planner import (
    Device,
    Hardware,
    Load,
    ModelShape,
    Parallelism,
    Plan,
    cache_bytes_per_token,
    read_hardware,
    read_load,
    read_tokens,
    scheme,
    weights_bytes,
)
from openk2.planner.cost import HostedPrice, cheapest_plan, plan_cost
from openk2.planner.make_plan import layouts, make_plan
from openk2.planner.read_model import read_model

MODELS = st.sampled_from([read_model(name) for name in ("k2-0905", "moonlight", "glm-4.5", "nano")])
QUANTIZATIONS = st.sampled_from(["bf16", "fp8", "int4", "q4_k_m"])
DEVICES = st.sampled_from(["16xH200", "16xH100", "8xMI300X", "2xM3-Ultra-512GB", "1xCPU-24ch-DDR5-6000-2048GB"])
CACHES = st.sampled_from(["bf16", "fp8"])
RATES = ("bandwidth_bytes_per_s", "bf16_flops_per_s", "fp8_flops_per_s", "int8_ops_per_s", "f32_flops_per_s")
LINKS = ("link_bytes_per_s", "network_bytes_per_s", "disk_bytes_per_s")
LATENCIES = ("link_latency_s", "network_latency_s")
OVERHEADS = ("overhead_s_per_layer", "overhead_s_per_step")


@st.composite
def questions(draw: st.DrawFn) -> tuple[ModelShape, Hardware, Load, dict[str, Any]]:
    """A model on hardware in one of its layouts, under a load; it need not fit."""
    shape, hardware = draw(MODELS), read_hardware(draw(DEVICES))
    window = shape.max_context_tokens
    prompt = draw(st.integers(1, window // 2))
    load = Load(
        context_tokens=draw(st.integers(prompt + 1, window)),
        batch=draw(st.integers(1, 256)),
        prompt_tokens=prompt,
        output_tokens=draw(st.integers(1, window // 2)),
        cached_fraction=draw(st.sampled_from([0.0, 0.5, 0.9])),
    )
    options = {
        "quantization": draw(QUANTIZATIONS),
        "cache_format": draw(CACHES),
        "layout": draw(st.sampled_from(layouts(shape, hardware.num_devices))),
    }
    return shape, hardware, load, options


def with_room(hardware: Hardware) -> Hardware:
    """The same with memory for anything, so that there is a speed."""
    return replace(hardware, device=replace(hardware.device, memory_bytes=10**15))


def scaled(hardware: Hardware, factor: float, *names: str) -> Hardware:
    device: Device = hardware.device
    return replace(hardware, device=replace(device, **{n: (getattr(device, n) or 0) * factor for n in names}))


MANY = settings(max_examples=25, deadline=None)


@MANY
@given(questions(), st.data())
def test_more_context_never_needs_less_memory(question: Any, data: st.DataObject) -> None:
    shape, hardware, load, options = question
    more = replace(load, context_tokens=data.draw(st.integers(load.context_tokens, shape.max_context_tokens)))
    before, after = (make_plan(shape, hardware, one, **options) for one in (load, more))
    assert before.memory.needed_bytes <= after.memory.needed_bytes
    assert before.largest_batch >= after.largest_batch
    assert not (after.refusal is None and before.refusal is not None)


@MANY
@given(questions(), st.integers(1, 64))
def test_more_requests_never_need_less_memory(question: Any, more: int) -> None:
    shape, hardware, load, options = question
    plans = [make_plan(shape, hardware, replace(load, batch=load.batch + extra), **options) for extra in (0, more)]
    assert plans[0].memory.needed_bytes <= plans[1].memory.needed_bytes


@MANY
@given(questions(), st.floats(1, 100), st.sampled_from([*RATES, *LINKS]))
def test_a_faster_part_never_slows(question: Any, factor: float, name: str) -> None:
    shape, hardware, load, options = question
    hardware = with_room(hardware)
    base, faster = (make_plan(shape, one, load, **options).speed for one in (hardware, scaled(hardware, factor, name)))
    assert base is not None and faster is not None
    assert faster.decode_tokens_per_s >= base.decode_tokens_per_s
    assert faster.time_to_first_token_s <= base.time_to_first_token_s
    assert faster.requests_per_s >= base.requests_per_s


@MANY
@given(questions(), st.floats(0.1, 10))
def test_units_balance_in_time(question: Any, factor: float) -> None:
    """A machine that is f times as fast in everything takes 1/f of the time: no term mixes seconds with bytes."""
    shape, hardware, load, options = question
    hardware = with_room(hardware)
    quick = scaled(scaled(hardware, factor, *RATES, *LINKS), 1 / factor, *LATENCIES)
    gain = hardware.efficiency
    quick = replace(quick, efficiency=replace(gain, **{n: getattr(gain, n) / factor for n in OVERHEADS}))
    base, other = (make_plan(shape, one, load, **options).speed for one in (hardware, quick))
    assert base is not None and other is not None
    assert other.decode.total_s * factor == pytest.approx(base.decode.total_s, rel=1e-9)
    assert other.requests_per_s == pytest.approx(base.requests_per_s * factor, rel=1e-9)
    assert other.decode.binds == base.decode.binds


@MANY
@given(questions())
def test_terms_and_rates_balance(question: Any) -> None:
    shape, hardware, load, options = question
    plan: Plan = make_plan(shape, with_room(hardware), load, **options)
    assert plan.memory.needed_bytes == sum(term.bytes for term in plan.memory.terms)
    held = sum(t.bytes for t in plan.memory.terms if t.name.startswith("weights")) * hardware.num_devices
    assert held >= plan.memory.weights_bytes
    assert held - plan.memory.weights_bytes == plan.memory.replicated_bytes
    speed = plan.speed
    assert speed is not None
    assert speed.decode_tokens_per_s * speed.decode.total_s == pytest.approx(load.batch)
    assert speed.prefill_tokens_per_s * speed.time_to_first_token_s == pytest.approx(load.uncached_prompt_tokens)
    assert 0 < speed.experts_touched_per_layer <= shape.num_experts or not shape.num_experts


@MANY
@given(MODELS, st.integers(1, 10**6), CACHES)
def test_bytes_are_linear_where_they_should_be(shape: ModelShape, tokens: int, cache: str) -> None:
    assert cache_bytes_per_token(shape, "bf16") == 2 * cache_bytes_per_token(shape, "fp8")
    order = [weights_bytes(shape, scheme(name)) for name in ("f32", "bf16", "fp8", "q6_k")]
    assert order == sorted(order, reverse=True)


@MANY
@given(st.floats(0, 1e7), st.floats(0.1, 10), st.floats(0.1, 10))
def test_money_balances(requests: float, hour: float, usd: float) -> None:
    load = Load(context_tokens=4096, prompt_tokens=1000, output_tokens=2000, batch=16, requests_per_day=requests)
    price = HostedPrice(
        provider="x", models=(), input_usd=usd, cached_input_usd=usd, output_usd=usd, source="", date=""
    )
    plan = make_plan(read_model("k2-0905"), read_hardware("16xH200"), load, layout=Parallelism(tp_size=16))
    cost = plan_cost(plan, hour, (price,))
    assert cost.deployments * cost.capacity_requests_per_day >= requests
    assert (cost.deployments - 1) * cost.capacity_requests_per_day <= requests
    assert cost.month_usd == pytest.approx(cost.deployments * 16 * hour * 720)
    hosted = cost.hosted[0]
    assert hosted.month_usd == pytest.approx(requests * 30 * 3000 * usd / 1e6)
    assert hosted.break_even_requests_per_day * hosted.request_usd == pytest.approx(16 * hour * 24)


READERS: list[Callable[[str], object]] = [
    read_hardware,
    read_tokens,
    read_model,
    scheme,
    lambda text: read_load(text, context_tokens=4096),
    lambda text: cache_bytes_per_token(read_model("nano"), text),
]
PIECES = st.sampled_from(
    ["16", "0", "-1", "x", "H200", "cpu-", "12ch-ddr5-", "6000", "k", "%", "batch=", "in=", ",", "."]
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=20), st.lists(PIECES, max_size=6).map("".join)), st.sampled_from(READERS))
def test_every_text_is_read_or_refused_in_one_line(text: str, reader: Callable[[str], object]) -> None:
    try:
        reader(text)
    except ConfigError as error:
        assert str(error).strip()


@pytest.mark.parametrize("digits", ["9" * 400, "9" * 5000, "1_000" * 3])
@pytest.mark.parametrize("form", ["{}xH200", "{}k", "batch={}", "cpu-{}ch-ddr5-6000"])
def test_absurd_numbers_are_refused(form: str, digits: str) -> None:
    for reader in READERS:
        with pytest.raises(ConfigError):
            reader(form.format(digits))


def plan(hardware: str = "16xH200", context: int = 4096, **options: Any) -> Plan:
    load = Load(context_tokens=context, prompt_tokens=1000, output_tokens=1000)
    return make_plan(read_model("k2-0905"), read_hardware(hardware), load, **options)


def load_of(text: str) -> Load:
    return read_load(text, context_tokens=4096)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: read_hardware("0xH200"), "at least 1xH200"),
        (lambda: read_hardware("-8xH200"), "at least 1xH200"),
        (lambda: read_hardware("8xH2000"), "the nearest is H200"),
        (lambda: read_hardware("rtx4090"), "the nearest is RTX-4090"),
        (lambda: read_hardware("CPU-0ch-DDR5-4800"), "no device"),
        (lambda: read_hardware(""), "written as 16xH200"),
        (lambda: plan(context=300_000), "beyond the window of k2-0905; the nearest valid choice is 262144"),
        (lambda: plan(context=0), "context_tokens must be at least 1, not 0"),
        (lambda: plan(quantization="fp9"), "the nearest is fp8"),
        (lambda: plan(cache_format="fp16"), "the nearest is bf16"),
        (lambda: plan(layout=Parallelism(tp_size=12)), "does not divide 64 attention heads; those that do: 1, 2, 4, 8"),
        (lambda: plan(layout=Parallelism(tp_size=8)), "takes 8 devices, not 16"),
        (lambda: load_of("requests=-5"), "must not be negative, but is -5; the nearest valid choice is 0"),
        (lambda: load_of("batch=0"), "batch must be at least 1"),
        (lambda: load_of("batch=1.5"), "batch must be a whole number, not 1.5; the nearest is 2"),
        (lambda: load_of("cached=100%"), "cached_fraction must be at least 0 and below 1"),
        (lambda: load_of("utilization=0"), "utilization must be above 0 and at most 1"),
        (lambda: load_of("request=5"), "the nearest is requests="),
        (lambda: load_of("in=4000,out=1000"), "does not fit a context of 4096; raise --context"),
        (lambda: read_tokens("-1"), "must not be negative"),
        (lambda: read_tokens("lots"), "such as 131072 or 128k"),
        (lambda: read_model("k2-0906"), "the nearest is k2-0905"),
        (lambda: cheapest_plan(read_model("nano"), Load(context_tokens=64), target_tokens_per_s=0), "above 0, not 0"),
    ],
)
def test_bad_input_names_the_nearest_choice(ask: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ask()
