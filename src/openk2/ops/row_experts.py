"""The experts of a MoE layer for serving on a CPU.

The same function as `reference.moe_experts`; each (token, expert) pair is a row of tiles as in `row_tiles`, so a
token's result depends on that token alone. Routes and weights are read on the host, which on a CPU is where they are.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from openk2.ops import row_tiles
from openk2.ops.row_pointwise import silu_mul

FEW_TOKENS = 2
MOST_GATHERED_BYTES = 4 << 20
"""Of an expert stack, for one token: beyond it, the copy costs more than the calls it saves."""
MOST_STACKED_BYTES = 8 << 20
"""Of an expert stack that goes whole through one product, the experts that nobody chose included."""


def moe_experts(
    x_TD: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """As `reference.moe_experts`. Pairs of weight 0, past a token's budget, are not computed.

    Every way through gives the same bits; which one is taken is a matter of speed.
    """
    E = gate_up_proj.shape[0]
    if x_TD.shape[0] <= FEW_TOKENS:
        chosen = [_leading_nonzero(weights) for weights in topk_weights.tolist()]
        if all(count and _gathers(count, gate_up_proj, down_proj) for count in chosen):
            return _few_tokens(x_TD, topk_ids, topk_weights, chosen, gate_up_proj, down_proj)
    expert = topk_ids.masked_fill(topk_weights == 0, E).flatten()
    counts = torch.bincount(expert, minlength=E + 1).tolist()[:E]
    y = _stacked(x_TD, expert, counts, gate_up_proj, down_proj)
    if y is None:
        y = _grouped(x_TD, expert, counts, gate_up_proj, down_proj)
    return _combine(y.unflatten(0, topk_ids.shape), topk_weights)


def _leading_nonzero(weights: list[float]) -> int:
    """How many weights there are if those of 0 are all at the end, else 0."""
    count = len(weights) - weights.count(0.0)
    return count if all(weights[:count]) else 0


def _gathers(count: int, gate_up_proj: Tensor, down_proj: Tensor) -> bool:
    """Whether the matrices of `count` experts may be copied into stacks."""
    _, width, inner = gate_up_proj.shape
    rows = row_tiles.tile_rows(gate_up_proj[0])[-1]
    return (
        count * width * inner * gate_up_proj.element_size() <= MOST_GATHERED_BYTES
        and row_tiles.stacks(count, rows, gate_up_proj)
        and row_tiles.stacks(count, rows, down_proj)
    )


def _few_tokens(
    x_TD: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    chosen: list[int],
    gate_up_proj: Tensor,
    down_proj: Tensor,
) -> Tensor:
    """Token by token, from copies of its experts: they cost less than a call for each expert."""
    rows = row_tiles.tile_rows(gate_up_proj[0])[-1]
    out = []
    for token, count in enumerate(chosen):
        ids = topk_ids[token, :count]
        x = row_tiles.pad_rows(x_TD[token : token + 1], rows).expand(count, -1, -1)
        gate_up = torch.bmm(x, gate_up_proj.index_select(0, ids).transpose(1, 2))
        hidden = silu_mul(*gate_up.chunk(2, -1))
        y = torch.bmm(hidden, down_proj.index_select(0, ids).transpose(1, 2))[:, 0]
        out.append(_combine(y, topk_weights[token, :count]))
    return torch.stack(out)


def _combine(y_KD: Tensor, weights_K: Tensor) -> Tensor:
    """Sum of the experts (..., K, D) by weight, in the order of choice: (..., D)."""
    return (y_KD * weights_K.to(y_KD.dtype).unsqueeze(-1)).sum(-2)


def _stacked(x_TD: Tensor, expert: Tensor, counts: list[int], gate_up_proj: Tensor, down_proj: Tensor) -> Tensor | None:
    """Each pair's output (T * K, D) from one product over all experts, or None where another way is better."""
    E = gate_up_proj.shape[0]
    sizes = row_tiles.tile_rows(gate_up_proj[0])
    rows = next((size for size in reversed(sizes) if size >= max(counts)), None)
    if (
        rows is None
        or E * rows > 4 * sum(counts)
        or gate_up_proj.numel() * gate_up_proj.element_size() > MOST_STACKED_BYTES
        or not row_tiles.stacks(E, rows, gate_up_proj)
        or not row_tiles.stacks(E, rows, down_proj)
    ):
        return None
    begins = torch.arange(E + 1) * rows
    order, row = _places(expert, begins, counts)
    x = x_TD.new_zeros(E * rows + 1, x_TD.shape[1])
    x[row] = x_TD[order // (expert.numel() // x_TD.shape[0])]
    gate_up = torch.bmm(x[:-1].unflatten(0, (E, rows)), gate_up_proj.transpose(1, 2))
    hidden = silu_mul(*gate_up.chunk(2, -1))
    y = torch.bmm(hidden, down_proj.transpose(1, 2)).flatten(0, 1)
    if sum(counts) < expert.numel():
        y = torch.cat((y, y.new_zeros(1, y.shape[1])))
    return y.index_select(0, torch.empty_like(row).scatter_(0, order, row))


def _grouped(x_TD: Tensor, expert: Tensor, counts: list[int], gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """Each pair's output (T * K, D) from one group of row tiles per chosen expert."""
    sizes_in, sizes_out = row_tiles.tile_rows(gate_up_proj[0]), row_tiles.tile_rows(down_proj[0])
    # Each expert's rows start where both products can lay whole tiles.
    groups: list[tuple[int, row_tiles.Spans, row_tiles.Spans]] = []
    begins = [0]
    for number, count in enumerate(counts):
        begin = begins[-1]
        if count:
            spans_in, spans_out = row_tiles.tiles(begin, count, sizes_in), row_tiles.tiles(begin, count, sizes_out)
            groups.append((number, spans_in, spans_out))
            begin = max(sum(spans_in[-1]), sum(spans_out[-1]))
        begins.append(begin)

    order, row = _places(expert, torch.tensor(begins), counts)
    rows = x_TD.new_zeros(begins[-1] + 1, x_TD.shape[1])
    rows[row] = x_TD[order // (expert.numel() // x_TD.shape[0])]
    gate_up = x_TD.new_zeros(rows.shape[0], gate_up_proj.shape[1])
    for number, spans, _ in groups:
        row_tiles.matmul_into(rows, gate_up_proj[number].t(), gate_up, spans)
    hidden = silu_mul(*gate_up.chunk(2, -1))
    out = torch.zeros_like(rows)
    for number, _, spans in groups:
        row_tiles.matmul_into(hidden, down_proj[number].t(), out, spans)
    return out.index_select(0, torch.empty_like(row).scatter_(0, order, row))


def _places(expert: Tensor, begins: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """The pairs in order of their expert, and the row that each takes when expert e's rows start at begins[e].

    Pairs that are not computed (expert E) share row begins[E], which is nobody's: zeros come out of it.
    """
    order = expert.argsort(stable=True)
    taken = torch.tensor([0, *accumulate(counts)])
    row = torch.arange(expert.numel()) + (begins - taken)[expert[order]]
    return order, row.clamp_(max=int(begins[-1]))
