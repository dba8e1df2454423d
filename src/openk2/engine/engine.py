"""Continuous batching: requests come and go between steps; each step computes what the scheduler picked."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openk2.config import ExpertBudget, ModelConfig, SamplingParams, expert_budget
from openk2.engine.block_manager import BlockManager
from openk2.engine.drafts import MOST_DRAFT_TOKENS, Drafter, common
from openk2.engine.kv_cache import LatentCache, default_num_blocks
from openk2.engine.model_runner import ModelRunner
from openk2.engine.request import EngineRequest, FinishReason, RequestState, StepOutput, TokenLogprobs
from openk2.engine.sampler import Failure, certain, logprobs, sample
from openk2.engine.scheduler import Chunk, Scheduler
from openk2.errors import ConfigError, ContextLengthError, RequestError
from openk2.models import K2Model
from openk2.models.packed_stored import ExpertCacheStats, stored_experts


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Sizes of the engine. None: from the model and the memory there is."""

    block_size: int = 16
    """Tokens of a cache block, the unit of sharing prefixes."""
    num_blocks: int | None = None
    """Cache blocks, one of which stays unused. None: every sequence at full length, within 1 GiB."""
    max_num_batched_tokens: int = 512
    """Tokens of one step; a longer prompt goes through in chunks. A deep prompt may take up to four times as
    many while no answer is being written."""
    max_num_seqs: int = 16
    """Requests that run at once; the others wait."""
    max_model_len: int | None = None
    """Prompt plus answer, in tokens. None: the model's window."""
    enable_prefix_caching: bool = True
    num_speculative_tokens: int = 0
    """Most tokens of a request that are guessed from its own text and checked in one step, where that pays
    (docs/drafts.md)."""
    record_routing: bool = False
    """Tell with each finished request which experts its tokens went through: for training on the answers."""

    def __post_init__(self) -> None:
        for name, least in {
            "block_size": 1,
            "num_blocks": 2,
            "max_num_batched_tokens": 1,
            "max_num_seqs": 1,
            "max_model_len": 2,
        }.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, not {value}", param=name)
        if not 0 <= self.num_speculative_tokens <= MOST_DRAFT_TOKENS:
            raise ConfigError(
                f"num_speculative_tokens must be between 0 and {MOST_DRAFT_TOKENS}, not {self.num_speculative_tokens}",
                param="num_speculative_tokens",
            )


@dataclass(frozen=True)
class EngineStats:
    """The engine's state, and what it has done since its start."""

    running: int
    waiting: int
    total_blocks: int
    free_blocks: int
    """Blocks that a request can get now; cached ones that nobody holds are among them."""
    cached_blocks: int
    """Blocks in the prefix cache, held or not."""
    prompt_tokens: int
    """Prompt tokens of the requests that were admitted."""
    cached_tokens: int
    """Those of them that the prefix cache held."""
    generated_tokens: int
    preemptions: int
    drafts: int = 0
    """Of a request in a step."""
    draft_tokens: int = 0
    accepted_tokens: int = 0
    """Of the drafts' tokens, those that came."""
    experts_taken: tuple[int, ...] = ()
    """By number: how often a router gave a generated token so many experts."""
    experts: ExpertCacheStats | None = None
    """Of a model whose routed experts are on disk."""


class Engine:
    """Token ids in, token ids out, over one model.

    Not thread-safe: one thread adds requests, steps and aborts. A request's answer depends on that request alone, never
    on when or with whom it ran.
    """

    def __init__(self, model: K2Model, config: EngineConfig | None = None) -> None:
        """Allocate the cache for `model`, on its device and in its dtype.

        Raises ConfigError when `max_model_len` exceeds the model's window, or for a cache that memory cannot hold.
        """
        self.config = config = config or EngineConfig()
        self.model_config: ModelConfig = model.config
        window = model.config.max_position_embeddings
        if config.max_model_len is not None and config.max_model_len > window:
            raise ConfigError(
                f"max_model_len {config.max_model_len} exceeds the model's window of {window} tokens",
                param="max_model_len",
            )
        weight = model.model.embed_tokens.weight
        num_blocks = config.num_blocks or default_num_blocks(
            model.config,
            block_size=config.block_size,
            max_model_len=config.max_model_len or window,
            max_num_seqs=config.max_num_seqs,
            dtype=weight.dtype,
        )
        self.blocks = BlockManager(num_blocks, config.block_size, enable_prefix_caching=config.enable_prefix_caching)
        self.max_model_len = min(config.max_model_len or window, self.blocks.capacity)
        """Most tokens of a request, prompt and answer: the window, or the cache where that is smaller."""
        cache = LatentCache(model.config, num_blocks, config.block_size, device=weight.device, dtype=weight.dtype)
        self.runner = ModelRunner(model, cache, config.block_size, record_routing=config.record_routing)
        self.scheduler = Scheduler(
            self.blocks,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_num_seqs=config.max_num_seqs,
        )
        self.drafter = Drafter(config.num_speculative_tokens) if config.num_speculative_tokens else None
        self._stored_experts = stored_experts(model)
        self._requests: dict[str, RequestState] = {}
        self._generated_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            total_blocks=self.blocks.num_blocks - 1,
            free_blocks=self.blocks.num_available,
            cached_blocks=self.blocks.num_cached,
            prompt_tokens=self.scheduler.num_prompt_tokens,
            cached_tokens=self.scheduler.num_cached_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=self.scheduler.num_preemptions,
            drafts=self.drafter.num_drafts if self.drafter else 0,
            draft_tokens=self.drafter.num_draft_tokens if self.drafter else 0,
            accepted_tokens=self.drafter.num_accepted_tokens if self.drafter else 0,
            experts_taken=tuple(self.runner.experts_taken),
            experts=self._stored_experts[0].slots.stats if self._stored_experts else None,
        )

    def add_request(self, request: EngineRequest) -> None:
        """Queue a request.

        Raises ContextLengthError for a prompt that leaves no room for an answer, RequestError for an empty prompt, ids
        outside the vocabulary (also in the logit bias), an expert budget above the model's, or a request id that is in
        use.
        """
        prompt, sampling = list(request.prompt_token_ids), request.sampling
        if request.request_id in self._requests:
            raise RequestError(f"request id {request.request_id!r} is in use", param="request_id")
        if not prompt:
            raise RequestError("the prompt is empty", param="prompt")
        if len(prompt) >= self.max_model_len:
            raise ContextLengthError(prompt_tokens=len(prompt), max_model_len=self.max_model_len)
        vocab_size = self.model_config.vocab_size
        strangers = [token for token in prompt if not 0 <= token < vocab_size]
        if strangers:
            raise RequestError(f"token id {strangers[0]} is outside the vocabulary of {vocab_size}", param="prompt")
        strangers = [token for token, _ in sampling.logit_bias if not 0 <= token < vocab_size]
        if strangers:
            raise RequestError(f"token id {strangers[0]} is outside the vocabulary of {vocab_size}", param="logit_bias")
        budget = self._budget(sampling)
        longest = self.max_model_len - len(prompt)
        state = RequestState(
            request_id=request.request_id,
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            max_total_tokens=len(prompt) + min(sampling.max_tokens or longest, longest),
            sampling=sampling,
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            stop_token_ids=frozenset(sampling.stop_token_ids).union(
                () if sampling.ignore_eos else request.stop_token_ids
            ),
            constraint=request.constraint,
            budget=budget,
        )
        self._requests[state.request_id] = state
        self.scheduler.waiting.append(state)

    def _budget(self, sampling: SamplingParams) -> ExpertBudget | None:
        trained = self.model_config.num_experts_per_tok
        if sampling.topk is not None and sampling.topk > trained:
            raise RequestError(
                f"topk must be at most {trained}, the experts per token of this model, not {sampling.topk}",
                param="topk",
            )
        return expert_budget(sampling.mode, sampling.topk, trained) if self.runner.moe_layers else None

    def abort(self, request_id: str) -> None:
        """Drop a request and free its blocks at once; unknown or finished ones are no error."""
        state = self._requests.pop(request_id, None)
        if state is not None:
            self.scheduler.finish(state)
            if self.drafter is not None:
                self.drafter.forget(state)

    def step(self) -> list[StepOutput]:
        """One forward pass; an output for each request that got tokens or ended. Does nothing without work.

        A request whose drafts were right has one output for each step that it would have taken without.
        """
        chunks = self.scheduler.schedule()
        if not chunks:
            return []
        if self.drafter is None:
            return self._sample(chunks, self._run(chunks))
        chunks = self.drafter.extend(chunks, self.scheduler)
        started = time.perf_counter()
        logits = self._run(chunks)
        computed = time.perf_counter()
        outputs = self._sample(chunks, logits)
        if outputs and all(chunk.is_answer for chunk in chunks):
            rows = sum(chunk.num_tokens for chunk in chunks)
            self.drafter.costs.saw_step(rows, computed - started, len(outputs), time.perf_counter() - computed)
        self.drafter.learn()
        return outputs

    def _run(self, chunks: Sequence[Chunk]) -> Tensor:
        logits = self.runner.run(chunks)
        for chunk in chunks:
            self.scheduler.computed(chunk)
        return logits

    def _sample(self, chunks: Sequence[Chunk], logits_SV: Tensor) -> list[StepOutput]:
        """Sample for each request; and again from the rows after its drafts, for as long as they were right."""
        outputs: list[StepOutput] = []
        going_on: list[tuple[Chunk, int]] = []
        first = 0
        for chunk in chunks:
            if chunk.samples:
                going_on.append((chunk, first))
                first += 1 + len(chunk.drafts)
        while going_on:
            states = [chunk.request for chunk, _ in going_on]
            rows = logits_SV
            if len(going_on) != len(logits_SV):
                rows = logits_SV[torch.tensor([row for _, row in going_on], device=logits_SV.device)]
            with torch.inference_mode():
                tokens = sample(rows, states)
            befores = [len(state.token_ids) for state in states]
            outputs += [self._advance(*of_one) for of_one in zip(states, tokens, rows, strict=True)]
            going_on = [
                (chunk, row + right)
                for (chunk, row), before in zip(going_on, befores, strict=True)
                if chunk.drafts and (right := self._check(chunk, before))
            ]
        return outputs

    def _check(self, chunk: Chunk, before: int) -> int:
        """Compare what came after `before` with the chunk's drafts: how many tokens, if all are right; else 0."""
        state = chunk.request
        new = state.token_ids[before:]
        right = common(chunk.drafts[before - chunk.end :], new)
        assert self.drafter is not None
        self.drafter.num_accepted_tokens += right
        if state.request_id not in self._requests:
            return 0
        state.num_computed += right
        self.runner.accept_drafts(state, right)
        return right if right == len(new) else 0

    def _advance(self, state: RequestState, sampled: int | Failure, logits_V: Tensor) -> StepOutput:
        """Append the sampled token and those that the grammar forces after it; end the request where they say so."""
        before = len(state.token_ids)
        state.num_sampled += 1
        finish_reason: FinishReason | None = None
        error: str | None = None
        if isinstance(sampled, Failure):
            finish_reason, error = "error", sampled.reason
        else:
            try:
                finish_reason = self._append(state, sampled)
            except Exception as fault:  # a grammar's fault ends its own request, not the others'
                finish_reason, error = "error", f"the request's grammar failed: {fault}"
        new = [] if error else state.token_ids[before:]
        self._generated_tokens += len(new)
        routing = None
        if finish_reason is not None:
            routing = self.runner.routing_of(state)
            self.abort(state.request_id)
        told = _logprobs(new, sampled, logits_V, state.sampling.logprobs) if new else ()
        told_of_prompt = tuple(state.prompt_logprobs) if new and before == state.num_prompt_tokens else ()
        cached = state.cached_tokens or 0
        use = None if state.budget is None else state.expert_use
        return StepOutput(state.request_id, new, finish_reason, cached, error, told, told_of_prompt, routing, use)

    @staticmethod
    def _append(state: RequestState, sampled: int) -> FinishReason | None:
        """Forced tokens go before a sampled one, which is dropped, and after it.

        All get computed as one chunk; each ends the answer where it would have, sampled alone. Near the limit the
        grammar may end the answer in the sampled token's place, which is the limit's doing.
        """
        constraint = state.constraint
        pending = constraint.forced_tokens() if constraint is not None and not state.num_answer_tokens else []
        if constraint is not None and not pending:
            closing = constraint.closing_tokens(sampled, state.max_total_tokens - len(state.token_ids))
            for token in closing:
                state.token_ids.append(token)
                constraint.accept(token)
            if closing:
                return "length"
        pending = pending or [sampled]
        while pending:
            for token in pending:
                state.token_ids.append(token)
                if constraint is not None:
                    constraint.accept(token)
                if token in state.stop_token_ids:
                    return "stop"
                if len(state.token_ids) >= state.max_total_tokens:
                    return "length"
            pending = constraint.forced_tokens() if constraint is not None else []
        return None


def _logprobs(new: list[int], sampled: int | Failure, logits_V: Tensor, count: int | None) -> tuple[TokenLogprobs, ...]:
    """Of a step's tokens: the first may be the sampled one, all others were forced."""
    if count is None:
        return ()
    first = logprobs(logits_V, new[0], count) if new[0] == sampled else certain(new[0], count)
    return (first, *(certain(token, count) for token in new[1:]))
