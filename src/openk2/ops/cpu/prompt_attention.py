"""Expanded attention of prompts' tokens to the paged latent cache (`csrc/prompt_attention.cpp`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from openk2.ops.cpu import _native, isa, use_torchs_threads


class PromptSpan(NamedTuple):
    """Consecutive prompt tokens of one sequence, whose latents are in the cache."""

    row: int
    """Of the queries: where the first of the tokens is."""
    tokens: int
    position: int
    """Of the first token in its sequence."""
    table: int
    """The sequence's row of the block tables."""


def prompt_attention(
    q_nope_THN: Tensor,
    q_pe_THR: Tensor,
    kv_cache: Tensor,
    kv_b_proj: Tensor,
    block_tables: Tensor,
    spans: Sequence[PromptSpan],
    softmax_scale: float,
    out_THV: Tensor,
    *,
    isa_name: str | None = None,
) -> None:
    """Write the attention of the tokens in `spans`, as `reference.paged_attention` defines it, into their rows of
    `out_THV`.

    All in float32 or all in bfloat16, which is computed in float32; the queries' last dimension is dense, the rest is
    contiguous. What a token gets depends on its sequence up to it alone; the threads change no bit, nor do instruction
    sets but the portable one, which rounds products. Raises ValueError for other tensors and for spans that reach past
    them; what `block_tables` points to is the caller's word.
    """
    T, H, N = q_nope_THN.shape
    R, C, V = q_pe_THR.shape[2], kv_b_proj.shape[1], out_THV.shape[2]
    tensors = (q_nope_THN, q_pe_THR, kv_cache, kv_b_proj, out_THV)
    fits = (
        q_nope_THN.dtype in (torch.float32, torch.bfloat16)
        and all(t.dtype is q_nope_THN.dtype and t.is_cpu and 0 not in t.shape for t in tensors)
        and q_pe_THR.shape[:2] == out_THV.shape[:2] == (T, H)
        and kv_b_proj.shape[0] == H * (N + V)
        and kv_cache.dim() == 3
        and kv_cache.shape[2] == C + R
        and q_nope_THN.stride(2) == q_pe_THR.stride(2) == 1
        and all(t.is_contiguous() for t in (kv_cache, kv_b_proj, out_THV, block_tables))
        and block_tables.dtype is torch.int64
        and block_tables.is_cpu
        and block_tables.dim() == 2
    )
    if not fits:
        shapes = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in (*tensors, block_tables))
        raise ValueError(f"prompt_attention: these do not fit each other: {shapes}")
    room = block_tables.shape[1] * kv_cache.shape[1]
    for row, tokens, position, table in spans:
        if not (row >= 0 < tokens <= T - row and 0 <= position <= room - tokens and 0 <= table < len(block_tables)):
            raise ValueError(
                f"prompt_attention: {PromptSpan(row, tokens, position, table)} reaches past {T} rows or the cache"
            )
    if not spans:
        return
    use_torchs_threads()
    _native.prompt_attention(
        (H, N, R, V, C, kv_cache.shape[1]),
        q_nope_THN.dtype is torch.bfloat16,
        tuple(t.data_ptr() for t in (q_nope_THN, q_pe_THR, kv_cache, kv_b_proj, block_tables, out_THV)),
        (*q_nope_THN.stride()[:2], *q_pe_THR.stride()[:2]),
        block_tables.shape[1],
        spans,
        softmax_scale,
        isa_name or isa(),
    )
