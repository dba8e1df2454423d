"""How a model is laid over devices, and what each of them then holds of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil
from types import MappingProxyType

from openk2.errors import ConfigError
from openk2.planner.formats import Scheme, weights_bytes
from openk2.planner.shape import Kind, ModelShape, Split, TensorGroup


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """The engines' degrees. tp x dp x pp devices; with `expert_parallel` whole experts lie over all tp x dp ranks."""

    tp_size: int = 1
    dp_size: int = 1
    """Attention replicas, each with requests of its own."""
    pp_size: int = 1
    expert_parallel: bool = False
    dcp_size: int = 1
    """Decode context parallel: the cache of a token lies on one of so many of the tp ranks."""

    def __post_init__(self) -> None:
        for name in ("tp_size", "dp_size", "pp_size", "dcp_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}", param=name)
        if self.tp_size % self.dcp_size:
            raise ConfigError(f"dcp_size {self.dcp_size} must divide tp_size {self.tp_size}", param="dcp_size")

    @property
    def num_devices(self) -> int:
        return self.tp_size * self.dp_size * self.pp_size

    @property
    def ep_size(self) -> int:
        return self.tp_size * self.dp_size if self.expert_parallel else 1

    def __str__(self) -> str:
        parts = [f"TP{self.tp_size}"]
        parts += [f"PP{self.pp_size}"] if self.pp_size > 1 else []
        parts += [f"DP{self.dp_size}"] if self.dp_size > 1 else []
        parts += [f"EP{self.ep_size}"] if self.expert_parallel else []
        parts += [f"DCP{self.dcp_size}"] if self.dcp_size > 1 else []
        return " ".join(parts)


def check_parallelism(shape: ModelShape, parallelism: Parallelism) -> None:
    """Raises ConfigError where the model cannot be cut so."""
    heads = shape.attention.num_heads
    if heads % parallelism.tp_size:
        fitting = ", ".join(str(size) for size in range(1, heads + 1) if heads % size == 0)
        raise ConfigError(
            f"tp_size {parallelism.tp_size} does not divide {heads} attention heads; those that do: {fitting}",
            param="tp_size",
        )
    if parallelism.pp_size > shape.num_layers:
        raise ConfigError(f"pp_size {parallelism.pp_size} exceeds {shape.num_layers} layers", param="pp_size")
    if parallelism.ep_size > max(shape.num_experts, 1):
        raise ConfigError(f"ep_size {parallelism.ep_size} exceeds {shape.num_experts} experts", param="ep_size")


def parts(shape: ModelShape, parallelism: Parallelism, split: Split) -> int:
    """Into how many parts tensors of this split are cut, within one pipeline stage."""
    if split is Split.TENSOR:
        return parallelism.tp_size
    if split is Split.KV_HEADS:
        return min(parallelism.tp_size, shape.attention.cache_parts)
    if split is Split.EXPERTS:
        return parallelism.ep_size if parallelism.expert_parallel else parallelism.tp_size
    return 1


def stage_share(shape: ModelShape, tensor: TensorGroup, parallelism: Parallelism) -> Fraction:
    """Share of a tensor group on the fullest pipeline stage: the longest run of layers; embedding and head, which are
    alone on the first and the last, count on the same stage."""
    if tensor.kind in (Kind.EMBEDDING, Kind.LM_HEAD):
        return Fraction(1)
    return Fraction(ceil(shape.num_layers / parallelism.pp_size), shape.num_layers)


@lru_cache(maxsize=1024)  # a plan asks several times for each layout; exact fractions cost 30 ms a time
def device_weights_bytes_by_kind(shape: ModelShape, scheme: Scheme, parallelism: Parallelism) -> Mapping[Kind, int]:
    """Weights on the fullest device, by kind."""
    sizes: dict[Kind, Fraction] = {}
    for tensor in shape.tensors():
        size = scheme.group_bytes(tensor) / parts(shape, parallelism, tensor.split)
        if tensor.split is Split.EXPERTS and parallelism.expert_parallel:
            most = ceil(shape.num_experts / parallelism.ep_size)  # the fuller ranks, where experts do not divide
            size = scheme.group_bytes(tensor) * most / shape.num_experts
        size *= stage_share(shape, tensor, parallelism)
        sizes[tensor.kind] = sizes.get(tensor.kind, Fraction(0)) + size
    return MappingProxyType({kind: ceil(size) for kind, size in sizes.items()})


def replicated_weights_bytes(shape: ModelShape, scheme: Scheme, parallelism: Parallelism) -> int:
    """What all devices together hold beyond one copy of the model."""
    held = sum(device_weights_bytes_by_kind(shape, scheme, parallelism).values()) * parallelism.num_devices
    return max(0, held - weights_bytes(shape, scheme))


def device_cache_bytes_per_token(bytes_per_token: int, shape: ModelShape, parallelism: Parallelism) -> Fraction:
    """Cache on one device per token of a request of its replica. Tensor parallelism cuts keys and values by head, and
    copies a latent on every rank unless `dcp_size` spreads the tokens."""
    layers = Fraction(ceil(shape.num_layers / parallelism.pp_size), shape.num_layers)
    cut = min(parallelism.tp_size, shape.attention.cache_parts)
    return bytes_per_token * layers / cut / parallelism.dcp_size
