"""Linear layers and experts as one product per row: the form that generated tokens take on a CPU.

With a single row a library reads the matrix once and multiplies as it goes, many times faster than a padded tile, but
sums in another order. So the form must follow the token's class, as attention's does: the engine asks for it in the
passes of generated tokens (`ForwardBatch.per_row`), never in those of prompts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openk2.ops.row_pointwise import silu_mul
from openk2.ops.row_tiles import cancelling

BATCHES = (8, 4, 2)
"""Rows that may go through one batched product, where that gives the bits of single ones."""
SMALL_EXPERT_BYTES = 256 << 10
"""Up to here an expert's matrices are cheaper in tiles, of which one call computes many."""

_PROVEN: dict[tuple[torch.Size, torch.dtype, int], tuple[int, ...]] = {}
"""Batches that agree with single rows on this machine, by (shape, dtype, threads), as in `row_tiles`."""


def takes_experts(gate_up_proj: Tensor) -> bool:
    """Whether experts of this shape have a single-row form."""
    _, width, inner = gate_up_proj.shape
    return width * inner * gate_up_proj.element_size() > SMALL_EXPERT_BYTES


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """As `reference.linear`; row t of the result depends on row t of x alone."""
    rows = x.size(0)
    weight_t = weight.t()
    if rows == 1:
        return torch.mm(x, weight_t)
    parts, begin = [x.new_empty(0, weight.size(0))], 0
    for size in (*_batches(weight), 1):
        while rows - begin >= size:
            some = x[begin : begin + size]
            if size == 1:
                parts.append(torch.mm(some, weight_t))
            else:
                parts.append(torch.bmm(some.unsqueeze(1), weight_t.expand(size, -1, -1)).squeeze(1))
            begin += size
    return torch.cat(parts)


def _batches(weight: Tensor) -> tuple[int, ...]:
    key = (weight.shape, weight.dtype, torch.get_num_threads())
    sizes = _PROVEN.get(key)
    if sizes is None:
        sizes = _PROVEN[key] = _prove(weight.shape[0], weight.shape[1], weight.dtype)
    return sizes


def _prove(out_features: int, in_features: int, dtype: torch.dtype) -> tuple[int, ...]:
    xs, weights = cancelling(1, BATCHES[0], out_features, in_features, dtype)
    x, weight = xs[0], weights[0].t()
    single = torch.cat([torch.mm(row, weight) for row in x.split(1)])

    def agrees(size: int) -> bool:
        batched = torch.bmm(x[:size].unsqueeze(1), weight.expand(size, -1, -1)).squeeze(1)
        return torch.equal(batched, single[:size])

    return tuple(filter(agrees, BATCHES))


def moe_experts(
    x_TD: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """As `reference.moe_experts`. Pairs of weight 0, past a token's budget, are not computed."""
    out = []
    for x, ids, weights in zip(x_TD.split(1), topk_ids.tolist(), topk_weights.tolist(), strict=True):
        total = torch.zeros_like(x)
        for expert, weight in zip(ids, weights, strict=True):
            if weight:
                hidden = silu_mul(*torch.mm(x, gate_up_proj[expert].t()).chunk(2, -1))
                total = total + torch.mm(hidden, down_proj[expert].t()) * weight
        out.append(total)
    return torch.cat(out)
