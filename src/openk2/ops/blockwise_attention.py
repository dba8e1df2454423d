"""Causal attention of packed sequences in query blocks, with its own backward pass.

The same function as `reference.causal_attention`, for training: it keeps one log-sum-exp per query instead of the
probabilities, skips the future half of the score matrix, and computes the scores again in the backward pass
(FlashAttention-2, arXiv:2307.08691, algorithms 1 and 2, with whole key rows instead of key blocks). float32 on a CPU
takes the compiled version of the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from openk2.ops import cpu
from openk2.ops.cpu import causal_attention as compiled

QUERY_BLOCK = 96


def _blocks(cu_seqlens: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(sequence start, block start, block end) of every query block."""
    for start, end in zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True):
        for block in range(start, end, QUERY_BLOCK):
            yield start, block, min(block + QUERY_BLOCK, end)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Sequence[int], scale: float) -> Any:
        qh, kh, vh = (t.transpose(0, 1).contiguous() for t in (q, k, v))  # (H, T, D)
        out = torch.empty_like(vh)
        lse = torch.empty(qh.shape[:2], dtype=torch.float32, device=q.device)
        top = torch.full((qh.shape[0],), -torch.inf, device=q.device)
        for start, lo, hi in _blocks(cu_seqlens):
            scores = (qh[:, lo:hi] @ kh[:, start:hi].transpose(1, 2)).float().mul_(scale)
            _mask_future(scores, lo - start)
            row_max = scores.amax(-1, keepdim=True)
            top = torch.maximum(top, row_max.amax((1, 2)))
            probs = scores.sub_(row_max).exp_()
            total = probs.sum(-1, keepdim=True)
            lse[:, lo:hi] = (row_max + total.log()).squeeze(-1)
            out[:, lo:hi] = probs.div_(total).to(v.dtype) @ vh[:, start:hi]
        ctx.save_for_backward(qh, kh, vh, out, lse)
        ctx.cu_seqlens, ctx.scale = cu_seqlens, scale
        ctx.mark_non_differentiable(top)
        return out.transpose(0, 1), top

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        qh, kh, vh, out, lse = ctx.saved_tensors
        grad = grads[0].transpose(0, 1).contiguous()
        delta = (grad.float() * out.float()).sum(-1, keepdim=True)
        dq = torch.empty_like(qh)
        dk = torch.zeros(kh.shape, dtype=torch.float32, device=kh.device)
        dv = torch.zeros(vh.shape, dtype=torch.float32, device=vh.device)
        for start, lo, hi in _blocks(ctx.cu_seqlens):
            keys, values, g = kh[:, start:hi], vh[:, start:hi], grad[:, lo:hi]
            scores = (qh[:, lo:hi] @ keys.transpose(1, 2)).float().mul_(ctx.scale)
            _mask_future(scores, lo - start)
            probs = scores.sub_(lse[:, lo:hi, None]).exp_()
            d_scores = (g @ values.transpose(1, 2)).float().sub_(delta[:, lo:hi]).mul_(probs).mul_(ctx.scale)
            d_scores, probs = d_scores.to(qh.dtype), probs.to(qh.dtype)
            dq[:, lo:hi] = d_scores @ keys
            dk[:, start:hi] += d_scores.transpose(1, 2) @ qh[:, lo:hi]
            dv[:, start:hi] += probs.transpose(1, 2) @ g
        dk, dv = dk.to(kh.dtype), dv.to(vh.dtype)
        return dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1), None, None


class _CompiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Sequence[int], scale: float) -> Any:
        out, lse, top = compiled.forward(q, k, v, cu_seqlens, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.cu_seqlens, ctx.scale = cu_seqlens, scale
        ctx.mark_non_differentiable(top)
        return out, top

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = compiled.backward(grads[0], q, k, v, out, lse, ctx.cu_seqlens, ctx.scale)
        return dq, dk, dv, None, None


def _mask_future(scores: Tensor, offset: int) -> None:
    """Row i may see the columns up to offset + i; only the last square of `scores` holds hidden ones."""
    rows = scores.shape[1]
    future = torch.ones(rows, rows, dtype=torch.bool, device=scores.device).triu_(1)
    scores[:, :, offset:].masked_fill_(future, -torch.inf)


def is_compiled_for(*tensors: Tensor) -> bool:
    """Whether the compiled version takes them."""
    return cpu.available() and all(t.is_cpu and t.dtype is torch.float32 and t.numel() > 0 for t in tensors)


def causal_attention(
    q_THD: Tensor, k_THD: Tensor, v_THV: Tensor, cu_seqlens: Sequence[int], softmax_scale: float
) -> tuple[Tensor, Tensor]:
    """As `reference.causal_attention`."""
    if is_compiled_for(q_THD, k_THD, v_THV):
        return _CompiledAttention.apply(q_THD, k_THD, v_THV, cu_seqlens, softmax_scale)  # type: ignore[no-untyped-call]
    return _CausalAttention.apply(q_THD, k_THD, v_THV, cu_seqlens, softmax_scale)  # type: ignore[no-untyped-call]
