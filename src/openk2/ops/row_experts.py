"""The experts of a MoE layer for serving on a CPU: one group of row tiles per chosen expert.

The same function as `reference.moe_experts`; each (token, expert) pair is one row of `row_tiles`, so a token's result
depends on that token alone. The sizes of the groups are read on the host, which on a CPU is where they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openk2.ops import row_tiles
from openk2.ops.row_pointwise import silu_mul


def moe_experts(
    x_TD: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """As `reference.moe_experts`. Pairs of weight 0, past a token's budget, are not computed."""
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
    picked = (out[row_of_pair].unflatten(0, (T, K)) * topk_weights.to(x_TD.dtype)[..., None]).unbind(1)
    total = picked[0]
    for y in picked[1:]:  # in the order of choice: a reduction op may take another order for another T
        total = total + y
    return total
