"""Routed experts that are not all in memory: a layer asks for those that its tokens chose, and tells which ones the
next layer will probably want."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from openk2 import ops
from openk2.models.forward_batch import ForwardBatch
from openk2.models.k2 import K2Model
from openk2.models.moe import MoE, MoEGate
from openk2.models.packed import PackedExperts
from openk2.ops.packed import PackedLayout, PackedStack

FEW_TOKENS = 16
"""Their experts are brought all before any is computed; those of more tokens are computed while others are read."""


@dataclass(frozen=True)
class ExpertCacheStats:
    """Since the start. A lookup is one expert of one layer in one step, for however many tokens."""

    slots: int
    experts: int
    """Of the model."""
    lookups: int
    """The sum of the next three."""
    hits: int
    """Of what was still in memory."""
    hits_ahead: int
    """Of what had been fetched ahead for it."""
    reads: int
    """For which the layer waited."""
    reads_ahead: int
    """Those in vain too."""
    bytes_read: int


class ExpertSlots(Protocol):
    """Memory for some experts of a model, in stacks whose numbers are slots (`checkpoint.expert_store`)."""

    gate_up: PackedStack
    down: PackedStack
    most_held: int
    """Experts that can be held at once."""
    most_ahead: int

    @property
    def stats(self) -> ExpertCacheStats: ...

    def is_resident(self, layer: int, expert: int) -> bool: ...

    def hold(self, layer: int, experts: Sequence[int]) -> list[int]:
        """The slot of each expert, until the next call. `layer` counts those with experts."""
        ...

    def expect(self, layer: int, experts: Sequence[int]) -> None:
        """Begin to fetch what is not there."""
        ...


class StoredExperts(nn.Module):
    """As `PackedExperts`, in every bit, over slots."""

    slots: ExpertSlots
    """Given after the model has its other weights, by `give_slots`."""
    next_gate: MoEGate | None

    def __init__(self, layer: int, layouts: dict[str, PackedLayout], next_gate: MoEGate | None) -> None:
        """`layer` counts those with experts; `layouts`: of all its experts, as `PackedExperts` has them."""
        super().__init__()
        self.layer, self.layouts = layer, layouts
        object.__setattr__(self, "next_gate", next_gate)  # another layer's module: not this one's to list or to move

    def stack(self, name: str) -> PackedStack:
        """A stack without bytes: what it would be like with all experts."""
        return PackedStack(self.layouts[name], torch.empty(0, dtype=torch.uint8))

    def forward(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, batch: ForwardBatch) -> Tensor:
        used = topk_ids[topk_weights != 0].unique().tolist()
        most = int((topk_weights != 0).sum(-1).amax())
        if len(x) <= FEW_TOKENS and len(used) <= self.slots.most_held:
            ids = self._slots_of(used, self.hold(used, x, most))[topk_ids]
            return ops.packed_experts(x, ids, topk_weights, self.slots.gate_up, self.slots.down)
        return self._in_parts(x, topk_ids, topk_weights, used, most)

    def hold(self, experts: Sequence[int], x: Tensor, most: int) -> list[int]:
        """The slots of a layer's experts. By x (T, hidden), what they are for, the next layer's are guessed: for each
        token as many as the `most` that one has here."""
        slots = self.slots.hold(self.layer, experts)
        self._expect_next(x, most)
        return slots

    def _expect_next(self, x: Tensor, most: int) -> None:
        if self.next_gate is not None:
            self.slots.expect(self.layer + 1, guess_experts(self.next_gate, x, most))

    def _slots_of(self, experts: Sequence[int], slots: Sequence[int]) -> Tensor:
        """(E,): each expert's slot; 0 for those that are not held, which no pair with a weight has chosen."""
        table = torch.zeros(self.layouts["down"].count, dtype=torch.int64)
        table[torch.tensor(experts, dtype=torch.int64)] = torch.tensor(slots, dtype=torch.int64)
        return table

    def _in_parts(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, used: list[int], most: int) -> Tensor:
        """Experts in memory first, while the others are read. Each pair's output stands by itself until all are there,
        so that the weighted sum has its order."""
        T, K = topk_ids.shape
        y = x.new_zeros(T, K, x.shape[1], dtype=torch.float32)
        here = [expert for expert in used if self.slots.is_resident(self.layer, expert)]
        others = [expert for expert in used if not self.slots.is_resident(self.layer, expert)]
        parts = [*_cut(here, self.slots.most_held), *_cut(others, self.slots.most_ahead)]
        for part, following in pairwise([*parts, []]):
            table = self._slots_of(part, self.slots.hold(self.layer, part))
            if following:
                self.slots.expect(self.layer, following)
            else:
                self._expect_next(x, most)
            chosen = torch.isin(topk_ids, torch.tensor(part)) & (topk_weights != 0)
            token, k = chosen.nonzero(as_tuple=True)
            ids = table[topk_ids[token, k]].unsqueeze(1)
            ones = torch.ones(ids.shape)
            y[token, k] = ops.packed_experts(x[token].float(), ids, ones, self.slots.gate_up, self.slots.down)
        out = torch.zeros_like(y[:, 0])
        for each in range(K):
            out += y[:, each] * topk_weights[:, each : each + 1].float()
        return out.to(x.dtype)


def _cut(experts: list[int], most: int) -> list[list[int]]:
    return [experts[i : i + most] for i in range(0, len(experts), most)]


def guess_experts(gate: MoEGate, x: Tensor, count: int) -> list[int]:
    """What a layer's router would choose for x (T, hidden), the input of the layer before: `count` for each token, the
    strongest first."""
    scores = torch.mm(x.float(), gate.weight.float().t())
    scores = scores.sigmoid() if gate.config.scoring_func == "sigmoid" else scores.softmax(-1)
    if gate.e_score_correction_bias is not None:
        scores = scores + gate.e_score_correction_bias
    chosen: list[int] = scores.topk(count).indices.t().flatten().tolist()
    return list(dict.fromkeys(chosen))


def store_experts(model: K2Model) -> None:
    """Put `StoredExperts` in the place of a packed model's `PackedExperts`; `give_slots` makes them work."""
    moes = [layer.mlp for layer in model.decoder_layers if isinstance(layer.mlp, MoE)]
    for number, moe in enumerate(moes):
        assert isinstance(moe.experts, PackedExperts), "a packed model"
        following = moes[number + 1].gate if number + 1 < len(moes) else None
        moe.experts = StoredExperts(number, moe.experts.layouts, following)  # type: ignore[assignment]


def give_slots(model: K2Model, slots: ExpertSlots) -> None:
    for experts in stored_experts(model):
        experts.slots = slots


def stored_experts(model: K2Model) -> list[StoredExperts]:
    """Layer by layer; empty for a model whose experts are in memory."""
    mlps = [layer.mlp for layer in model.decoder_layers]
    return [mlp.experts for mlp in mlps if isinstance(mlp, MoE) and isinstance(mlp.experts, StoredExperts)]


class DecodeHolder:
    """What the native decode step calls for the experts of a layer (`csrc/decode_layers.hpp`, `ExpertSlots`)."""

    def __init__(self, by_layer: Mapping[int, StoredExperts], topk: int, hidden: int) -> None:
        self._by_layer, self._topk, self._hidden = by_layer, topk, hidden

    def __call__(self, layer: int, ids_at: int, weights_at: int, x_at: int, tokens: int) -> None:
        """Addresses: of ids (tokens, topk) int64, over which slots are written, weights float32 and x (tokens, hidden)
        float32."""
        pairs = tokens * self._topk
        ids = (ctypes.c_int64 * pairs).from_address(ids_at)
        weights = (ctypes.c_float * pairs).from_address(weights_at)
        x = torch.frombuffer((ctypes.c_float * (tokens * self._hidden)).from_address(x_at), dtype=torch.float32)
        chosen = [pair for pair in range(pairs) if weights[pair] != 0]
        most = max(Counter(pair // self._topk for pair in chosen).values(), default=0)
        used = list(dict.fromkeys(ids[pair] for pair in chosen))
        slots = self._by_layer[layer].hold(used, x.view(tokens, self._hidden), most)
        table = dict(zip(used, slots, strict=True))
        ids[:] = [table.get(expert, 0) for expert in ids]
