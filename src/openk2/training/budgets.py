"""Fewer experts now and then, so that a model keeps its head in the modes that use fewer (docs/modes.md)."""

from __future__ import annotations

import zlib

import torch

from openk2.config.modes import REFLEX
from openk2.ops import ExpertBudgets
from openk2.training.packing import PackedBatch


def draw_budgets(batch: PackedBatch, topk: int, share: float, seed: int) -> ExpertBudgets | None:
    """As if `share` of the sequences were served with fewer experts: a number of their own, drawn evenly from reflex's
    least to `topk` - 1, for the assistant's tokens, while the prompt's take all `topk`. None where there is nothing to
    cut.

    Drawn from the tokens and `seed` alone: a resumed run, and any number of processes, draw the same.
    """
    if share <= 0 or topk <= REFLEX.least:
        return None
    ids = batch.input_ids.cpu().numpy()
    rng = torch.Generator().manual_seed(zlib.crc32(ids.tobytes(), seed))
    count = len(batch.lengths)
    fewer = torch.randint(REFLEX.least, topk, (count,), generator=rng)
    drawn = torch.where(torch.rand(count, generator=rng) < share, fewer, topk)
    most = drawn.repeat_interleave(torch.tensor(batch.lengths)).to(batch.input_ids.device)
    generated = batch.supervised.roll(1)  # `supervised` is of the next token; a sequence's first is a prompt's
    most = torch.where(generated, most, topk)
    return ExpertBudgets(most, most, torch.ones(len(most), dtype=torch.float64, device=most.device))
