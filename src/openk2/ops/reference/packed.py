"""Products with packed matrices (`ops.packed`).

int8 and int4: the activations are quantised too, each group of 32 columns of a token to int8 by its largest magnitude,
and a group's dot product is one of integers. On normally distributed values of both (2,048 columns) that moves a
product by 0.5% of its norm; the weights' own rounding moves it by 0.5% (int8) or 10% (int4). bf16: the product of
`linear` with bfloat16 weights and float32 activations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openk2.ops.packed import GROUP, PackedLayout, PackedStack, unpack
from openk2.ops.reference.moe import silu_mul

TINY = 1e-30
"""A group whose largest magnitude is at most this is all zeros: 127 / TINY is still finite in float32."""


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (T, cols) float32 to integers (T, groups, 32), as float32, and scales (T, groups); x is about their product.

    Rounding is to nearest, ties to even. A group with an infinity or a NaN is NaN as a whole.
    """
    T, cols = x.shape
    padded = x.new_zeros(T, -(-cols // GROUP) * GROUP)
    padded[:, :cols] = x
    groups = padded.view(T, -1, GROUP)
    largest = groups.abs().amax(-1)
    live = largest.isfinite() & (largest > TINY)
    inverse = torch.where(live, 127.0 / largest, 0.0)
    quants = torch.where(live[..., None], (groups * inverse[..., None]).round(), 0.0)
    scales = torch.where(live, largest / 127.0, 0.0)
    return quants, torch.where(largest.isfinite(), scales, torch.nan)


def packed_linear(x: Tensor, weight: PackedStack) -> Tensor:
    """x (T, cols) times matrix 0 of the stack, transposed: (T, rows), in x's dtype."""
    return _product(x.float(), weight.layout, weight.data[0]).to(x.dtype)


def packed_experts(
    x_TD: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up: PackedStack, down: PackedStack
) -> Tensor:
    """As `moe_experts`: gate_up holds (2E, F, D), each expert's gate before its up, down (E, D, F).

    The weighted sum runs in float32 in the order of choice; pairs of weight 0 are not computed.
    """
    x = x_TD.float()
    out = torch.zeros_like(x)
    for token in range(x.shape[0]):
        row = x[token : token + 1]
        for expert, weight in zip(topk_ids[token].tolist(), topk_weights[token].float(), strict=True):
            if weight != 0:
                gate = _product(row, gate_up.layout, gate_up.data[2 * expert])
                up = _product(row, gate_up.layout, gate_up.data[2 * expert + 1])
                out[token] += _product(silu_mul(gate, up), down.layout, down.data[expert])[0] * weight
    return out.to(x_TD.dtype)


def _product(x: Tensor, layout: PackedLayout, data: Tensor) -> Tensor:
    values, scales = unpack(layout, data)
    if scales is None:
        return x @ values.float().t()
    quants, x_scales = quantize_activations(x)
    padded = values.new_zeros(layout.rows, layout.groups * GROUP)
    padded[:, : layout.cols] = values
    weights = padded.view(layout.rows, layout.groups, GROUP).float()
    total = x.new_zeros(x.shape[0], layout.rows)
    for group in range(layout.groups):
        dots = quants[:, group] @ weights[:, group].t()  # integers below 2^24: exact
        total = total + dots * scales[:, group].float() * x_scales[:, group, None]
    return total
