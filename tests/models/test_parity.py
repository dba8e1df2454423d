"""Logits of tiny random models against transformers, float32: prefill, decode, ragged batches, far positions."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch

from openk2.models import ForwardBatch

TOLERANCE = 1e-4
FAR = 262_143


def _ids(count: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(0, 97, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("last", [31, 4096, FAR])
def test_prefill(pair: Any, error: Any, last: int) -> None:
    """32 tokens ending at position `last`; the first case starts at 0."""
    ids, start = _ids(32), last - 31
    ours = pair.ours_logits(ids, ForwardBatch.packed([32], start=start))
    assert error(ours, pair.theirs_logits(ids[None], start)[0]) < TOLERANCE


def test_the_comparison_can_fail(pair: Any, error: Any) -> None:
    """Query rows moved by one (a wrong rotary pairing), or an ignored router bias, are far above the tolerance."""
    ids = _ids(32)
    theirs = pair.theirs_logits(ids[None], 4000)[0]
    q = pair.ours.model.layers[1].self_attn
    q = q.q_proj if pair.config.q_lora_rank is None else q.q_b_proj
    kept = q.weight.detach().clone()
    q.weight.data.copy_(kept.roll(1, 0))
    assert error(pair.ours_logits(ids, ForwardBatch.packed([32], start=4000)), theirs) > 10 * TOLERANCE
    q.weight.data.copy_(kept)
    assert error(pair.ours_logits(ids, ForwardBatch.packed([32], start=4000)), theirs) < TOLERANCE
    bias = pair.ours.model.layers[1].mlp.gate.e_score_correction_bias
    if bias is not None:
        kept = bias.data.clone()
        bias.data.zero_()
        assert error(pair.ours_logits(ids, ForwardBatch.packed([32], start=4000)), theirs) > 10 * TOLERANCE
        bias.data.copy_(kept)


def test_ragged_prefill(pair: Any, error: Any) -> None:
    """Sequences of unequal lengths: packed here, padded on the right there; only valid tokens are compared."""
    lengths = [19, 1, 32, 7]
    rows = [_ids(n, seed=n) for n in lengths]
    ours = pair.ours_logits(torch.cat(rows), ForwardBatch.packed(lengths)).split(lengths)
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
    theirs = pair.theirs_logits(padded, mask=mask)
    for row, (logits, length) in enumerate(zip(ours, lengths, strict=True)):
        assert error(logits, theirs[row, :length]) < TOLERANCE


def test_paged_prefill_in_ragged_chunks_then_decode(pair: Any, paged_cache: Any, error: Any) -> None:
    """The serving path: prompts in chunks of the expanded form, then one generated token a step, absorbed."""
    totals, prompts = [24, 9, 17], [13, 2, 16]
    rows = [_ids(n, seed=40 + n) for n in totals]
    theirs = [pair.theirs_logits(row[None])[0] for row in rows]
    cache = paged_cache(pair.config, len(rows), 32)
    got: list[list[torch.Tensor]] = [[] for _ in rows]

    def step(counts: list[int], generated: bool) -> None:
        done = list(cache.lengths)
        ids = torch.cat([row[at : at + n] for row, at, n in zip(rows, done, counts, strict=True)])
        batch = cache.batch(counts, generated)
        for out, logits in zip(got, pair.ours_logits(ids, batch, cache.layers).split(counts), strict=True):
            out.append(logits)

    step([5, 2, 10], generated=False)
    step([8, 0, 6], generated=False)
    assert cache.lengths == prompts
    while cache.lengths != totals:
        step([int(at < total) for at, total in zip(cache.lengths, totals, strict=True)], generated=True)
    for logits, expected in zip(got, theirs, strict=True):
        assert error(torch.cat(logits), expected) < TOLERANCE


@pytest.mark.parametrize("last", [4096, FAR])
def test_decode_far(pair: Any, paged_cache: Any, error: Any, last: int) -> None:
    """Tokens up to position `last`, one a step, over a context that is really that long (random latents).

    The oracle runs in float64: transformers' own float32 sums over 262,143 tokens are off by 1.2e-4, ours by 2e-6.
    """
    from transformers import DynamicCache

    steps = 1 if last == FAR else 3  # each costs seconds that far out
    exact = replace(pair, theirs=deepcopy(pair.theirs).double())
    past_len = last - steps + 1
    generator = torch.Generator().manual_seed(5)
    c = pair.config
    entries = [torch.randn(past_len, c.latent_dim, generator=generator) for _ in range(c.num_hidden_layers)]
    cache, past = paged_cache(c, 1, last + 1), DynamicCache()
    cache.fill(0, entries)
    for layer, entry in enumerate(entries):
        latent, k_pe = entry.split([c.kv_lora_rank, c.qk_rope_head_dim], -1)
        if c.model_type != "deepseek_v2":  # transformers keeps V3's rotated keys with the even entries first
            k_pe = torch.cat((k_pe[:, 0::2], k_pe[:, 1::2]), -1)
        past.update(latent[None, None].double(), k_pe[None, None].double(), layer)
    for step, token in enumerate(_ids(steps)):
        ours = pair.ours_logits(token[None], cache.batch([1], generated=True), cache.layers)
        theirs = exact.theirs_logits(token[None, None], past_len + step, past)[0]
        assert error(ours, theirs) < TOLERANCE


def test_absorbed_equals_expanded(pair: Any, paged_cache: Any, error: Any) -> None:
    """The two forms of attention, and the packed path, over the same tokens."""
    ids = _ids(30)
    packed = pair.ours_logits(ids, ForwardBatch.packed([30]))
    for generated in (False, True):
        cache = paged_cache(pair.config, 1, 32)
        paged = pair.ours_logits(ids, cache.batch([30], generated), cache.layers)
        assert error(paged, packed) < 1e-5
