"""A plan: a model, laid over hardware, under a load. What it needs, how fast it is, what binds, what would help."""

from __future__ import annotations

from dataclasses import dataclass, field

from openk2.planner.hardware import Hardware
from openk2.planner.load import Load
from openk2.planner.parallel import Parallelism
from openk2.planner.shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class MemoryTerm:
    """One line of what the fullest device holds."""

    name: str
    bytes: int
    formula: str


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of the fullest device, and of the whole deployment."""

    terms: tuple[MemoryTerm, ...]
    """Weights by kind, cache, activations, runtime, reserve: their sum is what the device needs."""
    device_bytes: int
    """What one device has."""
    weights_bytes: int
    """The checkpoint's total, once."""
    replicated_bytes: int
    """What all devices hold of the weights beyond one copy."""
    cache_bytes_per_token: int
    """All layers, one copy."""
    device_cache_bytes_per_token: float
    disk_experts_fraction: float = 0.0
    """Share of the routed experts that stays on disk and is read when it is called."""

    @property
    def needed_bytes(self) -> int:
        return sum(term.bytes for term in self.terms)

    @property
    def missing_bytes(self) -> int:
        """By how much the fullest device falls short; 0 where the plan fits."""
        return max(0, self.needed_bytes - self.device_bytes)


@dataclass(frozen=True, kw_only=True)
class TimeTerms:
    """Seconds of one step, by what they are spent on. Memory and arithmetic overlap: the longer of the two counts."""

    weights_s: float
    """Reading weights, of the experts only those that the batch touches."""
    cache_s: float
    """Reading the cache."""
    arithmetic_s: float
    interconnect_s: float
    disk_s: float
    overhead_s: float

    @property
    def total_s(self) -> float:
        return (
            max(self.weights_s + self.cache_s, self.arithmetic_s) + self.interconnect_s + self.disk_s + self.overhead_s
        )

    @property
    def binds(self) -> str:
        """Which term is the longest."""
        terms = {
            "weight bandwidth": self.weights_s,
            "cache bandwidth": self.cache_s,
            "arithmetic": self.arithmetic_s,
            "interconnect": self.interconnect_s,
            "disk": self.disk_s,
            "overhead": self.overhead_s,
        }
        return max(terms, key=lambda name: terms[name])


@dataclass(frozen=True, kw_only=True)
class Speed:
    """By roofline, or with measured rates (`measured.py`). Those are of the whole deployment unless they say else."""

    decode: TimeTerms
    """One step, in which each running request gets one token."""
    prefill: TimeTerms
    """The uncached part of one mean prompt."""
    decode_tokens_per_s_per_request: float
    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    """Of one replica."""
    time_to_first_token_s: float
    """Of a mean prompt that does not wait."""
    experts_touched_per_layer: float
    """By one decode step, over all devices."""
    requests_per_s: float
    """Of the load's mean request, prefill and decode taking turns."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why there is no plan."""

    reason: str
    missing_bytes: int
    """On the fullest device."""
    missing_total_bytes: int
    """Over all devices."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    model: ModelShape
    quantization: str
    cache_format: str
    hardware: Hardware
    parallelism: Parallelism
    load: Load
    memory: Memory
    speed: Speed | None
    """None where it does not fit."""
    largest_context_tokens: int
    """Of one request alone, at most the model's window; 0 where even the weights do not fit."""
    largest_batch: int
    """Of requests of the planned context."""
    refusal: Refusal | None = None
    advice: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = field(default=())
