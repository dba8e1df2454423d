"""How many deployments many users take: peak rate, caches, failure domains, front processes, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from openk2.errors import ConfigError
from openk2.planner.cost import prices
from openk2.planner.deploy import plan_for_engine
from openk2.planner.hardware import read_hardware
from openk2.planner.load import SECONDS_PER_DAY, Load
from openk2.planner.memory import tokens_that_fit
from openk2.planner.plan import Plan
from openk2.planner.shape import ModelShape

BATCHES = (16, 32, 64, 128, 256, 512, 1024, 2048)
HEALTH_EVERY_S = 3.0
"""How often a gateway asks each engine; `client/gateway/health.py`."""
HOST_CACHE_BYTES_PER_NODE = 10**12
"""Of a node's main memory, for caches beyond the devices' own: half of the 2 TB that such nodes are sold with."""


@dataclass(frozen=True, kw_only=True)
class Audience:
    """Assumed, not measured: another audience is another page."""

    users_per_day: float
    requests_per_user: float = 10
    prompt_tokens: int = 8000
    """Of a mean request: conversations and agents' steps, with everything before them."""
    output_tokens: int = 500
    cached_fraction: float = 0.75
    """Of a prompt's tokens, found in a cache; what the front is there for."""
    context_tokens: int = 32768
    peak: float = 2.5
    """Rate of the busiest hour over the day's mean."""
    think_s: float = 60
    """Between an answer and the conversation's next request."""
    least_tokens_per_s: float = 20
    """That each running answer must get."""
    headroom: float = 0.7
    """Share of a deployment's predicted rate that the peak may take."""
    zones: int = 3
    """Rooms, of which any one may be lost at the peak."""

    def __post_init__(self) -> None:
        for name in ("users_per_day", "requests_per_user", "peak", "think_s", "headroom"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}", param=name)
        if self.zones < 2:
            raise ConfigError(f"zones must be at least 2, so that one may be lost, not {self.zones}", param="zones")

    @property
    def peak_requests_per_s(self) -> float:
        return self.users_per_day * self.requests_per_user / SECONDS_PER_DAY * self.peak

    @property
    def conversation_tokens(self) -> float:
        """That are held of a conversation between two requests."""
        return self.prompt_tokens + self.output_tokens

    @property
    def load(self) -> Load:
        return Load(
            context_tokens=self.context_tokens,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            cached_fraction=self.cached_fraction,
        )


@dataclass(frozen=True, kw_only=True)
class ServicePlan:
    audience: Audience
    unit: Plan
    """One deployment, at the batch it runs best with."""
    usd_per_unit_hour: float
    gateway_s: float
    """Processor time of a gateway per request."""

    @property
    def deployments(self) -> int:
        """That the peak takes."""
        assert self.unit.speed is not None
        return ceil(self.audience.peak_requests_per_s / (self.unit.speed.requests_per_s * self.audience.headroom))

    @property
    def deployments_in_all(self) -> int:
        """With one zone lost at the peak, the others still carry it; each zone has as many."""
        zones = self.audience.zones
        return ceil(self.deployments / (zones - 1)) * zones

    @property
    def nodes(self) -> int:
        return self.deployments_in_all * self.unit.hardware.num_nodes

    @property
    def devices(self) -> int:
        return self.deployments_in_all * self.unit.hardware.num_devices

    @property
    def usd_per_month(self) -> float:
        return self.deployments_in_all * self.usd_per_unit_hour * 24 * 30

    @property
    def usd_per_million_requests(self) -> float:
        requests = self.audience.users_per_day * self.audience.requests_per_user * 30
        return self.usd_per_month / requests * 1e6

    @property
    def cache_tokens_needed(self) -> float:
        """Of conversations whose user reads or writes, at the peak: rate x pause x what is held (Little's law)."""
        return self.audience.peak_requests_per_s * self.audience.think_s * self.audience.conversation_tokens

    @property
    def device_cache_tokens(self) -> float:
        """Of all deployments but the lost zone's, beside the running requests at their mean length."""
        plan, load = self.unit, self.unit.load
        room = tokens_that_fit(plan.memory) * plan.parallelism.dp_size
        return max(0.0, room - load.batch * load.mean_context_tokens) * self.deployments

    @property
    def host_cache_tokens(self) -> float:
        nodes = self.deployments * self.unit.hardware.num_nodes
        return nodes * HOST_CACHE_BYTES_PER_NODE / self.unit.memory.cache_bytes_per_token

    @property
    def pause_held_s(self) -> float:
        """How long a conversation's cache outlives its last answer in the devices' own memory."""
        rate = self.audience.peak_requests_per_s * self.audience.conversation_tokens
        return self.device_cache_tokens / rate

    @property
    def prefill_bytes_per_s(self) -> float:
        """Cache that prefill would send to decode, were they apart: of the uncached tokens."""
        uncached = self.audience.prompt_tokens * (1 - self.audience.cached_fraction)
        return self.audience.peak_requests_per_s * uncached * self.unit.memory.cache_bytes_per_token

    @property
    def gateways(self) -> int:
        """Processes, each busy half of the time at the peak."""
        return max(2, ceil(self.audience.peak_requests_per_s * self.gateway_s / 0.5))

    def health_checks_per_s(self, cells: int = 1) -> float:
        """At all engines: in a cell each of its gateways asks each of its engines."""
        return self.gateways * self.deployments_in_all / cells / HEALTH_EVERY_S

    def loss(self, deployments: int) -> float:
        """Share of all conversations that lose their cache with so many deployments."""
        return min(1.0, deployments / self.deployments_in_all)


def best_unit(shape: ModelShape, audience: Audience, hardware: str, *, quantization: str | None = None) -> Plan | None:
    """A deployment on this hardware at the batch with the highest rate at which every answer is fast enough; None where
    the model does not fit or is never fast enough."""
    best: Plan | None = None
    for batch in BATCHES:
        plan = plan_for_engine(
            shape, read_hardware(hardware), replace(audience.load, batch=batch), quantization=quantization
        )
        if plan.speed is None:
            # The whole window for each request at once is not needed: a mean one is.
            mean = replace(audience.load, batch=batch, context_tokens=audience.prompt_tokens + audience.output_tokens)
            plan = plan_for_engine(shape, read_hardware(hardware), mean, quantization=quantization)
        if plan.speed is None or plan.speed.decode_tokens_per_s_per_request < audience.least_tokens_per_s:
            continue
        if best is None or best.speed is None or plan.speed.requests_per_s > best.speed.requests_per_s:
            best = plan
    return best


def plan_service(
    shape: ModelShape, audience: Audience, units: Sequence[str], *, gateway_s: float, quantization: str | None = None
) -> list[ServicePlan]:
    """One plan for each kind of deployment that is fast enough, the cheapest first.

    Raises ConfigError where none is, or where a device has no price.
    """
    hours: Mapping[str, float] = prices().device_hour_usd
    found = []
    for name in units:
        unit = best_unit(shape, audience, name, quantization=quantization)
        if unit is None:
            continue
        hardware = unit.hardware
        if hardware.device.name not in hours:
            raise ConfigError(f"{hardware.device.name} has no price; there are {', '.join(hours)}", param="hardware")
        hour = hardware.num_devices * hours[hardware.device.name]
        found.append(ServicePlan(audience=audience, unit=unit, usd_per_unit_hour=hour, gateway_s=gateway_s))
    if not found:
        raise ConfigError(
            f"none of {', '.join(units)} gives each answer {audience.least_tokens_per_s:g} tokens/s",
            param="hardware",
        )
    return sorted(found, key=lambda plan: plan.usd_per_month)
