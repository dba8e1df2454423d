"""The experts of a MoE layer on tokens sorted by expert, for training: the same function as `reference.moe_experts`.

In float32 on a CPU one compiled call a direction (`cpu/trained_experts.py`), elsewhere grouped matrix products. There,
the gathers that sort and unsort are each other's transpose, so both directions read rows instead of scattering them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openk2.ops.cpu import trained_experts as compiled


class _ToExpertOrder(torch.autograd.Function):
    """Row i of the result is token `source[i]`; `inverse` (T * K) leads back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, inverse: Tensor, topk: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.topk = topk
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse).unflatten(0, (-1, ctx.topk)).sum(1), None, None, None


class _FromExpertOrder(torch.autograd.Function):
    """Sum each token's K rows back together."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, source: Tensor, inverse: Tensor, topk: int) -> Tensor:
        ctx.save_for_backward(source)
        return y.index_select(0, inverse).unflatten(0, (-1, topk)).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (source,) = ctx.saved_tensors
        return grads[0].index_select(0, source), None, None, None


class _CompiledExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        out, projected = compiled.forward(x, topk_ids, topk_weights, gate_up, down)
        ctx.save_for_backward(x, topk_ids, topk_weights, gate_up, down, projected)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        dx, d_weights, d_gate_up, d_down = compiled.backward(grads[0], *ctx.saved_tensors)
        return dx, None, d_weights, d_gate_up, d_down


def moe_experts(
    x_TD: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """As `reference.moe_experts`, in bfloat16 or float32, without reading device values on the host."""
    if compiled.takes(x_TD, topk_weights, gate_up_proj, down_proj):
        return _CompiledExperts.apply(x_TD, topk_ids, topk_weights, gate_up_proj, down_proj)  # type: ignore[no-untyped-call, no-any-return]
    topk = topk_ids.shape[1]
    flat = topk_ids.flatten()
    order = flat.argsort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    source = order // topk
    ends = torch.zeros(gate_up_proj.shape[0], dtype=torch.int32, device=flat.device)
    ends = ends.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.int32)).cumsum(0).to(torch.int32)
    rows = _ToExpertOrder.apply(x_TD, source, inverse, topk)  # type: ignore[no-untyped-call]
    gate, up = F.grouped_mm(rows, gate_up_proj.transpose(1, 2), offs=ends).chunk(2, -1)
    weight = topk_weights.to(x_TD.dtype).flatten().index_select(0, order)[:, None]
    rows = F.grouped_mm(F.silu(gate) * up * weight, down_proj.transpose(1, 2), offs=ends)
    return _FromExpertOrder.apply(rows, source, inverse, topk)  # type: ignore[no-untyped-call, no-any-return]
