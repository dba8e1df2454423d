"""Which tokens the next step computes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from openk2.engine.block_manager import BlockManager
from openk2.engine.request import ExpertUse, RequestState

DEEP_FACTOR = 4
"""By which the steps of deep prompts may be larger than others."""


def most_step_tokens(max_num_batched_tokens: int, window: int) -> int:
    """Of one step, where no sequence is longer than `window`."""
    return max(max_num_batched_tokens, min(DEEP_FACTOR * max_num_batched_tokens, window // 2))


@dataclass(frozen=True)
class Chunk:
    """The tokens of a request from `start` to `end`, and guesses of those that follow."""

    request: RequestState
    start: int
    end: int
    drafts: tuple[int, ...] = ()
    """Only after a chunk of generated tokens that samples."""

    @property
    def stop(self) -> int:
        """`end`, drafts included."""
        return self.end + len(self.drafts)

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start

    @property
    def is_answer(self) -> bool:
        """Whether all of its tokens were generated."""
        return self.start >= self.request.num_prompt_tokens

    @property
    def samples(self) -> bool:
        """Whether the request's next token follows from this chunk."""
        return self.end == len(self.request.token_ids)


class Scheduler:
    """First come, first served. Answers go on before prompts do, which fill the rest of the step in chunks.

    When blocks run out, the latest request gives up its own and is computed again later: an answer's tokens as an
    answer's, so that nothing of it changes.
    """

    def __init__(self, blocks: BlockManager, *, max_num_batched_tokens: int, max_num_seqs: int) -> None:
        self.blocks = blocks
        self.max_num_batched_tokens, self.max_num_seqs = max_num_batched_tokens, max_num_seqs
        self.waiting: deque[RequestState] = deque()
        self.running: list[RequestState] = []
        """In order of arrival."""
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        """Of the requests admitted so far."""
        self.num_cached_tokens = 0
        """Those of them that the prefix cache held."""

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step, at most `_step_tokens` tokens; empty when there is no work."""
        chunks: dict[RequestState, Chunk] = {}
        budget = self._step_tokens()
        preempted = False
        for request in sorted(self.running, key=lambda r: r.is_prefilling):
            count = min(request.num_remaining, budget)
            if request not in self.running or count == 0:
                continue
            while not self._grow(request, request.num_computed + count):
                preempted = True
                victim = self.running.pop()
                self._preempt(victim)
                if victim in chunks:
                    budget += chunks.pop(victim).num_tokens
                if victim is request:
                    break
            else:
                chunks[request] = Chunk(request, request.num_computed, request.num_computed + count)
                budget -= count
        while self.waiting and budget and len(self.running) < self.max_num_seqs and not preempted:
            request = self.waiting[0]
            if not self._admit(request):
                break
            self.running.append(self.waiting.popleft())
            count = min(request.num_remaining, budget)
            chunks[request] = Chunk(request, request.num_computed, request.num_computed + count)
            budget -= count
        return list(chunks.values())

    def extend(self, chunk: Chunk, drafts: tuple[int, ...]) -> Chunk:
        """The chunk with drafts, if there are blocks for them."""
        return replace(chunk, drafts=drafts) if self._grow(chunk.request, chunk.end + len(drafts)) else chunk

    def finish(self, request: RequestState) -> None:
        """Forget a request and free its blocks at once."""
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self._free(request)

    def computed(self, chunk: Chunk) -> None:
        """Record that a chunk's latents are written, and cache the blocks that it filled.

        Only blocks of the prompt alone: prefill wrote them, with every expert, so they are what any other request
        would compute.
        """
        request, size = chunk.request, self.blocks.block_size
        request.num_computed = chunk.end
        full = min(chunk.end, request.num_prompt_tokens) // size
        for index in range(request.num_chained, full):
            tokens = request.token_ids[index * size : (index + 1) * size]
            request.chain = self.blocks.register(request.chain, tokens, request.blocks[index])
            request.num_chained = index + 1

    def _step_tokens(self) -> int:
        """Of the next step: `max_num_batched_tokens`, or more for a deep prompt whose step no answer waits for.

        Attention expands the earlier keys once a chunk. With chunks as long as the prompt is deep, that stays a fixed
        share of its work, and the weights are read less often.
        """
        usual = self.max_num_batched_tokens
        if not all(request.is_prefilling for request in self.running):
            return usual
        deepest = max((request.num_computed for request in self.running), default=0)
        return max(usual, min(deepest, DEEP_FACTOR * usual))

    def _admit(self, request: RequestState) -> bool:
        """Give a waiting request its cached prefix and room for all of its tokens; False changes nothing."""
        # The last token of the prompt is always computed: the answer's first token follows from it.
        # And all of it is where its tokens' probabilities are asked for: the cache does not hold those.
        shared = 0 if request.sampling.prompt_logprobs is not None else request.num_prompt_tokens - 1
        matched, chain = self.blocks.match(request.token_ids[:shared])
        fresh = self.blocks.allocate(self.blocks.blocks_for(len(request.token_ids)) - len(matched))
        if fresh is None:
            self.blocks.release(matched)
            return False
        request.blocks = matched + fresh
        request.chain, request.num_chained = chain, len(matched)
        request.num_computed = len(matched) * self.blocks.block_size
        if request.cached_tokens is None:
            request.cached_tokens = request.num_computed
            self.num_prompt_tokens += request.num_prompt_tokens
            self.num_cached_tokens += request.cached_tokens
        return True

    def _grow(self, request: RequestState, num_tokens: int) -> bool:
        fresh = self.blocks.allocate(max(0, self.blocks.blocks_for(num_tokens) - len(request.blocks)))
        if fresh is None:
            return False
        request.blocks += fresh
        return True

    def _preempt(self, request: RequestState) -> None:
        self.num_preemptions += 1
        request.expert_use = ExpertUse()  # what was computed will be again
        self._free(request)
        self.waiting.appendleft(request)

    def _free(self, request: RequestState) -> None:
        self.blocks.release(request.blocks)
        request.blocks = []
        request.num_computed = request.num_chained = request.chain = 0
