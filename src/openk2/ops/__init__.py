"""One function per op, and the one place that chooses its version.

`reference/` holds the definitions. Where a gradient is wanted, the versions with their own backward pass run; where
none is, those whose rows do not depend on each other (`row_*`; for generated tokens `single_rows`), and on a CPU the
compiled ones (`cpu/`) where the extension is built.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openk2.ops import (
    blockwise_attention,
    cpu,
    grouped_experts,
    reference,
    row_attention,
    row_experts,
    row_pointwise,
    row_tiles,
    single_rows,
    trained_pointwise,
)
from openk2.ops.cpu import attention_inputs as cpu_attention_inputs
from openk2.ops.packed import PackedStack
from openk2.ops.reference import ExpertBudgets, absorbed_attention, apply_rotary, swiglu

__all__ = [
    "ExpertBudgets",
    "absorbed_attention",
    "apply_rotary",
    "attention_inputs",
    "causal_attention",
    "linear",
    "moe_experts",
    "packed_experts",
    "packed_linear",
    "paged_attention",
    "rms_norm",
    "route",
    "silu_mul",
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
    ):
        if not _needs_grad(x, weight):
            return cpu.rms_norm(x, weight, eps)
        if x.dtype is torch.float32:
            return trained_pointwise.rms_norm(x, weight, eps)
    return reference.rms_norm(x, weight, eps)


def attention_inputs(
    q_THD: Tensor, kv_THX: Tensor, k_pe_TR: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.attention_inputs`."""
    if cpu_attention_inputs.takes(q_THD, kv_THX, k_pe_TR, cos, sin):
        return trained_pointwise.attention_inputs(q_THD, kv_THX, k_pe_TR, cos, sin)
    return reference.attention_inputs(q_THD, kv_THX, k_pe_TR, cos, sin)


def causal_attention(
    q_THD: Tensor, k_THD: Tensor, v_THV: Tensor, cu_seqlens: Sequence[int], softmax_scale: float
) -> tuple[Tensor, Tensor]:
    """See `reference.causal_attention`."""
    tensors = (q_THD, k_THD, v_THV)
    if _needs_grad(*tensors) or blockwise_attention.is_compiled_for(*tensors):
        return blockwise_attention.causal_attention(q_THD, k_THD, v_THV, cu_seqlens, softmax_scale)
    return reference.causal_attention(q_THD, k_THD, v_THV, cu_seqlens, softmax_scale)


def linear(x: Tensor, weight: Tensor, *, per_row: bool = False) -> Tensor:
    """See `reference.linear`. `per_row`: in the form that generated tokens take on a CPU, without a gradient."""
    if _needs_grad(x, weight):
        return reference.linear(x, weight)
    if per_row and x.is_cpu:
        return single_rows.linear(x, weight)
    return row_tiles.linear(x, weight)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """See `reference.silu_mul`."""
    if _needs_grad(gate, up):
        return reference.silu_mul(gate, up)
    return row_pointwise.silu_mul(gate, up)


def route(
    logits_TE: Tensor,
    correction_bias_E: Tensor | None,
    *,
    topk: int,
    scoring_func: str,
    topk_method: str,
    n_group: int,
    topk_group: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
    budgets: ExpertBudgets | None = None,
    topk_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.route`."""
    return reference.route(
        logits_TE,
        correction_bias_E,
        topk=topk,
        scoring_func=scoring_func,
        topk_method=topk_method,
        n_group=n_group,
        topk_group=topk_group,
        norm_topk_prob=norm_topk_prob,
        routed_scaling_factor=routed_scaling_factor,
        budgets=budgets,
        topk_ids=topk_ids,
        sigmoid=torch.sigmoid if _needs_grad(logits_TE) else row_pointwise.sigmoid,
    )


def moe_experts(
    x_TD: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    *,
    per_row: bool = False,
) -> Tensor:
    """See `reference.moe_experts`; `per_row` as in `linear`, for experts large enough."""
    if x_TD.is_cpu and not _needs_grad(x_TD, topk_weights, gate_up_proj, down_proj):
        if per_row and single_rows.takes_experts(gate_up_proj):
            return single_rows.moe_experts(x_TD, topk_ids, topk_weights, gate_up_proj, down_proj)
        return row_experts.moe_experts(x_TD, topk_ids, topk_weights, gate_up_proj, down_proj)
    if x_TD.dtype in (torch.float32, torch.bfloat16):
        return grouped_experts.moe_experts(x_TD, topk_ids, topk_weights, gate_up_proj, down_proj)
    return reference.moe_experts(x_TD, topk_ids, topk_weights, gate_up_proj, down_proj)


def packed_linear(x: Tensor, weight: PackedStack) -> Tensor:
    """See `reference.packed_linear`. Rows do not depend on each other, so prompts and generated tokens share it."""
    if x.is_cpu and cpu.available():
        return cpu.packed_linear(x, weight)
    return reference.packed_linear(x, weight)


def packed_experts(
    x_TD: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up: PackedStack, down: PackedStack
) -> Tensor:
    """See `reference.packed_experts`; rows as in `packed_linear`."""
    if x_TD.is_cpu and cpu.available():
        return cpu.packed_experts(x_TD, topk_ids, topk_weights, gate_up, down)
    return reference.packed_experts(x_TD, topk_ids, topk_weights, gate_up, down)


def paged_attention(
    q_nope_THN: Tensor,
    q_pe_THR: Tensor,
    kv_cache: Tensor,
    kv_b_proj: Tensor,
    positions_T: Tensor,
    *,
    block_tables: Tensor,
    query_starts: Sequence[int],
    context_lens: Sequence[int],
    generated_T: Tensor,
    softmax_scale: float,
) -> Tensor:
    """See `reference.paged_attention`."""
    version = reference if _needs_grad(q_nope_THN, q_pe_THR, kv_cache, kv_b_proj) else row_attention
    return version.paged_attention(
        q_nope_THN,
        q_pe_THR,
        kv_cache,
        kv_b_proj,
        positions_T,
        block_tables=block_tables,
        query_starts=query_starts,
        context_lens=context_lens,
        generated_T=generated_T,
        softmax_scale=softmax_scale,
    )
