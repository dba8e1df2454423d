"""Ops without sums over tokens, with one compiled call a direction where torch would need a dozen: for training in
float32 on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openk2.ops import cpu
from openk2.ops.cpu import attention_inputs as inputs


class _CompiledNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return cpu.rms_norm(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight = ctx.saved_tensors
        return *cpu.rms_norm_backward(grads[0], x, weight, ctx.eps), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `reference.rms_norm`, for contiguous float32 on the CPU where the extension is built."""
    return _CompiledNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call, no-any-return]


class _CompiledInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, k_pe: Tensor, cos: Tensor, sin: Tensor) -> Any:
        ctx.save_for_backward(cos, sin)
        return inputs.forward(q, kv, k_pe, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return *inputs.backward(*grads, *ctx.saved_tensors), None, None


def attention_inputs(
    q_THD: Tensor, kv_THX: Tensor, k_pe_TR: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.attention_inputs`, for tensors that `cpu.attention_inputs.takes`."""
    return _CompiledInputs.apply(q_THD, kv_THX, k_pe_TR, cos, sin)  # type: ignore[no-untyped-call, no-any-return]
