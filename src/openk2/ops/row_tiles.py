"""Linear layers whose every row is the same whatever the other rows are: for serving.

A matrix library may sum one row's products in another order when the number of rows changes, so a token's numbers
would depend on its batch mates. Here the rows go through in tiles of fixed sizes, padded. Which sizes agree with each
other, in every row, is found by trying: a library's order of summation depends on shapes, never on values, so equal
bits on telling data prove a size for good. Telling are sums whose terms cancel: what is left of them is the rounding of
their order, which bfloat16 would hide in any other sum.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

BASE_ROWS = 8
CPU_ROWS = (64, 32, 16, 8, 4, 1)
GPU_ROWS = (64,)
"""One size, unproven: trying would read device values on the host."""

Spans = list[tuple[int, int]]
"""(first row, rows) of consecutive tiles."""

_PROVEN: dict[tuple[torch.Size, torch.dtype, int], tuple[int, ...]] = {}
"""Tile sizes that agree on this machine, by (shape, dtype, threads). A memo of what the library does."""
_STACKS: dict[tuple[int, int, torch.Size, torch.dtype, int], bool] = {}
"""What `stacks` found, by (count, rows, shape, dtype, threads)."""


def tile_rows(weight: Tensor) -> tuple[int, ...]:
    """The row counts, largest first, with which products with a weight (out, in) of this shape may be made."""
    if not weight.is_cpu:
        return GPU_ROWS
    key = (weight.shape, weight.dtype, torch.get_num_threads())
    sizes = _PROVEN.get(key)
    if sizes is None:
        sizes = _PROVEN[key] = _prove(weight.shape[0], weight.shape[1], weight.dtype)
    return sizes


def stacks(count: int, rows: int, weights: Tensor) -> bool:
    """Whether one batched product of `count` tiles of `rows` rows, each with its own matrix (out, in) of the shape of
    weights[0], gives the bits of single tiles."""
    key = (count, rows, weights.shape[1:], weights.dtype, torch.get_num_threads())
    agrees = _STACKS.get(key)
    if agrees is None:
        _, out_features, in_features = weights.shape
        agrees = rows in tile_rows(weights[0]) and _prove_stack(count, rows, out_features, in_features, weights.dtype)
        _STACKS[key] = agrees
    return agrees


def cancelling(count: int, rows: int, out_features: int, in_features: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs (count, rows, in) and matrices (count, out, in) whose products are sums of terms that cancel in pairs."""
    generator = torch.Generator().manual_seed(0)
    half = -(-in_features // 2)
    order = torch.randperm(2 * half, generator=generator)[:in_features]
    x = torch.randn(count, rows, half, generator=generator)
    weights = torch.randn(count, out_features, half, generator=generator)
    x, weights = torch.cat((x, x), -1)[..., order], torch.cat((weights, -weights), -1)[..., order]
    return x.to(dtype), weights.to(dtype)


def _prove_stack(count: int, rows: int, out_features: int, in_features: int, dtype: torch.dtype) -> bool:
    x, weights = cancelling(count, rows, out_features, in_features, dtype)
    stack = weights.transpose(1, 2)
    single = torch.stack([torch.mm(tile, weight) for tile, weight in zip(x, stack, strict=True)])
    return torch.equal(torch.bmm(x, stack), single)


def _prove(out_features: int, in_features: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Sizes whose rows equal those of tiles of BASE_ROWS, at every place in the tile; else single rows."""
    xs, weights = cancelling(1, CPU_ROWS[0], out_features, in_features, dtype)
    x, weight = xs[0], weights[0].t()

    def product(x: Tensor, size: int) -> Tensor:
        return torch.cat([torch.mm(tile, weight) for tile in x.split(size)])

    base = product(x, BASE_ROWS)

    def agrees(size: int) -> bool:
        some = x[: max(size, BASE_ROWS)]
        moved = product(some.roll(3, 0), size).roll(-3, 0)
        return torch.equal(product(some, size), base[: len(some)]) and torch.equal(moved, base[: len(some)])

    return tuple(filter(agrees, CPU_ROWS)) or (1,)


def tiles(begin: int, rows: int, sizes: tuple[int, ...]) -> Spans:
    """The tiles that cover `rows` rows from row `begin` on; only the last may reach past them."""
    out, end = [], begin + rows
    for size in sizes:
        while end - begin >= size:
            out.append((begin, size))
            begin += size
    if begin < end:
        out.append((begin, sizes[-1]))
    return out


def matmul_into(x: Tensor, weight_t: Tensor, out: Tensor, spans: Spans) -> None:
    """Write the tiles `spans` of x @ weight_t into out; both have room for whole tiles."""
    for start, size in spans:
        torch.mm(x[start : start + size], weight_t, out=out[start : start + size])


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """As `reference.linear`; row t of the result depends on row t of x alone."""
    rows = x.size(0)
    sizes = tile_rows(weight)
    if rows in sizes:
        return torch.mm(x, weight.t())
    if 0 < rows < sizes[-1]:
        return torch.mm(pad_rows(x, sizes[-1]), weight.t())[:rows]
    spans = tiles(0, rows, sizes)
    padded = sum(spans[-1]) if spans else 0
    x = pad_rows(x, padded)
    out = x.new_empty(padded, weight.size(0))
    matmul_into(x, weight.t(), out, spans)
    return out[:rows]


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """x with its last row repeated up to `rows` rows, contiguous: what the row holds is nobody's concern."""
    have = x.size(0)
    if have == rows:
        return x.contiguous()
    if have == 1:
        return torch.cat((x,) * rows)
    return x.index_select(0, _padding_index(have, rows, x.device))


@lru_cache(maxsize=1024)
def _padding_index(have: int, want: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(want, device=device).clamp_(max=have - 1)
