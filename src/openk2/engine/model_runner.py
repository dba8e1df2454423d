"""From scheduled chunks to logits: one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from openk2.engine.block_manager import NULL_BLOCK
from openk2.engine.kv_cache import LatentCache
from openk2.engine.scheduler import Chunk
from openk2.models import ForwardBatch, K2Model, PagedBatch


class ModelRunner:
    """A model and its cache on one device."""

    def __init__(self, model: K2Model, cache: LatentCache, block_size: int) -> None:
        self.model, self.cache, self.block_size = model, cache, block_size
        self.device = cache.layers[0].device

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Compute the chunks and write their latents.

        Returns the logits (S, vocab), float32, of the S chunks that sample, in order.
        """
        hidden = self.model(self._input_ids(chunks), self._batch(chunks), self.cache.layers)
        ends = accumulate(chunk.num_tokens for chunk in chunks)
        last = [end - 1 for chunk, end in zip(chunks, ends, strict=True) if chunk.samples]
        return self.model.compute_logits(hidden[torch.tensor(last, dtype=torch.int64, device=self.device)])

    def _input_ids(self, chunks: Sequence[Chunk]) -> Tensor:
        ids = [token for chunk in chunks for token in chunk.request.token_ids[chunk.start : chunk.end]]
        return torch.tensor(ids, device=self.device)

    def _batch(self, chunks: Sequence[Chunk]) -> ForwardBatch:
        size = self.block_size
        positions, slots, generated, budget = [], [], [], []
        trained = self.model.config.num_experts_per_tok
        for chunk in chunks:
            request = chunk.request
            topk = request.sampling.topk or trained
            for position in range(chunk.start, chunk.end):
                positions.append(position)
                slots.append(request.blocks[position // size] * size + position % size)
                generated.append(position >= request.num_prompt_tokens)
                budget.append(topk if generated[-1] else trained)
        widest = max(-(-chunk.end // size) for chunk in chunks)
        tables = [(chunk.request.blocks + [NULL_BLOCK] * widest)[:widest] for chunk in chunks]
        paged = PagedBatch(
            slot_mapping=torch.tensor(slots, device=self.device),
            block_tables=torch.tensor(tables, device=self.device),
            query_starts=(0, *accumulate(chunk.num_tokens for chunk in chunks)),
            context_lens=tuple(chunk.end for chunk in chunks),
            generated=torch.tensor(generated),
        )
        reduced = any(topk != trained for topk in budget)
        return ForwardBatch(
            positions=torch.tensor(positions, device=self.device),
            paged=paged,
            topk=torch.tensor(budget, device=self.device) if reduced else None,
        )
