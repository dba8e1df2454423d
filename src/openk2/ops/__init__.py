"""One function per op, and the one place that chooses its version.

`reference/` holds the definitions. Training takes the versions with their own backward pass, serving on a CPU the
compiled ones (`cpu/`) where the extension is built; everything else runs on the definitions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openk2.ops import blockwise_attention, cpu, grouped_experts, reference
from openk2.ops.reference import absorbed_attention, apply_rotary, linear, paged_attention, route, swiglu

__all__ = [
    "absorbed_attention",
    "apply_rotary",
    "causal_attention",
    "linear",
    "moe_experts",
    "paged_attention",
    "rms_norm",
    "route",
    "swiglu",
]


def _needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`."""
    if (
        x.device.type == "cpu"
        and cpu.available()
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.is_contiguous()
        and not _needs_grad(x, weight)
    ):
        return cpu.rms_norm(x, weight, eps)
    return reference.rms_norm(x, weight, eps)


def causal_attention(
    q_THD: Tensor, k_THD: Tensor, v_THV: Tensor, cu_seqlens: Sequence[int], softmax_scale: float
) -> tuple[Tensor, Tensor]:
    """See `reference.causal_attention`."""
    if _needs_grad(q_THD, k_THD, v_THV):
        return blockwise_attention.causal_attention(q_THD, k_THD, v_THV, cu_seqlens, softmax_scale)
    return reference.causal_attention(q_THD, k_THD, v_THV, cu_seqlens, softmax_scale)


def moe_experts(x_TD: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """See `reference.moe_experts`."""
    if x_TD.dtype in (torch.float32, torch.bfloat16):
        return grouped_experts.moe_experts(x_TD, topk_ids, topk_weights, gate_up_proj, down_proj)
    return reference.moe_experts(x_TD, topk_ids, topk_weights, gate_up_proj, down_proj)
