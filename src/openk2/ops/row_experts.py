"""The experts of a MoE layer for serving on a CPU.

The same function as `reference.moe_experts`; each (token, expert) pair is a row of tiles as in `row_tiles`, so a
token's result depends on that token alone. Routes and weights are read on the host, which on a CPU is where they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openk2.ops import row_tiles
from openk2.ops.row_pointwise import silu_mul

FEW_TOKENS = 2
MOST_GATHERED_BYTES = 4 << 20
"""Of one expert stack, for one token."""


def moe_experts(
    x_TD: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """As `reference.moe_experts`. Pairs of weight 0, past a token's budget, are not computed."""
    if x_TD.shape[0] <= FEW_TOKENS:
        counts = [_leading_nonzero(weights) for weights in topk_weights.tolist()]
        if all(count and _gathers(count, gate_up_proj, down_proj) for count in counts):
            tokens = zip(x_TD.split(1), topk_ids, topk_weights, counts, strict=True)
            return torch.cat(
                [_one_token(x, ids[:n], weights[:n], gate_up_proj, down_proj) for x, ids, weights, n in tokens]
            )
    return _grouped(x_TD, topk_ids, topk_weights, gate_up_proj, down_proj)


def _leading_nonzero(weights: list[float]) -> int:
    """How many weights there are if those of 0 are all at the end, else 0."""
    count = len(weights) - weights.count(0.0)
    return count if all(weights[:count]) else 0


def _gathers(count: int, gate_up_proj: Tensor, down_proj: Tensor) -> bool:
    """Whether copying `count` experts' matrices is cheaper than a call for each, and changes no bit."""
    nbytes = count * gate_up_proj[0].numel() * gate_up_proj.element_size()
    return nbytes <= MOST_GATHERED_BYTES and all(row_tiles.stacks(count, w) for w in (gate_up_proj, down_proj))


def _one_token(x_1D: Tensor, ids_K: Tensor, weights_K: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    K = ids_K.shape[0]
    rows = row_tiles.pad_rows(x_1D, row_tiles.tile_rows(gate_up_proj[0])[-1]).expand(K, -1, -1)
    gate_up = torch.bmm(rows, gate_up_proj.index_select(0, ids_K).transpose(1, 2))
    hidden = silu_mul(*gate_up[:, :1].chunk(2, -1))
    rows = hidden.expand(-1, row_tiles.tile_rows(down_proj[0])[-1], -1).contiguous()
    out = torch.bmm(rows, down_proj.index_select(0, ids_K).transpose(1, 2))
    return _combine(out[None, :, 0], weights_K[None])


def _combine(y_TKD: Tensor, weights_TK: Tensor) -> Tensor:
    """Sum of each token's experts by weight, in the order of choice: (T, D)."""
    return (y_TKD * weights_TK.to(y_TKD.dtype)[..., None]).sum(1)


def _grouped(x_TD: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """One group of row tiles per chosen expert."""
    T, K = topk_ids.shape
    E = gate_up_proj.shape[0]
    sizes_in, sizes_out = row_tiles.tile_rows(gate_up_proj[0]), row_tiles.tile_rows(down_proj[0])
    expert = topk_ids.masked_fill(topk_weights == 0, E).flatten()
    counts = torch.bincount(expert, minlength=E + 1).tolist()

    # Each expert's rows start where both products can lay whole tiles.
    groups: list[tuple[int, row_tiles.Spans, row_tiles.Spans]] = []
    shifts, begin, taken = [], 0, 0
    for number, count in enumerate(counts[:E]):
        shifts.append(begin - taken)
        if count:
            spans_in, spans_out = row_tiles.tiles(begin, count, sizes_in), row_tiles.tiles(begin, count, sizes_out)
            groups.append((number, spans_in, spans_out))
            taken += count
            begin = max(sum(spans_in[-1]), sum(spans_out[-1]))
    shifts.append(begin - taken)

    # Row `begin` is nobody's: zeros come out of it, for the pairs that are not computed.
    order = expert.argsort(stable=True)
    row = (torch.arange(T * K) + torch.tensor(shifts)[expert[order]]).clamp_(max=begin)
    rows = x_TD.new_zeros(begin + 1, x_TD.shape[1])
    rows[row] = x_TD[order // K]
    gate_up = x_TD.new_zeros(begin + 1, gate_up_proj.shape[1])
    for number, spans, _ in groups:
        row_tiles.matmul_into(rows, gate_up_proj[number].t(), gate_up, spans)
    hidden = silu_mul(*gate_up.chunk(2, -1))
    out = torch.zeros_like(rows)
    for number, _, spans in groups:
        row_tiles.matmul_into(hidden, down_proj[number].t(), out, spans)
    row_of_pair = torch.empty_like(row).scatter_(0, order, row)
    return _combine(out.index_select(0, row_of_pair).unflatten(0, (T, K)), topk_weights)
