"""The sampler against plain arithmetic on small vocabularies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from openk2.config import SamplingParams
from openk2.engine.request import RequestState, TokenLogprobs
from openk2.engine.sampler import Failure, logprobs, sample, uniform

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 0.0])


def request(constraint: object = None, seed: int = 0, answered: int = 0, **sampling: object) -> RequestState:
    params = SamplingParams(**{"temperature": 1.0, **sampling})  # type: ignore[arg-type]
    return RequestState("r", [0] * (1 + answered), 1, 100, params, seed, frozenset(), constraint)  # type: ignore[arg-type]


def draw(count: int, **sampling: object) -> np.ndarray:
    """Frequencies of `count` draws from LOGITS."""
    requests = [request(answered=i, **sampling) for i in range(count)]
    tokens = sample(LOGITS.repeat(count, 1), requests)
    return np.bincount(np.array(tokens), minlength=5) / count


def distribution(temperature: float, kept: list[int]) -> np.ndarray:
    weights = np.array([math.exp(LOGITS[i].item() / temperature) if i in kept else 0.0 for i in range(5)])
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("sampling", "temperature", "kept"),
    [
        ({}, 1.0, [0, 1, 2, 3, 4]),
        ({"temperature": 0.5}, 0.5, [0, 1, 2, 3, 4]),
        ({"temperature": None}, 0.6, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, 1.0, [1, 2]),
        ({"top_k": 0}, 1.0, [0, 1, 2, 3, 4]),
        ({"top_p": 0.64}, 1.0, [1, 2]),  # probabilities .635 .234 .086 .032 .012
        ({"top_p": 0.63}, 1.0, [1]),
        ({"top_k": 2, "top_p": 0.74}, 1.0, [1, 2]),  # of the two: .731 .269
        ({"top_k": 2, "top_p": 0.72}, 1.0, [1]),
        ({"min_p": 0.3}, 1.0, [1, 2]),  # .368 of the largest
        ({"min_p": 0.1}, 1.0, [0, 1, 2]),  # .135
        ({"min_p": 1.0}, 1.0, [1]),
    ],
)
def test_frequencies(sampling: dict[str, object], temperature: float, kept: list[int]) -> None:
    count = 4000
    observed, expected = draw(count, **sampling), distribution(temperature, kept)
    assert set(np.flatnonzero(observed)) <= set(kept)
    error = 5 * np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(observed - expected) <= error).all()


@pytest.mark.parametrize(
    ("sampling", "token"),
    [
        ({}, 1),
        ({"frequency_penalty": 0.45}, 1),  # 3 - 2 * 0.45 = 2.1
        ({"frequency_penalty": 0.55}, 2),  # 1.9
        ({"presence_penalty": 0.95}, 1),  # 2.05, however often
        ({"presence_penalty": 1.05}, 2),
        ({"frequency_penalty": 0.3, "presence_penalty": 0.45}, 2),  # 1.95
        ({"frequency_penalty": -2, "presence_penalty": -2}, 1),
        ({"repetition_penalty": 1.45}, 1),  # 3 / 1.45 = 2.07, and 2 for token 2, which stands nowhere
        ({"repetition_penalty": 1.55}, 2),
    ],
)
def test_penalties(sampling: dict[str, float], token: int) -> None:
    """Token 1 stands twice in the answer, 0 in the prompt. A request beside it without penalties feels nothing."""
    said = RequestState("r", [0, 1, 1], 1, 100, SamplingParams(temperature=0, **sampling), 0, frozenset(), None)
    assert sample(LOGITS.repeat(2, 1), [said, request(temperature=0)]) == [token, 1]


@pytest.mark.parametrize(
    ("bias", "token"),
    [(((2, 1.05),), 2), (((2, 0.95),), 1), (((1, -100.0), (3, 2.9)), 2), (((1, -100.0), (3, 3.1)), 3)],
)
def test_logit_bias(bias: tuple[tuple[int, float], ...], token: int) -> None:
    """Added to the logits, before the temperature; what the grammar forbids stays forbidden."""
    asked = request(temperature=0, logit_bias=bias)
    assert sample(LOGITS.repeat(2, 1), [asked, request(temperature=0)]) == [token, 1]
    drawn = [request(temperature=1e-3, logit_bias=bias, answered=i) for i in range(20)]
    assert sample(LOGITS.repeat(20, 1), drawn) == [token] * 20

    class OnlyZero:
        def fill_mask(self, words: np.ndarray) -> bool:
            words[0] = 1
            return True

    assert sample(LOGITS.repeat(1, 1), [request(OnlyZero(), temperature=0, logit_bias=bias)]) == [0]


def test_the_end_does_not_come_before_the_fewest_tokens() -> None:
    """Unless the grammar leaves nothing else."""

    class Allows:
        def __init__(self, *tokens: int) -> None:
            self.bits = sum(1 << token for token in tokens)

        def fill_mask(self, words: np.ndarray) -> bool:
            words[0] = self.bits
            return True

    def asked(answered: int, constraint: object = None) -> RequestState:
        params = SamplingParams(temperature=0, min_tokens=2)
        ends = frozenset({1, 2, 10**6})
        return RequestState("r", [0] * (1 + answered), 1, 100, params, 0, ends, constraint)  # type: ignore[arg-type]

    rows = [asked(0), asked(1), asked(2), asked(0, Allows(1, 3)), asked(0, Allows(1, 2)), asked(2, Allows(1, 3))]
    assert sample(LOGITS.repeat(6, 1), rows) == [0, 0, 1, 3, 1, 1]


def test_repetition_counts_the_prompt_and_makes_negative_logits_smaller() -> None:
    said = RequestState("r", [0, 3], 2, 100, SamplingParams(temperature=0, repetition_penalty=2), 0, frozenset(), None)
    logits = torch.tensor([[3.0, -9.0, 1.4, -0.5, -9.0]])
    assert sample(logits, [said]) == [0]  # 1.5 > 1.4
    logits = torch.tensor([[-1.0, -9.0, -1.4, -0.9, -9.0]])
    assert sample(logits, [said]) == [2]  # -2, -1.4, -1.8


def test_logprobs_are_those_of_the_logits() -> None:
    weights = [math.exp(value) for value in LOGITS.tolist()]
    expected = [math.log(weight / sum(weights)) for weight in weights]
    logits = LOGITS.repeat(1, 1)
    sample(logits, [request(frequency_penalty=2, answered=3, temperature=0.2)])
    told = logprobs(logits[0], 3, 2)
    assert told.logprob == pytest.approx(expected[3])
    assert [token for token, _ in told.top] == [1, 2]
    assert [value for _, value in told.top] == pytest.approx([expected[1], expected[2]])
    masked = torch.tensor([0.0, -torch.inf, 0.0, -torch.inf, -torch.inf])
    assert logprobs(masked, 2, 5) == TokenLogprobs(math.log(0.5), ((0, math.log(0.5)), (2, math.log(0.5))))
    assert logprobs(masked, 2, 0).top == ()


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 1.0, 3.0]])
    assert sample(logits, [request(temperature=0.0), request(temperature=0.0)]) == [1, 0]


def test_rows_do_not_depend_on_each_other() -> None:
    rows = torch.randn(12, 50, generator=torch.Generator().manual_seed(0))
    requests = [request(seed=i, answered=i, top_p=0.5 + i / 24, temperature=i % 3 / 2) for i in range(12)]
    together = sample(rows.clone(), requests)
    assert together == [sample(rows[i : i + 1].clone(), [requests[i]])[0] for i in range(12)]


def test_random_numbers_follow_from_seed_and_index() -> None:
    assert uniform(1, 2) == uniform(1, 2)
    assert len({uniform(seed, index) for seed in range(-5, 20) for index in range(40)}) == 1000
    numbers = np.array([uniform(7, i) for i in range(20000)])
    assert 0 <= numbers.min() <= numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01


class Allow:
    """A grammar that allows these tokens; none: an error; None: everything."""

    def __init__(self, tokens: list[int] | None) -> None:
        self.tokens = tokens

    def fill_mask(self, words: np.ndarray) -> bool:
        for token in self.tokens or ():
            words[token // 32] |= np.uint32(1 << token % 32).astype(np.int32)
        return self.tokens is not None


def test_mask_bits() -> None:
    logits = torch.zeros(5, 70)
    logits[:, 5] = 9
    allowed = [[0], [31], [32, 33], [69], None]
    tokens = sample(logits, [request(Allow(tokens), temperature=0.0) for tokens in allowed])
    assert tokens == [0, 31, 32, 69, 5]


def test_random_token_is_an_allowed_one() -> None:
    requests = [request(Allow([0, 3]), answered=i) for i in range(50)]
    assert set(sample(LOGITS.repeat(50, 1), requests)) == {0, 3}


def test_failures_end_their_own_row_only() -> None:
    class Broken:
        def fill_mask(self, words: np.ndarray) -> bool:
            raise ValueError("no such rule")

    logits = LOGITS.repeat(5, 1)
    logits[1, 2], logits[2, 0] = torch.nan, torch.inf
    greedy = {"temperature": 0.0}
    requests = [request(**greedy), request(), request(**greedy), request(Allow([])), request(Broken())]
    good, nan, inf, empty, broken = sample(logits, requests)
    assert good == 1
    assert isinstance(nan, Failure) and "not finite" in nan.reason
    assert isinstance(inf, Failure) and "not finite" in inf.reason
    assert isinstance(empty, Failure) and "allows no token" in empty.reason
    assert isinstance(broken, Failure) and "no such rule" in broken.reason
