"""From scheduled chunks to logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, islice

import torch
from torch import Tensor

from openk2.config import ExpertBudget
from openk2.engine.block_manager import NULL_BLOCK
from openk2.engine.kv_cache import LatentCache
from openk2.engine.request import ExpertUse, RequestState
from openk2.engine.sampler import logprobs
from openk2.engine.scheduler import Chunk
from openk2.models import ForwardBatch, K2Model, PagedBatch
from openk2.ops import ExpertBudgets

LOGIT_ROWS = 32
"""Of a prompt's own logits, so many are in memory at once."""


class ModelRunner:
    """A model and its cache on one device."""

    def __init__(self, model: K2Model, cache: LatentCache, block_size: int, *, record_routing: bool = False) -> None:
        self.model, self.cache, self.block_size = model, cache, block_size
        self.device = cache.layers[0].device
        self.moe_layers = [layer for layer in range(model.config.num_hidden_layers) if model.config.is_moe_layer(layer)]
        self.experts_taken = [0] * (model.config.num_experts_per_tok + 1)
        """By number: how often a router gave a generated token so many experts."""
        self._last_budgets: tuple[list[ExpertBudget], ExpertBudgets] | None = None
        self._experts_of_drafts: dict[RequestState, list[tuple[int, ...]]] = {}
        """Of the last step's drafts in order, where tokens have budgets: what each took, by layer."""
        self.routing: Tensor | None = None
        """(slots, layers, experts per token) int16: kept where the token's latents are, so that a prefix that is shared
        brings its choices along."""
        if record_routing:
            c, (blocks, size, _) = model.config, cache.layers[0].shape
            self.routing = torch.zeros(
                blocks * size, c.num_hidden_layers, c.num_experts_per_tok, dtype=torch.int16, device=self.device
            )

    def routing_of(self, request: RequestState) -> Tensor | None:
        """The experts of the request's computed tokens, in order, as `StepOutput.routing`; None when not recorded."""
        if self.routing is None:
            return None
        size = self.block_size
        slots = [request.blocks[at // size] * size + at % size for at in range(request.num_computed)]
        return self.routing[torch.tensor(slots, device=self.device)]

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Compute the chunks and write their latents: first the prompts' tokens, then the answers'.

        The two classes of token take different forms of attention and of matrix product, each whatever the schedule.
        Returns logits (S, vocab), float32: of each chunk that samples, in order, those that its next token follows
        from, and those after each of its drafts.
        """
        prompts, answers = [], []
        self._experts_of_drafts = {}
        for chunk in chunks:
            border = min(max(chunk.request.num_prompt_tokens, chunk.start), chunk.end)
            if border <= chunk.start:
                answers.append(chunk)
                continue
            prompts.append(replace(chunk, end=border))
            if border < chunk.end:
                answers.append(replace(chunk, start=border))
        rows: dict[RequestState, Tensor] = {}
        if prompts:
            rows |= self._pass(prompts, generated=False)
        if answers:
            rows |= self._pass(answers, generated=True)
        sampled = [rows[chunk.request] for chunk in chunks if chunk.samples]
        if len(sampled) == 1:
            return sampled[0]
        return torch.cat(sampled) if sampled else torch.empty(0, self.model.config.vocab_size, device=self.device)

    def _pass(self, chunks: Sequence[Chunk], *, generated: bool) -> dict[RequestState, Tensor]:
        """Forward pass of tokens of one class; the logits (1 + drafts, vocab) of the requests that sample."""
        ids: list[int] = []
        for chunk in chunks:
            ids += chunk.request.token_ids[chunk.start : chunk.end]
            ids += chunk.drafts
        batch = self._batch(chunks, generated)
        hidden = self.model(torch.tensor(ids, device=self.device), batch, self.cache.layers)
        if self.routing is not None and batch.paged is not None and batch.chosen_ids is not None:
            self.routing[batch.paged.slot_mapping] = batch.chosen_ids.transpose(0, 1).short()
        if generated:
            self._count_experts(chunks, batch.taken)
        else:
            self._tell_prompts(chunks, hidden)
        ends = accumulate(chunk.num_tokens for chunk in chunks)
        last = {
            chunk.request: range(end - 1 - len(chunk.drafts), end)
            for chunk, end in zip(chunks, ends, strict=True)
            if chunk.samples
        }
        if not last:
            return {}
        wanted = [row for of_chunk in last.values() for row in of_chunk]
        if len(wanted) < len(hidden):  # else all, in their order
            hidden = hidden[torch.tensor(wanted, device=self.device)]
        logits = self.model.compute_logits(hidden, per_row=generated)
        return dict(zip(last, logits.split([len(of_chunk) for of_chunk in last.values()]), strict=True))

    def accept_drafts(self, request: RequestState, count: int) -> None:
        """So many further drafts of the last step were right: they count among the tokens that took experts."""
        waiting = self._experts_of_drafts.get(request)
        if waiting is None:
            self.experts_taken[-1] += len(self.moe_layers) * count
        else:
            self._count(request, waiting[:count])
            del waiting[:count]

    def _count_experts(self, chunks: Sequence[Chunk], taken: Tensor | None) -> None:
        """`taken` as `ForwardBatch.taken`; None: all have the trained number. Drafts wait until they are accepted."""
        if taken is None:
            self.experts_taken[-1] += len(self.moe_layers) * sum(chunk.end - chunk.start for chunk in chunks)
            return
        of_layers = taken.tolist()  # lists: a few numbers a step, for which a tensor's calls would cost more
        of_tokens = zip(*(of_layers[layer] for layer in self.moe_layers), strict=True)
        for chunk in chunks:
            self._count(chunk.request, list(islice(of_tokens, chunk.end - chunk.start)))
            self._experts_of_drafts[chunk.request] = list(islice(of_tokens, len(chunk.drafts)))

    def _count(self, request: RequestState, of_tokens: Sequence[Sequence[int]]) -> None:
        """What each of a request's tokens took, by layer."""
        use = request.expert_use
        numbers = [number for of_token in of_tokens for number in of_token]
        for number in numbers:
            self.experts_taken[number] += 1
        request.expert_use = ExpertUse(use.taken + sum(numbers), use.choices + len(numbers))

    def _tell_prompts(self, chunks: Sequence[Chunk], hidden: Tensor) -> None:
        """Note how likely the prompts' own tokens were, for the requests that ask."""
        for chunk, rows in zip(chunks, hidden.split([chunk.num_tokens for chunk in chunks]), strict=True):
            request, count = chunk.request, chunk.request.sampling.prompt_logprobs
            if count is None:
                continue
            known = request.prompt_logprobs
            begin = max(chunk.start, len(known))  # what was computed before a preemption is known
            end = min(chunk.end, request.num_prompt_tokens - 1)
            for start in range(begin, end, LOGIT_ROWS):
                stop = min(start + LOGIT_ROWS, end)
                logits = self.model.compute_logits(rows[start - chunk.start : stop - chunk.start])
                following = request.token_ids[start + 1 : stop + 1]
                known += [logprobs(row, token, count) for row, token in zip(logits, following, strict=True)]

    def _batch(self, chunks: Sequence[Chunk], generated: bool) -> ForwardBatch:
        size = self.block_size
        positions: list[int] = []
        slots: list[int] = []
        config = self.model.config
        for chunk in chunks:
            blocks = chunk.request.blocks
            positions += range(chunk.start, chunk.stop)
            slots += [blocks[position // size] * size + position % size for position in range(chunk.start, chunk.stop)]
        widest = max(-(-chunk.stop // size) for chunk in chunks)
        tables = [(chunk.request.blocks + [NULL_BLOCK] * widest)[:widest] for chunk in chunks]
        paged = PagedBatch(
            slot_mapping=torch.tensor(slots, device=self.device),
            block_tables=torch.tensor(tables, device=self.device),
            query_starts=(0, *accumulate(chunk.num_tokens for chunk in chunks)),
            context_lens=tuple(chunk.stop for chunk in chunks),
            generated=torch.full((len(positions),), generated),
        )
        budgets = self._budgets(chunks) if generated else None
        chosen = taken = None
        if budgets is not None:
            taken = torch.zeros(config.num_hidden_layers, len(slots), dtype=torch.int64, device=self.device)
        if self.routing is not None:
            chosen = torch.zeros(config.num_hidden_layers, len(slots), config.num_experts_per_tok, dtype=torch.int64)
        return ForwardBatch(
            positions=torch.tensor(positions, device=self.device),
            paged=paged,
            per_row=generated,
            budgets=budgets,
            taken=taken,
            chosen_ids=None if chosen is None else chosen.to(self.device),
        )

    def _budgets(self, chunks: Sequence[Chunk]) -> ExpertBudgets | None:
        """Of generated tokens; None where all have the trained number of experts."""
        if all(chunk.request.budget is None for chunk in chunks):
            return None
        trained = self.model.config.num_experts_per_tok
        full = ExpertBudget(trained, trained)
        of_tokens = [chunk.request.budget or full for chunk in chunks for _ in range(chunk.num_tokens)]
        if self._last_budgets is None or self._last_budgets[0] != of_tokens:  # a batch mostly stays as it is
            budgets = ExpertBudgets(
                torch.tensor([budget.least for budget in of_tokens], device=self.device),
                torch.tensor([budget.most for budget in of_tokens], device=self.device),
                torch.tensor([budget.mass for budget in of_tokens], dtype=torch.float64, device=self.device),
            )
            self._last_budgets = of_tokens, budgets
        return self._last_budgets[1]
