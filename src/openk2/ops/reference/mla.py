"""Multi-head latent attention over packed sequences: the expanded and the absorbed form.

Letters: T tokens, H heads, N qk_nope_head_dim, R qk_rope_head_dim, V v_head_dim, C kv_lora_rank.
Source: DeepSeek-V2, arXiv:2405.04434, section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openk2.ops.reference.rotary import apply_rotary


def attention_inputs(
    q_THD: Tensor, kv_THX: Tensor, k_pe_TR: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys (T, H, N + R) and values (T, H, V) of the expanded form.

    q: (T, H, N + R), kv: (T, H, N + V), k_pe: (T, R), of which the R dimensions are not rotated yet; cos, sin:
    (T, R/2), float32. The rotated key is every head's.
    """
    R = k_pe_TR.shape[-1]
    q_nope, q_pe = q_THD.split([q_THD.shape[-1] - R, R], -1)
    k_nope, value = kv_THX.split([q_nope.shape[-1], kv_THX.shape[-1] - q_nope.shape[-1]], -1)
    query = torch.cat((q_nope, apply_rotary(q_pe, cos, sin)), -1)
    key = torch.cat((k_nope, apply_rotary(k_pe_TR, cos, sin)[:, None].expand(-1, q_THD.shape[1], -1)), -1)
    return query, key, value


def causal_attention(
    q_THD: Tensor, k_THD: Tensor, v_THV: Tensor, cu_seqlens: Sequence[int], softmax_scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention within each packed sequence.

    `cu_seqlens` are the sequences' borders, from 0 to T. Returns the output (T, H, V) in v's dtype and the largest
    scaled logit of each head (H,), float32, which QK-Clip watches. Softmax runs in float32.
    """
    outs, maxima = [], []
    for start, end in zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True):
        q, k, v = (t[start:end].transpose(0, 1) for t in (q_THD, k_THD, v_THV))
        scores = (q @ k.transpose(1, 2)).float() * softmax_scale
        future = torch.ones(end - start, end - start, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
        maxima.append(scores.detach().amax((1, 2)))
        outs.append((scores.softmax(-1).to(v.dtype) @ v).transpose(0, 1))
    return torch.cat(outs), torch.stack(maxima).amax(0)


def absorbed_attention(
    q_nope_THN: Tensor,
    q_pe_THR: Tensor,
    latent_TC: Tensor,
    k_pe_TR: Tensor,
    kv_b_proj: Tensor,
    cu_seqlens: Sequence[int],
    softmax_scale: float,
) -> Tensor:
    """The same attention with `kv_b_proj` (H * (N + V), C) folded into query and output.

    Keys and values stay latents: multi-query attention with one head of C + R whose value is its first C entries.
    Returns (T, H, V).
    """
    T, H, N = q_nope_THN.shape
    w_uk, w_uv = kv_b_proj.view(H, -1, latent_TC.shape[-1]).split([N, kv_b_proj.shape[0] // H - N], 1)
    q_latent = torch.einsum("thn,hnc->thc", q_nope_THN, w_uk)
    query = torch.cat((q_latent, q_pe_THR), -1)
    key = torch.cat((latent_TC, k_pe_TR), -1)[:, None].expand(T, H, -1)
    value = latent_TC[:, None].expand(T, H, -1)
    out_latent, _ = causal_attention(query, key, value, cu_seqlens, softmax_scale)
    return torch.einsum("thc,hvc->thv", out_latent, w_uv)


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
    """Attention of new tokens to their sequence's cached latents, themselves included.

    kv_cache: (blocks, block_size, C + R). Tokens of the prompt take the expanded form, generated ones the absorbed
    form: `generated_T` (bool, on the host) tells which; within a sequence the prompt comes first. Returns (T, H, V).
    """
    T, H, N = q_nope_THN.shape
    C = kv_b_proj.shape[1]
    w_uk, w_uv = kv_b_proj.view(H, -1, C).split([N, kv_b_proj.shape[0] // H - N], 1)
    out = q_nope_THN.new_empty(T, H, w_uv.shape[1])
    generated_T = generated_T.to(out.device)
    for b, (start, end) in enumerate(zip(query_starts[:-1], query_starts[1:], strict=True)):
        cached = kv_cache[block_tables[b]].flatten(0, 1)[: context_lens[b]]
        latent, k_pe = cached[:, :C], cached[:, C:]
        visible = torch.arange(context_lens[b], device=cached.device) <= positions_T[start:end, None]
        scores = torch.einsum("qhr,kr->hqk", q_pe_THR[start:end], k_pe)
        key = torch.einsum("kc,hnc->hkn", latent, w_uk)
        expanded = torch.einsum("qhn,hkn->hqk", q_nope_THN[start:end], key)
        q_latent = torch.einsum("qhn,hnc->hqc", q_nope_THN[start:end], w_uk)
        absorbed = torch.einsum("hqc,kc->hqk", q_latent, latent)
        scores = (scores + torch.where(generated_T[start:end, None], absorbed, expanded)).float() * softmax_scale
        probs = scores.masked_fill(~visible, -torch.inf).softmax(-1).to(latent.dtype)
        expanded = torch.einsum("hqk,hkv->qhv", probs, torch.einsum("kc,hvc->hkv", latent, w_uv))
        absorbed = torch.einsum("hqc,hvc->qhv", torch.einsum("hqk,kc->hqc", probs, latent), w_uv)
        out[start:end] = torch.where(generated_T[start:end, None, None], absorbed, expanded)
    return out
