"""The loss of guided heads: the cross-entropy of their attention against its targets, taken in the forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openk2.training.guides import DECISION, Guides

MOST_ROWS = 32
"""Of one kind in one conversation that are looked at: an even sample stands for the rest."""


@dataclass(frozen=True)
class _Look:
    """What some heads of a layer are to do in one sequence: R of its L rows, and where each is to look."""

    kind: str
    heads: Sequence[int]
    start: int
    end: int
    rows: Tensor
    """(R,) within the sequence."""
    target_RL: Tensor
    """Shares of attention, of which none lies past its row."""


def _look(kind: str, heads: Sequence[int], start: int, end: int, guides: Guides, device: torch.device) -> _Look | None:
    rows = guides[kind][:: -(-len(guides[kind]) // MOST_ROWS) or 1]
    if not rows:
        return None
    cells = [(i, p, 1 / len(places)) for i, (_, places) in enumerate(rows) for p in places]
    index, place, share = (torch.tensor(column, device=device) for column in zip(*cells, strict=True))
    target = torch.zeros(len(rows), end - start, device=device)
    target[index, place] = share
    return _Look(kind, heads, start, end, torch.tensor([row for row, _ in rows], device=device), target)


class _Observed(torch.autograd.Function):
    """The summed cross-entropy of each kind, (kinds,). Its gradient is attention minus target, at a few rows and heads
    of many: it is written into one tensor, where autograd would make one of all rows for every look."""

    @staticmethod
    def forward(
        ctx: Any, q_THD: Tensor, k_THD: Tensor, looks: Sequence[_Look], kinds: Sequence[str], scale: float
    ) -> Tensor:
        losses, parts = q_THD.new_zeros(len(kinds), dtype=torch.float32), []
        for look in looks:
            q = q_THD[look.start : look.end, look.heads][look.rows].transpose(0, 1)
            k = k_THD[look.start : look.end, look.heads].transpose(0, 1)
            scores = (q @ k.mT).float() * scale
            hidden = torch.arange(look.end - look.start, device=q.device) > look.rows[:, None]
            scores = scores.masked_fill(hidden, -torch.inf).log_softmax(-1)
            kind = kinds.index(look.kind)
            losses[kind] -= (scores.masked_fill(hidden, 0.0) * look.target_RL).sum()
            pull = (scores.exp() * look.target_RL.sum(-1, keepdim=True) - look.target_RL) * scale
            pull = pull.to(q.dtype)
            parts.append((look, kind, pull @ k, pull.mT @ q))
        ctx.parts = parts
        ctx.save_for_backward(q_THD, k_THD)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        dq, dk = (torch.zeros_like(t) for t in ctx.saved_tensors)
        for look, kind, dq_HRD, dk_HLD in ctx.parts:
            own = slice(look.start, look.end)
            for head, dq_RD, dk_LD in zip(look.heads, dq_HRD, dk_HLD, strict=True):
                dq[own, head].index_add_(0, look.rows, dq_RD * grads[0][kind].to(dq.dtype))
                dk[own, head].add_(dk_LD * grads[0][kind].to(dk.dtype))
        return dq, dk, None, None, None


class GuideLoss:
    """Collects, during a forward pass, the cross-entropy of guided heads: give `observe` to `ForwardBatch`."""

    def __init__(
        self,
        guides: Sequence[Guides],
        cu_seqlens: Sequence[int],
        heads: Mapping[str, Sequence[Sequence[int]]],
    ) -> None:
        """`guides`: of each packed sequence; `heads`: the (layer, head) pairs that follow each kind."""
        self.guides, self.cu_seqlens = guides, cu_seqlens
        self.by_layer: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for kind, pairs in heads.items():
            for layer, head in pairs:
                self.by_layer[layer][kind].append(head)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = defaultdict(int)

    def observe(self, layer: int, q_THD: Tensor, k_THD: Tensor, softmax_scale: float) -> None:
        """Add what the heads of `layer` lose against their guides."""
        looks = [
            look
            for kind, heads in self.by_layer.get(layer, {}).items()
            for start, end, guides in zip(self.cu_seqlens[:-1], self.cu_seqlens[1:], self.guides, strict=True)
            if (look := _look(kind, heads, start, end, guides, q_THD.device)) is not None
        ]
        if not looks:
            return
        kinds = sorted({look.kind for look in looks})
        losses = _Observed.apply(q_THD, k_THD, looks, kinds, softmax_scale)  # type: ignore[no-untyped-call]
        for kind, loss in zip(kinds, losses, strict=True):
            self.sums[kind] = self.sums.get(kind, 0.0) + loss
        for look in looks:
            self.counts[look.kind] += len(look.rows) * len(look.heads)

    def weigh(self, supervised: Tensor, decision_weight: float) -> Tensor:
        """The share of each supervised token (T, bool) in the loss: those that decide weigh `decision_weight`."""
        weights = torch.ones(supervised.shape, device=supervised.device)
        for start, guides in zip(self.cu_seqlens[:-1], self.guides, strict=True):
            weights[[start + row for row, _ in guides[DECISION]]] = decision_weight
        weights = weights[supervised]
        return weights / weights.sum()

    def means(self) -> dict[str, Tensor]:
        """The mean loss of each kind that occurred, nats."""
        return {kind: total / self.counts[kind] for kind, total in self.sums.items()}
