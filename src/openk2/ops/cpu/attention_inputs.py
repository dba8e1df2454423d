"""Queries, keys and values of expanded latent attention from its projections, with the gradient
(`csrc/attention_inputs.cpp`): for training in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from openk2.ops.cpu import _native, available, isa, use_torchs_threads


def takes(*tensors: Tensor) -> bool:
    """Whether `forward` takes these; their shapes are looked at when it runs."""
    return available() and all(t.is_cpu and t.dtype is torch.float32 and t.numel() > 0 for t in tensors)


def forward(
    q_THD: Tensor, kv_THX: Tensor, k_pe_TR: Tensor, cos: Tensor, sin: Tensor, *, isa_name: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.attention_inputs`. Raises ValueError for tensors that it does not take or that do not fit."""
    T, H, D = q_THD.shape
    R, nope = k_pe_TR.shape[-1], D - k_pe_TR.shape[-1]
    V = kv_THX.shape[-1] - nope
    fits = (
        takes(q_THD, kv_THX, k_pe_TR, cos, sin)
        and kv_THX.shape[:2] == (T, H)
        and k_pe_TR.shape == (T, R)
        and cos.shape == sin.shape == (T, R // 2)
        and R % 2 == 0
        and min(nope, V) > 0
    )
    if not fits:
        raise ValueError(
            f"attention_inputs wants float32 on the CPU, (T, H, N + R), (T, H, N + V), (T, R), (T, R / 2) twice; got "
            f"{q_THD.dtype} {tuple(q_THD.shape)}, {tuple(kv_THX.shape)}, {tuple(k_pe_TR.shape)}, {tuple(cos.shape)}"
        )
    k_pe = k_pe_TR if k_pe_TR.stride(1) == 1 else k_pe_TR.contiguous()
    made = q_THD.new_empty(T, H, D), q_THD.new_empty(T, H, D), q_THD.new_empty(T, H, V)
    given = (cos.contiguous(), sin.contiguous(), q_THD.contiguous(), kv_THX.contiguous(), k_pe)
    _run(False, (T, H, nope, R, V, k_pe.stride(0)), (*given, *made), isa_name)
    return made


def backward(
    d_query_THD: Tensor,
    d_key_THD: Tensor,
    d_values_THV: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    isa_name: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, kv and k_pe, from those of what `forward` returned."""
    T, H, D = d_query_THD.shape
    R, V = 2 * cos.shape[1], d_values_THV.shape[2]
    made = d_query_THD.new_empty(T, H, D), d_query_THD.new_empty(T, H, D - R + V), d_query_THD.new_empty(T, R)
    grads = [t.contiguous() for t in (d_query_THD, d_key_THD, d_values_THV)]
    _run(True, (T, H, D - R, R, V, R), (cos.contiguous(), sin.contiguous(), *made, *grads), isa_name)
    return made


def _run(backward: bool, sizes: tuple[int, ...], tensors: tuple[Tensor, ...], isa_name: str | None) -> None:
    use_torchs_threads()
    _native.attention_inputs(backward, sizes, [t.data_ptr() for t in tensors], isa_name or isa())
