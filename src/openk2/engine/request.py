"""A request on its way through the engine: what was asked, and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from openk2.config import ExpertBudget, SamplingParams
from openk2.engine.constraint import TokenConstraint

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class EngineRequest:
    """What `Engine.add_request` takes."""

    request_id: str
    prompt_token_ids: Sequence[int]
    sampling: SamplingParams
    """Resolved: what is None here is off (top_k, top_p, min_p, topk, penalties, logprobs), the window (max_tokens) or
    drawn (seed)."""
    stop_token_ids: frozenset[int] = frozenset()
    """Tokens that end the answer, the last of its tokens; unheeded with `ignore_eos`, unlike those of `sampling`."""
    constraint: TokenConstraint | None = None


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely a token of the answer was, among those that the request's grammar allowed."""

    logprob: float
    """Before penalties and temperature."""
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens, first the likeliest, with theirs: as many as were asked for and allowed."""


@dataclass(frozen=True)
class ExpertUse:
    """How many experts tokens took, over all layers with experts."""

    taken: int = 0
    choices: int = 0
    """Of a router: tokens times layers."""


@dataclass(frozen=True)
class StepOutput:
    """What one step did for one request. No output comes after one with a `finish_reason`."""

    request_id: str
    token_ids: list[int]
    """New tokens of the answer, among them the stop token that ended it; empty when the request failed."""
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    """Tokens of the prompt that the prefix cache held."""
    error: str | None = None
    """One line, with `finish_reason` error."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of each of `token_ids`, when the request asked for them."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the prompt's tokens but its first, when the request asked for them; with the first of `token_ids`."""
    routing: Tensor | None = None
    """(tokens, layers, experts per token) int16, when the request ended and the engine records it: the experts of every
    token that was computed, which is all of prompt and answer but the answer's last."""
    expert_use: ExpertUse | None = None
    """Of the answer's tokens that were computed, which is all but the last, when the request has a smaller budget than
    the trained one."""


@dataclass(eq=False)
class RequestState:
    """A request that the engine works on. Its tokens are the prompt, then the answer."""

    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    max_total_tokens: int
    """Length at which the answer ends, prompt included."""
    sampling: SamplingParams
    seed: int
    stop_token_ids: frozenset[int]
    constraint: TokenConstraint | None
    budget: ExpertBudget | None = None
    """Of each generated token; None is the trained number of experts."""
    expert_use: ExpertUse = ExpertUse()
    """Of its answer's tokens, with a `budget`."""
    blocks: list[int] = field(default_factory=list)
    """Cache blocks, in the order of the tokens they hold."""
    num_computed: int = 0
    """Leading tokens whose latents are in the cache."""
    num_chained: int = 0
    """Leading blocks that are in the prefix cache, under the node `chain`."""
    chain: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the prompt's tokens from the second on, as far as they are known."""
    cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache when the request was first admitted; None before."""
    num_sampled: int = 0
    """Of its answer's tokens; the others were forced after those."""

    @property
    def num_remaining(self) -> int:
        """Tokens still to compute before the next one can be sampled."""
        return len(self.token_ids) - self.num_computed

    @property
    def is_prefilling(self) -> bool:
        return self.num_computed < self.num_prompt_tokens

    @property
    def num_answer_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def sampled_share(self) -> float:
        """Of its answer's tokens so far."""
        return self.num_sampled / self.num_answer_tokens if self.num_sampled else 1.0
