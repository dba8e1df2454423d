"""Causal attention of packed sequences in float32, with its gradient (`csrc/causal_attention.cpp`): for training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openk2.ops.cpu import _native, isa, use_torchs_threads


def forward(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THV: Tensor,
    cu_seqlens: Sequence[int],
    softmax_scale: float,
    *,
    isa_name: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output (T, H, V), the scores' log-sum-exp (H, T) and each head's largest scaled score (H,).

    As `reference.causal_attention`, for float32 on the CPU. Raises ValueError for other tensors and for borders that
    are not those of the tokens.
    """
    q, k, v = _checked(q_THD, k_THD, v_THV)
    T, H, D = q.shape
    out, lse = torch.empty_like(v), q.new_empty(H, T)
    largest = q.new_empty(H, len(cu_seqlens) - 1)
    _run(False, (T, H, D, v.shape[2]), cu_seqlens, softmax_scale, (q, k, v), out, lse, [largest], isa_name)
    return out, lse, largest.amax(1)


def backward(
    grad_THV: Tensor,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THV: Tensor,
    out_THV: Tensor,
    lse_HT: Tensor,
    cu_seqlens: Sequence[int],
    softmax_scale: float,
    *,
    isa_name: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, from that of the output and what `forward` returned."""
    q, k, v = _checked(q_THD, k_THD, v_THV)
    T, H, D = q.shape
    made = [grad_THV.contiguous(), torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)]
    _run(True, (T, H, D, v.shape[2]), cu_seqlens, softmax_scale, (q, k, v), out_THV, lse_HT, made, isa_name)
    return made[1], made[2], made[3]


def _checked(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    fits = (
        all(t.dtype is torch.float32 and t.is_cpu and t.dim() == 3 for t in (q, k, v))
        and q.shape == k.shape
        and q.shape[:2] == v.shape[:2]
        and 0 not in q.shape
        and 0 not in v.shape
    )
    if not fits:
        raise ValueError(
            f"causal_attention wants float32 on the CPU, (T, H, D) twice and (T, H, V); got {q.dtype}, "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    return q.contiguous(), k.contiguous(), v.contiguous()


def _run(
    backward: bool,
    sizes: tuple[int, int, int, int],
    cu_seqlens: Sequence[int],
    scale: float,
    inputs: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    lse: Tensor,
    made: list[Tensor],
    isa_name: str | None,
) -> None:
    borders = [int(border) for border in cu_seqlens]
    if borders != sorted(set(borders)) or borders[0] != 0 or borders[-1] != sizes[0]:
        raise ValueError(f"the borders of {sizes[0]} packed tokens rise from 0 to {sizes[0]}; got {borders}")
    use_torchs_threads()
    _native.causal_attention(
        backward,
        sizes,
        borders,
        scale,
        tuple(t.data_ptr() for t in inputs),
        out.data_ptr(),
        lse.data_ptr(),
        [t.data_ptr() for t in made],
        isa_name or isa(),
    )
