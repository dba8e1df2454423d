"""All layers of a packed model for generated tokens in one call (`csrc/decode_layers.cpp`).

There is no definition of this op under `ops/reference`: it is what the model's modules compute, one after the other.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openk2.ops.cpu import _native, isa, use_torchs_threads
from openk2.ops.packed import FORMATS, PackedStack
from openk2.ops.reference import ExpertBudgets

MOST_GROUPS = 64
"""Of experts, that the kernel can choose among."""


@dataclass(frozen=True)
class DecodeShape:
    hidden: int
    heads: int
    nope: int
    rope: int
    value: int
    latent: int
    topk: int
    groups: int
    kept_groups: int
    sigmoid: bool
    """The router's scores; else softmax."""
    top2_of_groups: bool
    """A group of experts scores the sum of its two best; else its best."""
    normalize: bool
    routed_scale: float
    softmax_scale: float
    norm_eps: float
    latent_norm_eps: float


@dataclass(frozen=True)
class DecodeWeights:
    """One layer's. Vectors and router are float32; kv_b is bfloat16, (heads * (nope + value), latent)."""

    input_norm: Tensor
    q_a: PackedStack | None
    q_a_norm: Tensor | None
    q_b: PackedStack
    """Without `q_a`, the whole query projection."""
    kv_a: PackedStack
    kv_a_norm: Tensor
    kv_b: Tensor
    o: PackedStack
    post_norm: Tensor
    router: Tensor | None
    """None: a dense layer, whose MLP is `gate_up` and `down`."""
    router_bias: Tensor | None
    gate_up: PackedStack
    down: PackedStack
    shared_gate_up: PackedStack | None
    shared_down: PackedStack | None


@dataclass(frozen=True)
class StoredWeights:
    """Routed experts that are not in their layers, whose stacks then have a layout and no bytes."""

    hold: Callable[[int, int, int, int, int], None]
    """Given a layer, the addresses of its tokens' experts, weights and inputs, and the number of tokens, brings those
    experts whose weight is not 0 into slots and writes the slots over their numbers (`csrc/decode_layers.hpp`). What it
    raises ends the step."""
    gate_up: PackedStack
    """Of all slots."""
    down: PackedStack


class DecodeLayers:
    """The op over one model's weights, which it keeps alive."""

    def __init__(
        self,
        shape: DecodeShape,
        layers: Sequence[DecodeWeights],
        block_size: int,
        stored: StoredWeights | None = None,
    ) -> None:
        """Raises ValueError for weights that do not fit `shape`. `block_size`: of the caches, in tokens."""
        self._shape, self._layers, self._block_size = shape, tuple(layers), block_size
        s = shape
        self._plan: Any = _native.DecodePlan(
            (s.hidden, s.heads, s.nope, s.rope, s.value, s.latent, s.topk, s.groups, s.kept_groups, block_size),
            (s.sigmoid, s.top2_of_groups, s.normalize),
            (s.routed_scale, s.softmax_scale, s.norm_eps, s.latent_norm_eps),
        )
        for w in self._layers:
            _check(shape, w)
            vectors = (w.input_norm, w.q_a_norm, w.kv_a_norm, w.kv_b, w.post_norm, w.router, w.router_bias)
            stacks = (w.q_a, w.q_b, w.kv_a, w.o, w.gate_up, w.down, w.shared_gate_up, w.shared_down)
            self._plan.add_layer([0 if v is None else v.data_ptr() for v in vectors], [_packed(one) for one in stacks])
        self._last_caches: list[weakref.ref[Tensor]] = []
        self._cache_addresses: list[int] = []
        if stored is not None:
            self._stored = stored
            self._plan.hold_experts(stored.hold, _packed(stored.gate_up), _packed(stored.down))

    def __call__(
        self,
        h: Tensor,
        rotary: tuple[Tensor, Tensor],
        positions: Tensor,
        slots: Tensor,
        sequences: Tensor,
        block_tables: Tensor,
        caches: Sequence[Tensor],
        budgets: ExpertBudgets | None,
    ) -> tuple[Tensor, Tensor]:
        """h (T, hidden) float32 after the last layer, when the latents of its tokens are in the caches; and with
        `budgets` how many experts each token took, (layers, T) int64, 0 in dense layers.

        rotary: cos and sin, (T, rope / 2). positions, slots and sequences (rows of `block_tables`): (T,) int64; tokens
        of one sequence stand in their order. caches: (blocks, block_size, latent + rope) float32 for each layer.
        Raises ValueError for tensors of another kind;
        what slots, sequences and tables point to is the caller's word.
        """
        out = h.clone(memory_format=torch.contiguous_format)
        cos, sin = (table.contiguous() for table in rotary)
        tables = block_tables.contiguous()
        self._check_call(out, cos, sin, positions, slots, sequences, tables, budgets)
        taken = torch.zeros(len(self._layers), 0 if budgets is None else len(out), dtype=torch.int64)
        limits = () if budgets is None else (budgets.least_T, budgets.most_T, budgets.mass_T, taken)
        use_torchs_threads()
        self._plan.run(
            out.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            (positions.data_ptr(), slots.data_ptr(), sequences.data_ptr(), tables.data_ptr()),
            tables.shape[1],
            tuple(tensor.data_ptr() for tensor in limits) or (0, 0, 0, 0),
            self._addresses(caches),
            out.shape[0],
            isa(),
        )
        return out, taken

    def _check_call(
        self,
        h: Tensor,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor,
        slots: Tensor,
        sequences: Tensor,
        tables: Tensor,
        budgets: ExpertBudgets | None,
    ) -> None:
        s, tokens = self._shape, len(h)
        angles = (tokens, s.rope // 2)
        for name, tensor, shape in (("h", h, (tokens, s.hidden)), ("cos", cos, angles), ("sin", sin, angles)):
            _check_tensor(name, tensor, torch.float32, shape)
        each = [("positions", positions), ("slots", slots), ("sequences", sequences)]
        if budgets is not None:
            each += [("least", budgets.least_T), ("most", budgets.most_T)]
            _check_tensor("mass", budgets.mass_T, torch.float64, (tokens,))
        for name, tensor in each:
            _check_tensor(name, tensor, torch.int64, (tokens,))
        _check_tensor("block_tables", tables, torch.int64, (len(tables), tables.shape[-1]))

    def _addresses(self, caches: Sequence[Tensor]) -> list[int]:
        """Of the caches, which are checked unless they are those of the last call."""
        last = self._last_caches
        if len(last) != len(caches) or any(ref() is not cache for ref, cache in zip(last, caches, strict=True)):
            width = self._shape.latent + self._shape.rope
            for cache in caches:
                _check_tensor("cache", cache, torch.float32, (len(cache), self._block_size, width))
            self._last_caches = [weakref.ref(cache) for cache in caches]
            self._cache_addresses = [cache.data_ptr() for cache in caches]
        return self._cache_addresses


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if not (tensor.dtype == dtype and tensor.shape == shape and tensor.is_contiguous() and tensor.is_cpu):
        raise ValueError(f"{name}: {dtype} {shape} wanted, not {tensor.dtype} {tuple(tensor.shape)}")


def _packed(stack: PackedStack | None) -> tuple[int, int, int, int, int]:
    if stack is None:
        return (0, 0, 0, 0, 0)
    layout = stack.layout
    return (stack.data.data_ptr(), FORMATS.index(layout.format), layout.count, layout.rows, layout.cols)


def _check(s: DecodeShape, w: DecodeWeights) -> None:
    rank = s.hidden if w.q_a is None else w.q_a.layout.rows
    experts, width = w.down.layout.count, w.down.layout.cols
    expected: list[tuple[str, Tensor | None, torch.dtype, tuple[int, ...]]] = [
        ("input_norm", w.input_norm, torch.float32, (s.hidden,)),
        ("q_a_norm", w.q_a_norm, torch.float32, (rank,)),
        ("kv_a_norm", w.kv_a_norm, torch.float32, (s.latent,)),
        ("kv_b", w.kv_b, torch.bfloat16, (s.heads * (s.nope + s.value), s.latent)),
        ("post_norm", w.post_norm, torch.float32, (s.hidden,)),
        ("router", w.router, torch.float32, (experts, s.hidden)),
        ("router_bias", w.router_bias, torch.float32, (experts,)),
    ]
    for name, tensor, dtype, shape in expected:
        if tensor is not None:
            _check_tensor(name, tensor, dtype, shape)
    stacks: list[tuple[str, PackedStack | None, tuple[int, int, int]]] = [
        ("q_a", w.q_a, (1, rank, s.hidden)),
        ("q_b", w.q_b, (1, s.heads * (s.nope + s.rope), rank)),
        ("kv_a", w.kv_a, (1, s.latent + s.rope, s.hidden)),
        ("o", w.o, (1, s.hidden, s.heads * s.value)),
        ("gate_up", w.gate_up, (2 * experts, width, s.hidden)),
        ("down", w.down, (experts, s.hidden, width)),
    ]
    if w.shared_down is not None:
        wide = w.shared_down.layout.cols
        stacks += [
            ("shared_gate_up", w.shared_gate_up, (2, wide, s.hidden)),
            ("shared_down", w.shared_down, (1, s.hidden, wide)),
        ]
    for name, stack, sizes in stacks:
        layout = None if stack is None else stack.layout
        if layout is not None and (layout.count, layout.rows, layout.cols) != sizes:
            raise ValueError(f"{name}: {sizes} wanted, not {layout}")
    for up, down in ((w.gate_up, w.down), (w.shared_gate_up, w.shared_down)):
        if up is not None and down is not None and up.layout.format != down.layout.format:
            raise ValueError(f"the halves of an MLP are of two formats: {up.layout.format}, {down.layout.format}")
    if not 0 < s.kept_groups <= s.groups <= MOST_GROUPS or (w.router is not None and not _can_choose(s, experts)):
        raise ValueError(f"cannot choose {s.topk} of {experts} experts in {s.kept_groups} of {s.groups} groups")


def _can_choose(s: DecodeShape, experts: int) -> bool:
    """Whether the router's rule gives `topk` different experts."""
    size = experts // s.groups
    is_even = size * s.groups == experts and (size > 1 or s.groups == 1)
    return is_even and 0 < s.topk <= s.kept_groups * size
