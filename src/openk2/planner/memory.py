"""What the fullest device holds, term by term."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, floor

from openk2.planner.formats import Scheme, cache_bytes_per_token, weights_bytes
from openk2.planner.hardware import Device
from openk2.planner.load import Load
from openk2.planner.parallel import (
    Parallelism,
    device_cache_bytes_per_token,
    device_weights_bytes_by_kind,
    replicated_weights_bytes,
)
from openk2.planner.plan import Memory, MemoryTerm
from openk2.planner.shape import Kind, ModelShape


def _term(kind: Kind) -> str:
    return f"weights: {kind}"


ROUTED_TERM = _term(Kind.ROUTED_EXPERTS)
PREFILL_CHUNK_TOKENS = 8192
"""Prompt tokens of one step; vLLM's `--max-num-batched-tokens` in the official guide."""


def activation_bytes(shape: ModelShape, layout: Parallelism, load: Load) -> int:
    """Peak of one prefill step in bfloat16: residual and norm, each token's chosen experts, expanded heads, and the
    logits of the running requests in float32."""
    tokens = min(PREFILL_CHUNK_TOKENS, load.context_tokens)
    experts = max(shape.num_experts_per_token, 1) * (shape.hidden_size + 2 * shape.expert_intermediate_size)
    heads = shape.attention.expanded_values_per_token_per_layer
    per_token = 2 * (2 * shape.hidden_size + ceil((experts + heads) / layout.tp_size))
    return tokens * per_token + 4 * ceil(load.batch / layout.dp_size) * ceil(shape.vocab_size / layout.tp_size)


def plan_memory(
    shape: ModelShape, scheme: Scheme, cache_format: str, device: Device, layout: Parallelism, load: Load
) -> Memory:
    """Every term of the fullest device; each running request is given the whole context."""
    weights = device_weights_bytes_by_kind(shape, scheme, layout)
    per_token = cache_bytes_per_token(shape, cache_format)
    on_device = device_cache_bytes_per_token(per_token, shape, layout)
    requests = ceil(load.batch / layout.dp_size)
    terms = [
        MemoryTerm(name=_term(kind), bytes=size, formula=f"{scheme.name}, {layout}") for kind, size in weights.items()
    ]
    terms += [
        MemoryTerm(
            name="cache",
            bytes=ceil(on_device * load.context_tokens * requests),
            formula=f"{float(on_device):,.0f} B/token x {load.context_tokens:,} tokens x {requests} requests",
        ),
        MemoryTerm(
            name="activations",
            bytes=activation_bytes(shape, layout, load),
            formula=f"prefill steps of {min(PREFILL_CHUNK_TOKENS, load.context_tokens):,} tokens",
        ),
        MemoryTerm(name="runtime", bytes=device.runtime_bytes, formula="context, communicators, graphs"),
        MemoryTerm(
            name="reserve",
            bytes=ceil(device.memory_bytes * (1 - device.usable_fraction)),
            formula=f"fragmentation and peaks: {1 - device.usable_fraction:.0%} of the memory",
        ),
    ]
    return Memory(
        terms=tuple(terms),
        device_bytes=device.memory_bytes,
        weights_bytes=weights_bytes(shape, scheme),
        replicated_bytes=replicated_weights_bytes(shape, scheme, layout),
        cache_bytes_per_token=per_token,
        device_cache_bytes_per_token=float(on_device),
    )


def tokens_that_fit(memory: Memory, expert_bytes: int | None = None) -> int:
    """Cache tokens for which the fullest device has room beside its other terms; with `expert_bytes`, beside so many
    bytes of routed experts in memory."""
    others = sum(
        expert_bytes if expert_bytes is not None and term.name == ROUTED_TERM else term.bytes
        for term in memory.terms
        if term.name != "cache"
    )
    return max(0, floor((memory.device_bytes - others) / memory.device_cache_bytes_per_token))


def _routed_bytes(shape: ModelShape, scheme: Scheme) -> int:
    return device_weights_bytes_by_kind(shape, scheme, Parallelism())[Kind.ROUTED_EXPERTS]


def least_expert_bytes(shape: ModelShape, scheme: Scheme) -> int:
    """The routed experts without which openk2's engine cannot compute one token: those of one layer's choice, and one
    that is fetched ahead (`checkpoint/expert_store.py`)."""
    one = _routed_bytes(shape, scheme) / (shape.num_experts * shape.num_moe_layers)
    return ceil((shape.num_experts_per_token + 1) * one)


def with_experts_on_disk(memory: Memory, shape: ModelShape, scheme: Scheme) -> Memory:
    """The same on one device whose routed experts stay on disk: what is left of its memory holds the hot ones, never
    less than `least_expert_bytes`."""
    whole = _routed_bytes(shape, scheme)
    left = memory.device_bytes - (memory.needed_bytes - whole)
    held = min(whole, max(left, least_expert_bytes(shape, scheme)))
    terms = tuple(
        replace(term, bytes=held, formula=f"{held / whole:.0%} in memory, the rest of {whole:,} bytes on disk")
        if term.name == ROUTED_TERM
        else term
        for term in memory.terms
    )
    return replace(memory, terms=terms, disk_experts_fraction=1 - held / whole)
