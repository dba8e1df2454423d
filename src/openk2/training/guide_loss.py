"""The loss of guided heads: the cross-entropy of their attention against its targets, taken in the forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from openk2.training.guides import DECISION, Guides

MOST_ROWS = 32
"""Of one kind in one conversation that are looked at: an even sample stands for the rest."""


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
        for kind, heads in self.by_layer.get(layer, {}).items():
            for start, end, guides in zip(self.cu_seqlens[:-1], self.cu_seqlens[1:], self.guides, strict=True):
                rows = guides[kind][:: -(-len(guides[kind]) // MOST_ROWS) or 1]
                if not rows:
                    continue
                at = torch.tensor([row for row, _ in rows], device=q_THD.device)
                cells = [(i, p, 1 / len(places)) for i, (_, places) in enumerate(rows) for p in places]
                index, place, share = (torch.tensor(column, device=at.device) for column in zip(*cells, strict=True))
                target = torch.zeros(len(rows), end - start, device=at.device)
                target[index, place] = share
                q = q_THD[start:end, heads][at].transpose(0, 1)
                k = k_THD[start:end, heads].permute(1, 2, 0)
                scores = (q @ k).float() * softmax_scale
                hidden = torch.arange(end - start, device=at.device) > at[:, None]
                scores = scores.masked_fill(hidden, -torch.inf).log_softmax(-1)
                loss = -(scores.masked_fill(hidden, 0.0) * target).sum()
                self.sums[kind] = self.sums.get(kind, 0.0) + loss
                self.counts[kind] += len(rows) * len(heads)

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
