"""From logits to the next token, for each request by its own settings and its own random numbers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openk2.engine.request import RequestState, TokenLogprobs

DEFAULT_TEMPERATURE = 0.6
"""The model card's recommendation."""


def uniform(seed: int, index: int) -> float:
    """The random number in [0, 1) for an answer's token number `index`: a function of its arguments alone.

    A counter-based generator (the first 53 bits of a hash) has no state that the order of requests could move.
    """
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


@dataclass(frozen=True)
class Failure:
    """Why a request gets no next token, in one line."""

    reason: str


def sample(logits_BV: Tensor, requests: Sequence[RequestState]) -> list[int | Failure]:
    """The next token of each request, or why there is none.

    logits_BV: float32; those of tokens that may not come become -inf in place: what the request's grammar forbids, and
    the answer's end before its fewest tokens. A row's result depends on that row alone.
    """
    failures: dict[int, Failure] = {}
    usable = (logits_BV * 0).sum(-1) == 0  # all finite, in a fraction of the time of isfinite().all()
    for row, request in enumerate(requests):
        try:
            mask = _mask(request, logits_BV.shape[1])
        except Exception as fault:  # a grammar's fault ends its own request, not the others'
            failures[row] = Failure(f"the request's grammar failed: {fault}")
            continue
        if mask is not None and not mask.any():
            failures[row] = Failure("the request's grammar allows no token")
        elif mask is not None:
            logits_BV[row].masked_fill_(~torch.from_numpy(mask).to(logits_BV.device), -torch.inf)
    logits_BV = _penalized(logits_BV, requests)
    sampled: list[int | Failure] = []
    tokens = logits_BV.argmax(-1)
    random = [row for row, request in enumerate(requests) if _temperature(request)]
    if random:
        rows = torch.tensor(random, device=logits_BV.device)
        # A row that is not usable is drawn from zeros, and dropped below.
        usable_logits = logits_BV[rows].where(usable[rows, None], 0.0)
        tokens[rows] = _draw(usable_logits, [requests[row] for row in random])
    for row, (token, ok) in enumerate(torch.stack((tokens, usable.long()), 1).tolist()):
        sampled.append(failures.get(row) or (token if ok else Failure("the model's logits are not finite")))
    return sampled


def logprobs(logits_V: Tensor, token: int, count: int) -> TokenLogprobs:
    """Of `token`, and of the `count` most likely tokens, in a row as `sample` leaves it."""
    values = logits_V.double().log_softmax(-1)
    top, ids = values.topk(min(count, len(values)))
    likeliest = zip(ids.tolist(), top.tolist(), strict=True)
    return TokenLogprobs(float(values[token].item()), tuple(pair for pair in likeliest if pair[1] > -math.inf))


def certain(token: int, count: int) -> TokenLogprobs:
    """Of a token that the grammar left no choice about."""
    return TokenLogprobs(0.0, ((token, 0.0),)[:count])


def _penalized(logits_BV: Tensor, requests: Sequence[RequestState]) -> Tensor:
    """The logits with the requests' biases and less their penalties; the given ones where there are none."""
    penalized: Tensor | None = None
    for row, request in enumerate(requests):
        sampling = request.sampling
        repetition = sampling.repetition_penalty or 1.0
        frequency, presence = sampling.frequency_penalty or 0.0, sampling.presence_penalty or 0.0
        if repetition == 1 and not frequency and not presence and not sampling.logit_bias:
            continue
        if penalized is None:
            penalized = logits_BV.clone()
        seen = torch.tensor(request.token_ids, device=logits_BV.device).unique()
        logits = penalized[row, seen]
        penalized[row, seen] = torch.where(logits > 0, logits / repetition, logits * repetition)
        answer = torch.tensor(request.token_ids[request.num_prompt_tokens :], dtype=torch.long, device=seen.device)
        said, counts = answer.unique(return_counts=True)
        penalized[row, said] -= frequency * counts + presence
        if sampling.logit_bias:
            ids, biases = zip(*sampling.logit_bias, strict=True)
            penalized[row, torch.tensor(ids, device=seen.device)] += torch.tensor(biases, device=seen.device)
    return logits_BV if penalized is None else penalized


def _temperature(request: RequestState) -> float:
    temperature = request.sampling.temperature
    return DEFAULT_TEMPERATURE if temperature is None else temperature


def _mask(request: RequestState, vocab_size: int) -> NDArray[np.bool_] | None:
    """Which tokens may come next: (vocab_size,); None where all may."""
    allowed = _allowed_by_grammar(request, vocab_size)
    if request.num_answer_tokens >= request.sampling.min_tokens:
        return allowed
    going_on = np.ones(vocab_size, np.bool_) if allowed is None else allowed.copy()
    going_on[[token for token in request.stop_token_ids if token < vocab_size]] = False
    return going_on if going_on.any() else allowed  # a grammar that leaves only the end has its way


def _allowed_by_grammar(request: RequestState, vocab_size: int) -> NDArray[np.bool_] | None:
    if request.constraint is None:
        return None
    words = np.zeros(-(-vocab_size // 32), dtype=np.int32)
    if not request.constraint.fill_mask(words):
        return None
    bits = np.unpackbits(words.astype("<i4").view(np.uint8), bitorder="little")
    return bits[:vocab_size].astype(np.bool_)


def _draw(logits_BV: Tensor, requests: Sequence[RequestState]) -> Tensor:
    """Sample each row after temperature, then top-k, then top-p of what is left, then min-p: (B,) int64.

    The token is where the cumulated probability, most likely token first, passes the request's random number.
    """
    device = logits_BV.device

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device)[:, None]

    vocab = logits_BV.shape[1]
    sampling = [request.sampling for request in requests]
    scaled = logits_BV.double().div_(column([_temperature(r) for r in requests]))
    ordered, ids = scaled.sort(stable=True, dim=-1, descending=True)
    rank = torch.arange(vocab, device=device)
    ordered.masked_fill_(rank >= column([float(s.top_k or vocab) for s in sampling]), -torch.inf)
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs
    # top_p 1 keeps all: rounding may not drop the last ones.
    dropped = before >= column([s.top_p if s.top_p is not None and s.top_p < 1 else 2.0 for s in sampling])
    dropped |= probs < column([s.min_p or 0.0 for s in sampling]) * probs[:, :1]
    probs.masked_fill_(dropped, 0)
    cumulated = probs.cumsum(-1)
    number = column([uniform(r.seed, r.num_answer_tokens) for r in requests])
    passed = cumulated <= number * cumulated[:, -1:]
    last = (probs > 0).sum(-1) - 1
    return ids.gather(1, passed.sum(-1).minimum(last)[:, None]).squeeze(1)
