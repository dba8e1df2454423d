"""Attention to the paged latent cache whose every row depends on its own sequence alone: for serving.

The same function as `reference.paged_attention`, in products whose shapes follow from a token's position and nothing
else, so chunk sizes and batch mates change no bit:
- a token of the prompt sits in the query tile of its position (row p mod QUERY_ROWS), against all the key tiles up to
  that tile's end; what is not there is zeros. On a CPU the compiled kernel takes these tokens, where it is built;
- a generated token is products of its own, its heads being the rows, against the keys up to its position.

Letters as in `reference.mla`; L keys, a multiple of KEY_TILE.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from openk2.ops import cpu, row_tiles
from openk2.ops.cpu.prompt_attention import PromptSpan, prompt_attention

QUERY_ROWS = 32
KEY_TILE = 64


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _has_kernel(kv_cache: Tensor) -> bool:
    return cpu.available() and kv_cache.is_cpu and kv_cache.dtype in (torch.float32, torch.bfloat16)


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
    """As `reference.paged_attention`. `generated_T` is on the host; prompt tokens come before generated ones."""
    T, H, N = q_nope_THN.shape
    C = kv_b_proj.shape[1]
    V = kv_b_proj.shape[0] // H - N
    w_uk, w_uv = kv_b_proj.view(H, -1, C).split_with_sizes([N, V], 1)
    block_size = kv_cache.shape[1]
    generated = generated_T.tolist()
    out = q_nope_THN.new_empty(T, H, V)
    is_compiled = _has_kernel(kv_cache)
    prompts: list[PromptSpan] = []
    """Left to the compiled kernel."""
    decoded: list[tuple[Tensor, int]] = []
    """Of each generated token, its sequence's cache and its position."""
    places: list[int] = []
    for b, (start, end) in enumerate(zip(query_starts[:-1], query_starts[1:], strict=True)):
        context = context_lens[b]
        middle = start + generated[start:end].count(False)
        first = context - (end - start)
        if is_compiled and start < middle:
            prompts.append(PromptSpan(start, middle - start, first, b))
            if middle == end:
                continue
        blocks = block_tables[b, : -(-context // block_size)]
        cached = kv_cache.index_select(0, blocks).flatten(0, 1)
        if not is_compiled and start < middle:
            query = torch.cat((q_nope_THN[start:middle], q_pe_THR[start:middle]), -1)
            keys = cached[: first + middle - start]
            out[start:middle] = _prompt(query, keys, kv_b_proj, first, C, V, softmax_scale)
        for token in range(middle, end):
            decoded.append((cached, first + token - start))
            places.append(token)
    if prompts:
        prompt_attention(
            q_nope_THN, q_pe_THR, kv_cache, kv_b_proj, block_tables.contiguous(), prompts, softmax_scale, out
        )
    if not decoded:
        return out
    if len(decoded) == T:
        return _generated(q_nope_THN, q_pe_THR, decoded, w_uk, w_uv, softmax_scale)
    index = torch.tensor(places, device=out.device)
    out[index] = _generated(q_nope_THN[index], q_pe_THR[index], decoded, w_uk, w_uv, softmax_scale)
    return out


def _prompt(
    query_THD: Tensor, keys: Tensor, kv_b_proj: Tensor, first: int, C: int, V: int, softmax_scale: float
) -> Tensor:
    """Expanded attention of the tokens at positions `first` and on, the last of them the last of `keys`: (T, H, V)."""
    T, H, _ = query_THD.shape
    L = _round_up(_round_up(first + T, QUERY_ROWS), KEY_TILE)
    keys = F.pad(keys, (0, 0, 0, L - keys.shape[0]))
    kv = row_tiles.linear(keys[:, :C], kv_b_proj).view(L, H, -1)
    k_pe = keys[:, None, C:].expand(-1, H, -1)
    key_HDL = torch.cat((kv[..., :-V], k_pe), -1).permute(1, 2, 0)
    value_HLV = kv[..., -V:].transpose(0, 1)
    # Pad to whole tiles at both ends.
    origin = first // QUERY_ROWS * QUERY_ROWS
    before = first - origin
    padded = _round_up(before + T, QUERY_ROWS)
    query = F.pad(query_THD, (0, 0, 0, 0, before, padded - before - T)).transpose(0, 1).contiguous()
    out = query_THD.new_empty(H, padded, V)
    position = torch.arange(L, device=keys.device)
    for tile in range(0, padded, QUERY_ROWS):
        span = _round_up(origin + tile + QUERY_ROWS, KEY_TILE)
        scores = torch.bmm(query[:, tile : tile + QUERY_ROWS], key_HDL[:, :, :span]).float().mul_(softmax_scale)
        here = position[origin + tile : origin + tile + QUERY_ROWS, None]
        probs = scores.masked_fill_(position[:span] > here, -torch.inf).softmax(-1).to(keys.dtype)
        out[:, tile : tile + QUERY_ROWS] = torch.bmm(probs, value_HLV[:, :span])
    return out[:, before : before + T].transpose(0, 1)


def _generated(
    q_nope_THN: Tensor,
    q_pe_THR: Tensor,
    decoded: list[tuple[Tensor, int]],
    w_uk_HNC: Tensor,
    w_uv_HVC: Tensor,
    softmax_scale: float,
) -> Tensor:
    """Absorbed attention of T tokens, each with its cached rows and its position: (T, H, V)."""
    C = w_uk_HNC.shape[2]
    w_uv_HCV = w_uv_HVC.transpose(1, 2)
    out = []
    for q_nope, q_pe, (cached, position) in zip(q_nope_THN, q_pe_THR, decoded, strict=True):
        keys = cached[: position + 1]
        query = torch.cat((torch.bmm(q_nope.unsqueeze(1), w_uk_HNC).squeeze(1), q_pe), -1)
        probs = torch.mm(query, keys.t()).float().mul_(softmax_scale).softmax(-1)
        latent = torch.mm(probs.to(keys.dtype), keys[:, :C])
        out.append(torch.bmm(latent.unsqueeze(1), w_uv_HCV).squeeze(1))
    return torch.stack(out)
