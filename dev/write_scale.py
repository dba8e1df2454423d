"""Writes docs/scale.md: what 1 million and 100 million users a day need, by the planner and a simulation of the front.

    python dev/write_scale.py            writes the page
    python dev/write_scale.py --check    says whether it is up to date

Everything on the page comes from here: change the audience, run it again. The page is a function of the planner's data
(hardware, prices) and of the gateway's own routing; the simulation is seeded.
"""

from __future__ import annotations

import json
import random
import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from statistics import mean
from string import Template

from openk2.client.gateway.routing import FREE_LOAD, SPREAD, choose
from openk2.planner.cost import prices
from openk2.planner.read_model import read_model
from openk2.planner.scale import Audience, Fleet, Outcome, Service, ServicePlan, Workload, plan_service, simulate
from openk2.planner.scale.front import Choose

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scale.md"
TEMPLATE = ROOT / "dev" / "scale.template.md"
MEASURED_FILE = ROOT / "benchmarks" / "results" / "2026-11-25-gateway-routing.json"
MODEL = "k2-0905"
UNITS = ("8xMI300X", "16xMI300X", "8xB200", "16xB200", "16xH200", "32xH200", "64xH200")
USERS = (1_000_000, 100_000_000)
CELL = 32
"""Deployments that one group of gateways routes over."""
GATEWAY_S = 0.02
GATEWAY_RANGE_S = (0.008, 0.03)
DEVICE_HOURS_PER_FAILURE = 16_384 * 54 * 24 / 419
"""Llama 3 (arXiv:2407.21783, by reports of the paper): 419 unexpected interruptions in 54 days on 16,384 H100."""

BENCHMARK = Workload(sessions=200, turns=6, user_tokens=(10, 80), answer_tokens=24, system_tokens=128, at_once=32)
"""benchmarks/gateway_routing.py; a word is a token there."""
BENCHMARK_SERVICE = Service(begin_s=0.02, answer_s=24 * 0.002)
SEEDS = range(5)


def benchmark_runs(engines: int, *, gateway_s: float = GATEWAY_S, loss_after: float | None = None) -> list[Outcome]:
    """The benchmark, simulated: its upstreams have the names that random ports give them."""
    runs = []
    for seed in SEEDS if engines > 1 else [0]:
        ports = random.Random(seed).sample(range(32768, 61000), engines)
        fleet = Fleet(
            engines=tuple(f"http://127.0.0.1:{port}" for port in ports),
            service=BENCHMARK_SERVICE,
            gateway_s=gateway_s,
            loss_after=loss_after,
        )
        runs.append(simulate(BENCHMARK, fleet, choose, seed=seed))
    return runs


CELL_ENGINES, CELL_SCALE = 8, 4
CONVERSATIONS = Workload(
    sessions=2000,
    turns=5,
    user_tokens=(900, 2300),
    answer_tokens=500,
    system_tokens=2000,
    tenants=20,
)


def least_loaded(loads: Mapping[str, int], key: bytes) -> str:
    """As most balancers do; between equals the key decides."""
    return min(loads, key=lambda name: (loads[name], zlib.crc32(name.encode() + key)))


def cell_runs(plan: ServicePlan) -> dict[str, Outcome]:
    """Ways to route conversations over a cell of this deployment, at the peak's load."""
    speed, load = plan.unit.speed, plan.unit.load
    assert speed is not None
    rate = speed.requests_per_s * plan.audience.headroom * CELL_ENGINES / CELL_SCALE
    workload = replace(CONVERSATIONS, arrivals_per_s=rate / CONVERSATIONS.turns, think_s=plan.audience.think_s)
    devices = plan.device_cache_tokens / plan.deployments / CELL_SCALE
    both = devices + plan.host_cache_tokens / plan.deployments / CELL_SCALE
    few = Fleet(
        engines=tuple(f"http://10.0.0.{number}:8001" for number in range(CELL_ENGINES)),
        service=Service(
            begin_s=1 / speed.decode_tokens_per_s_per_request,
            answer_s=load.output_tokens / speed.decode_tokens_per_s_per_request,
            per_uncached_token_s=1 / speed.prefill_tokens_per_s,
            slots=load.batch // CELL_SCALE,
        ),
        gateway_s=GATEWAY_S,
        cache_blocks=int(both / 16),
    )
    many = replace(few, gateways=8)
    ways: dict[str, tuple[Fleet, Choose]] = {
        FEW: (few, choose),
        MANY: (many, choose),
        "least loaded": (few, least_loaded),
        DEVICES_ALONE: (replace(few, cache_blocks=int(devices / 16)), choose),
        "by prefix, one engine lost for 10 minutes": (replace(few, loss_after=0.4, back_after_s=600), choose),
    }
    return {name: simulate(workload, fleet, way, seed=1) for name, (fleet, way) in ways.items()}


FEW = f"by prefix, {CELL_SCALE} gateways"
MANY = f"by prefix, {8 * CELL_SCALE} gateways"
DEVICES_ALONE = "by prefix, the devices' caches alone"


def table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def units_table(plans: list[ServicePlan]) -> list[str]:
    rows = []
    for plan in plans:
        unit, speed = plan.unit, plan.unit.speed
        assert speed is not None
        rows.append(
            [
                str(unit.hardware),
                str(unit.parallelism),
                f"{unit.load.batch:,}",
                f"{speed.decode_tokens_per_s_per_request:.0f}",
                f"{speed.requests_per_s:.1f}",
                f"{speed.time_to_first_token_s:.2f}",
                speed.decode.binds,
                f"{plan.usd_per_million_requests:,.0f}",
            ]
        )
    header = ["deployment", "layout", "batch", "tokens/s each", "requests/s", "first token, s", "what binds"]
    return table([*header, "$ per million requests"], rows)


def size_rows(plan: ServicePlan) -> list[tuple[str, str]]:
    """What one audience takes of one kind of deployment."""
    cells = ceil(plan.deployments_in_all / CELL)
    failures = plan.devices * 24 / DEVICE_HOURS_PER_FAILURE
    per_token = plan.unit.memory.cache_bytes_per_token
    return [
        ("requests/s at the peak", f"{plan.audience.peak_requests_per_s:,.0f}"),
        ("deployments for the peak", f"{plan.deployments:,}"),
        ("with one of three zones lost", f"{plan.deployments_in_all:,}"),
        ("nodes, devices", f"{plan.nodes:,}, {plan.devices:,}"),
        ("30 days, million $", f"{plan.usd_per_month / 1e6:,.2f}"),
        ("$ per million requests", f"{plan.usd_per_million_requests:,.0f}"),
        ("cache of conversations between two requests", f"{plan.cache_tokens_needed * per_token / 1e12:,.1f} TB"),
        ("room for it on the devices", f"{plan.device_cache_tokens * per_token / 1e12:,.1f} TB"),
        ("so a conversation outlives its last answer by", f"{plan.pause_held_s:,.0f} s"),
        ("room in the nodes' main memory (1 TB each)", f"{plan.host_cache_tokens * per_token / 1e12:,.0f} TB"),
        ("cache from prefill to decode, if apart", f"{plan.prefill_bytes_per_s / 1e9:,.0f} GB/s"),
        ("gateway processes, half busy", f"{plan.gateways:,}"),
        ("cells", f"{cells:,}"),
        ("health checks/s, one fleet", f"{plan.health_checks_per_s():,.0f}"),
        ("health checks/s, in cells", f"{plan.health_checks_per_s(cells):,.0f}"),
        ("hashes/s for routing, one fleet", f"{plan.audience.peak_requests_per_s * plan.deployments_in_all:,.0f}"),
        ("failures a day", f"{failures:,.1f}"),
        ("answers broken by each", f"{running_per_engine(plan):,.0f}"),
        ("conversations that then lose their cache", f"{plan.loss(1):.2%}"),
    ]


def running_per_engine(plan: ServicePlan) -> float:
    """Answers under way at one deployment at the peak, by Little's law."""
    assert plan.unit.speed is not None
    seconds = plan.audience.output_tokens / plan.unit.speed.decode_tokens_per_s_per_request
    return plan.audience.peak_requests_per_s / plan.deployments_in_all * seconds


def sizes_table(plans: dict[str, list[ServicePlan]], unit_names: list[str]) -> list[str]:
    columns = [(users, unit) for users in plans for unit in unit_names]
    chosen = [next(one for one in plans[users] if str(one.unit.hardware) == unit) for users, unit in columns]
    header = ["", *(f"{users}, {unit}" for users, unit in columns)]
    rows = [size_rows(plan) for plan in chosen]
    return table(header, [[lines[0][0], *(line[1] for line in lines)] for lines in zip(*rows, strict=True)])


def benchmark_table() -> list[str]:
    measured = json.loads(MEASURED_FILE.read_text(encoding="utf-8"))
    rows = []
    for name, key, runs in (
        ("1 upstream", "one", benchmark_runs(1)),
        ("4 upstreams", "several", benchmark_runs(4)),
        ("one of 4 killed", "killed", benchmark_runs(4, loss_after=0.4)),
    ):
        real, shares = measured[key], [run.cached_share for run in runs]
        spread = f" ({min(shares):.1%} to {max(shares):.1%})" if len(runs) > 1 else ""
        broken = sorted(run.broken for run in runs)
        rows.append(
            [
                name,
                f"{real['prompt_tokens']:,}",
                f"{runs[0].prompt_tokens:,}" if key != "killed" else f"{mean(run.prompt_tokens for run in runs):,.0f}",
                f"{real['cached_tokens'] / real['prompt_tokens']:.1%}",
                f"{mean(shares):.1%}{spread}",
                f"{real['lost']}, {real['broken']}",
                f"{sum(run.lost for run in runs)}, {broken[0]} to {broken[-1]}" if key == "killed" else "0, 0",
            ]
        )
    header = ["run", "prompt tokens, measured", "simulated", "in a cache, measured", "simulated", "lost, broken"]
    return table([*header, "simulated"], rows)


def cell_table(runs: dict[str, Outcome]) -> list[str]:
    header = [
        "routing",
        "in a cache",
        "first token, s: median",
        "95%",
        "busiest / mean",
        "changed engine",
        "broken",
    ]
    rows = [
        [
            name,
            f"{run.cached_share:.1%}",
            f"{run.first_token_quantile_s(0.5):.2f}",
            f"{run.first_token_quantile_s(0.95):.2f}",
            f"{run.imbalance:.2f}",
            f"{run.moved / run.answered:.1%}",
            f"{run.broken}",
        ]
        for name, run in runs.items()
    ]
    return table([*header, "lost"], [[*row, f"{run.lost}"] for row, run in zip(rows, runs.values(), strict=True)])


def audience_table(audience: Audience) -> list[str]:
    return table(
        ["", ""],
        [
            ["requests per user and day", f"{audience.requests_per_user:g}"],
            [
                "prompt tokens of a request",
                f"{audience.prompt_tokens:,}, {audience.cached_fraction:.0%} found in a cache",
            ],
            ["tokens of an answer", f"{audience.output_tokens:,}"],
            ["busiest hour over the mean", f"{audience.peak:g}"],
            ["between an answer and the next request", f"{audience.think_s:g} s"],
            ["least rate of an answer", f"{audience.least_tokens_per_s:g} tokens/s"],
            ["share of the predicted rate at the peak", f"{audience.headroom:.0%}"],
            ["zones, of which one may be lost at the peak", f"{audience.zones}"],
        ],
    )


def page() -> str:
    """The whole page."""
    shape = read_model(MODEL)
    plans = {
        f"{users / 1e6:.0f}M": plan_service(shape, Audience(users_per_day=users), UNITS, gateway_s=GATEWAY_S)
        for users in USERS
    }
    small = plans["1M"]
    cheapest = small[0]
    nvidia = next(plan for plan in small if not plan.unit.hardware.device.name.startswith("MI"))
    big = next(plan for plan in plans["100M"] if plan.unit.hardware == cheapest.unit.hardware)
    audience = cheapest.audience
    hosted = [price for price in prices().hosted if MODEL in price.models]
    runs = cell_runs(cheapest)
    low, high = (mean(run.cached_share for run in benchmark_runs(4, gateway_s=one)) for one in GATEWAY_RANGE_S)
    milliseconds = [f"{seconds * 1e3:.0f}" for seconds in (GATEWAY_S, *GATEWAY_RANGE_S)]
    texts = {
        "audience": "\n".join(audience_table(audience)),
        "units": "\n".join(units_table(small)),
        "hosted": ", ".join(f"{p.provider} {p.request_usd(audience.load) * 1e6:,.0f} ({p.date})" for p in hosted),
        "sizes": "\n".join(sizes_table(plans, [str(plan.unit.hardware) for plan in (cheapest, nvidia)])),
        "device_hours": f"{DEVICE_HOURS_PER_FAILURE:,.0f}",
        "spread": f"{SPREAD:g}",
        "free_load": f"{FREE_LOAD}",
        "free_bound": f"{FREE_LOAD / SPREAD:g}",
        "benchmark": "\n".join(benchmark_table()),
        "seeds": f"{len(SEEDS)}",
        "gateway_s": (
            f"A gateway's processor time per request is assumed:\n{milliseconds[0]} ms; with {milliseconds[1]} ms "
            f"{low:.1%} are found in a cache, with {milliseconds[2]} ms {high:.1%}."
        ),
        "cell_engines": f"{CELL_ENGINES}",
        "cell_unit": str(cheapest.unit.hardware),
        "cell_sessions": f"{CONVERSATIONS.sessions:,}",
        "cell_turns": f"{CONVERSATIONS.turns}",
        "cell_part": {4: "fourth", 8: "eighth"}[CELL_SCALE],
        "cell_scale": f"{CELL_SCALE}",
        "cell": "\n".join(cell_table(runs)),
        "recomputed": f"{(1 - runs['least loaded'].cached_share) / (1 - runs[FEW].cached_share):.1f}",
        "devices_alone": f"{runs[DEVICES_ALONE].cached_share:.1%}",
        "both": f"{runs[FEW].cached_share:.1%}",
        "running": f"{running_per_engine(cheapest):,.0f}",
        "headroom": f"{audience.headroom:.0%}",
        "fleet_checks": f"{big.health_checks_per_s():,.0f}",
        "fleet_hashes": f"{big.audience.peak_requests_per_s * big.deployments_in_all:,.0f}",
        "break_unit": str(big.unit.hardware),
        "cell_size": f"{CELL}",
        "cell_checks": f"{big.health_checks_per_s(ceil(big.deployments_in_all / CELL)):,.0f}",
        "many_gateways": f"{8 * CELL_SCALE}",
        "many_share": f"{runs[MANY].cached_share:.1%}",
        "few_gateways": f"{CELL_SCALE}",
        "few_share": f"{runs[FEW].cached_share:.1%}",
        "gateways_big": f"{big.gateways:,}",
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(texts)


def main() -> None:
    text = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit("docs/scale.md is not up to date: python dev/write_scale.py")
        return
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
