"""What a deployment costs against a hosted one: dated prices, requests a day, break-even, the cheapest hardware."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

from openk2.errors import ConfigError
from openk2.planner.hardware import catalogue, read_hardware
from openk2.planner.load import SECONDS_PER_DAY, Load
from openk2.planner.make_plan import make_plan
from openk2.planner.plan import Plan
from openk2.planner.shape import ModelShape

PRICE_FILE = Path(__file__).parent / "data" / "prices.toml"
DAYS_PER_MONTH = 30


@dataclass(frozen=True, kw_only=True)
class HostedPrice:
    """Dollars per million tokens."""

    provider: str
    models: tuple[str, ...]
    input_usd: float
    cached_input_usd: float
    output_usd: float
    source: str
    date: str

    def request_usd(self, load: Load) -> float:
        """Of the load's mean request."""
        cached = load.prompt_tokens * load.cached_fraction
        return (
            (load.prompt_tokens - cached) * self.input_usd
            + cached * self.cached_input_usd
            + load.output_tokens * self.output_usd
        ) / 1e6


@dataclass(frozen=True, kw_only=True)
class Prices:
    device_hour_usd: Mapping[str, float]
    """By a device's name."""
    hosted: tuple[HostedPrice, ...]


@cache
def prices(file: Path = PRICE_FILE) -> Prices:
    """Of a price file; without one, those that come with openk2, with source and date in `data/prices.toml`.

    Raises ConfigError naming the entry and the field for whatever is wrong.
    """
    import tomllib

    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}", param=str(file)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no TOML: {error}", param=str(file)) from None
    unknown = set(raw) - {"device_hour", "hosted"}
    if unknown:
        raise ConfigError(
            f"{file} has unknown tables {', '.join(sorted(unknown))}; there are [device_hour.NAME] and [[hosted]]",
            param=str(file),
        )
    own, hosted = raw.get("device_hour", {}), raw.get("hosted", [])
    is_list = isinstance(hosted, list) and all(isinstance(entry, Mapping) for entry in hosted)
    if not isinstance(own, Mapping) or not is_list:
        raise ConfigError(f"{file}: prices are tables [device_hour.NAME] and [[hosted]]", param=str(file))
    hours = {name: _usd(entry, "usd", f"{file}: device_hour.{name}") for name, entry in own.items()}
    return Prices(device_hour_usd=hours, hosted=tuple(_hosted(entry, file) for entry in hosted))


def _usd(entry: object, key: str, where: str) -> float:
    value = entry.get(key) if isinstance(entry, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ConfigError(f"{where}: {key} must be dollars of at least 0, not {value!r}", param=key)
    return float(value)


def _hosted(entry: Mapping[str, Any], file: Path) -> HostedPrice:
    where = f"{file}: hosted price of {entry.get('provider', 'an unnamed provider')}"
    known = [one.name for one in fields(HostedPrice)]
    wrong = sorted(set(entry) ^ set(known))
    if wrong:
        raise ConfigError(f"{where}: it must have exactly {', '.join(known)}; see {', '.join(wrong)}", param=str(file))
    if not isinstance(entry["models"], list):
        raise ConfigError(f"{where}: models is a list of names, not {entry['models']!r}", param=str(file))
    values = {key: _usd(entry, key, where) for key in known if key.endswith("_usd")}
    return HostedPrice(**{**entry, **values, "models": tuple(entry["models"])})


def device_hour_usd(device: str) -> float:
    """Of openk2's own price file. Raises ConfigError for a device without a price."""
    found = prices().device_hour_usd.get(device)
    if found is None:
        raise ConfigError(f"no price for {device}; there are {', '.join(prices().device_hour_usd)}", param="hardware")
    return found


def hosted_price(provider: str, model: str) -> HostedPrice:
    """Of openk2's own price file. Raises ConfigError for a provider that does not host the model."""
    for one in prices().hosted:
        if one.provider == provider and model in one.models:
            return one
    raise ConfigError(f"no price of {provider} for {model}", param="provider")


@dataclass(frozen=True, kw_only=True)
class HostedCost:
    provider: str
    request_usd: float
    task_usd: float
    month_usd: float
    break_even_requests_per_day: float | None
    """From which on one deployment, running all day, is cheaper; it may not be able to answer so many. None where the
    hosted one costs nothing."""
    source: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Per 30 days, at the load's requests a day."""

    deployments: int
    """Copies of the planned deployment that the requests take at the load's utilization."""
    month_usd: float
    request_usd: float | None
    """None without requests."""
    capacity_requests_per_day: float
    """Of one deployment at the load's utilization."""
    hosted: tuple[HostedCost, ...]


def plan_cost(plan: Plan, device_hour_usd: float, hosted: tuple[HostedPrice, ...]) -> Cost:
    """Self-hosting and each hosted price for the plan's load. Raises ConfigError for a plan that does not fit."""
    if plan.speed is None:
        raise ConfigError("a plan that does not fit has no cost", param="hardware")
    load = plan.load
    one_month = plan.hardware.num_devices * device_hour_usd * 24 * DAYS_PER_MONTH
    capacity = plan.speed.requests_per_s * SECONDS_PER_DAY * load.utilization
    deployments = max(1, ceil(load.requests_per_day / capacity))
    month = deployments * one_month
    requests = load.requests_per_day * DAYS_PER_MONTH
    asked = [(price, price.request_usd(load)) for price in hosted]
    return Cost(
        deployments=deployments,
        month_usd=month,
        request_usd=month / requests if requests else None,
        capacity_requests_per_day=capacity,
        hosted=tuple(
            HostedCost(
                provider=price.provider,
                request_usd=usd,
                task_usd=usd * load.requests_per_task,
                month_usd=usd * requests,
                break_even_requests_per_day=one_month / DAYS_PER_MONTH / usd if usd else None,
                source=price.source,
                date=price.date,
            )
            for price, usd in asked
        ),
    )


def cheapest_plan(
    shape: ModelShape,
    load: Load,
    *,
    target_tokens_per_s: float,
    quantization: str | None = None,
    cache_format: str = "bf16",
    counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32),
    book: Prices | None = None,
) -> Plan:
    """The plan with the lowest device price per hour whose decode reaches the target for the whole deployment.

    Only devices with a price in `book`, by default openk2's own, are looked at. Raises ConfigError where none reaches
    it, naming the fastest, and for a target that is no rate.
    """
    if not 0 < target_tokens_per_s < float("inf"):
        raise ConfigError(f"target-tps must be above 0, not {target_tokens_per_s:g}", param="target-tps")
    hours = (book or prices()).device_hour_usd
    reached: list[tuple[float, Plan]] = []
    best: Plan | None = None
    for device in catalogue().values():
        usd = hours.get(device.name)
        if usd is None:
            continue
        for count in counts:
            plan = make_plan(
                shape,
                read_hardware(f"{count}x{device.name}"),
                load,
                quantization=quantization,
                cache_format=cache_format,
            )
            if plan.speed is None:
                continue
            if best is None or best.speed is None or plan.speed.decode_tokens_per_s > best.speed.decode_tokens_per_s:
                best = plan
            if plan.speed.decode_tokens_per_s >= target_tokens_per_s:
                reached.append((usd * count, plan))
    if reached:
        return min(reached, key=lambda pair: pair[0])[1]
    if best is None or best.speed is None:
        raise ConfigError(f"{shape.name} fits on none of up to {counts[-1]} priced devices", param="target-tps")
    raise ConfigError(
        f"no hardware of up to {counts[-1]} devices reaches {target_tokens_per_s:g} tokens/s; the fastest is "
        f"{best.hardware} with {best.speed.decode_tokens_per_s:.0f}. A larger batch= in --load raises the total",
        param="target-tps",
    )
