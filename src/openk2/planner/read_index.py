"""Which model a bare `model.safetensors.index.json` belongs to.

An index names tensors and their total size, and no shapes. So it is recognised: layers, experts and scales are counted
from the names, and the known model whose bytes in that scheme are the index's total is the one that is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openk2.errors import ConfigError
from openk2.planner.formats import scheme, weights_bytes
from openk2.planner.shape import ModelShape

LAYER = re.compile(r"\.layers\.(\d+)\.")
EXPERT = re.compile(r"\.layers\.(\d+)\.mlp\.experts\.(\d+)\.")

SUFFIX_SCHEMES = (
    (".weight_scale_inv", "fp8"),
    (".weight_packed", "int4"),
    (".g_idx", "gptq"),
    (".qweight", "awq"),
)
"""How a scheme shows in a tensor's name; the first match wins, and bfloat16 has none."""

SIZE_TOLERANCE = 0.01
"""Indexes differ in rotary buffers and in the numbers of vectors; relatives differ by far more."""


@dataclass(frozen=True, kw_only=True)
class IndexFacts:
    """What an index tells."""

    num_layers: int
    num_experts: int
    num_dense_layers: int
    """Before the first one with experts."""
    scheme: str
    total_bytes: int | None

    def __str__(self) -> str:
        size = f", {self.total_bytes:,} bytes" if self.total_bytes is not None else ""
        return (
            f"{self.num_layers} layers, {self.num_dense_layers} dense, {self.num_experts} experts, {self.scheme}{size}"
        )


def index_facts(raw: Mapping[str, Any]) -> IndexFacts:
    """Counted from the names. Raises ConfigError where there are no layers."""
    names = [name for name in _table(raw, "weight_map") if isinstance(name, str)]
    layers = {int(found[1]) for name in names if (found := LAYER.search(name))}
    experts = [(int(found[1]), int(found[2])) for name in names if (found := EXPERT.search(name))]
    if not layers:
        raise ConfigError("the index names no tensor of a layer in its weight_map", param="model")
    size = _table(raw, "metadata").get("total_size")
    return IndexFacts(
        num_layers=max(layers) + 1,
        num_experts=max((expert for _, expert in experts), default=-1) + 1,
        num_dense_layers=min((layer for layer, _ in experts), default=max(layers) + 1),
        scheme=next((name for suffix, name in SUFFIX_SCHEMES if any(n.endswith(suffix) for n in names)), "bf16"),
        total_bytes=int(size) if isinstance(size, int | float) and 1 <= size < float("inf") else None,
    )


def _table(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = raw.get(key)
    return found if isinstance(found, Mapping) else {}


def read_index(file: Path, raw: Mapping[str, Any], known: Iterable[ModelShape]) -> ModelShape:
    """The known model that the index describes, with the index's scheme as its native one. Where releases share a
    shape, the one with the shortest window: an index does not tell it.

    Raises ConfigError, with what the index tells, where none or several different ones fit.
    """
    facts = index_facts(raw)
    alike = [
        shape
        for shape in known
        if (shape.num_layers, shape.num_experts, shape.num_dense_layers)
        == (facts.num_layers, facts.num_experts, facts.num_dense_layers)
    ]
    if facts.total_bytes is not None:
        sizes = [(weights_bytes(shape, scheme(facts.scheme)), shape) for shape in alike]
        alike = [shape for size, shape in sizes if abs(size / facts.total_bytes - 1) <= SIZE_TOLERANCE]
    if len({shape.parameters for shape in alike}) != 1:
        raise ConfigError(
            f"{file} ({facts}) is the index of {'no model' if not alike else 'more than one model'} known here; an "
            f"index has no shapes, so put the model's config.json beside it",
            param="model",
        )
    shortest = min(alike, key=lambda shape: shape.max_context_tokens)
    return replace(
        shortest,
        name=f"{file} ({' or '.join(shape.name for shape in alike)})",
        native_scheme=facts.scheme,
        source=f"recognised by its index: {facts}",
    )
