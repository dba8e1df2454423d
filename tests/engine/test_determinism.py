"""Design 4.4 to 4.7: chunk sizes, batch mates, cache hits, preemption and budgets of others change no bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.engine.conftest import Answer, Recorder, prompt, random_model, tiny_config

from openk2.engine import Engine, EngineConfig
from openk2.models import K2Model

PROMPT = prompt(75, seed=1)
ANSWER = 20


@pytest.fixture(
    scope="module",
    params=[
        ("k2-0905", torch.float32, 1),
        ("k2-0905", torch.bfloat16, 1),
        ("deepseek-v2-lite", torch.float32, 1),
        # Two threads on a busy machine wait for each other more than they compute.
        pytest.param(("k2-0905", torch.float32, 2), marks=pytest.mark.slow),
        pytest.param(("k2-0905", torch.bfloat16, 2), marks=pytest.mark.slow),
    ],
    ids=lambda p: f"{p[0]}-{str(p[1])[6:]}-{p[2]}",
)
def model(request: pytest.FixtureRequest) -> Iterator[K2Model]:
    name, dtype, threads = request.param
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield random_model(tiny_config(name), dtype=dtype)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(model: K2Model) -> Answer:
    recorder = Recorder(Engine(model, EngineConfig()))
    answer = recorder.add("alone", PROMPT, max_tokens=ANSWER)
    recorder.run()
    assert len(answer.logits) == ANSWER
    assert len(set(answer.tokens)) > 5, "too easy a model"
    return answer


def assert_same(answer: Answer, expected: Answer) -> None:
    assert answer.tokens == expected.tokens
    assert all(torch.equal(a, b) for a, b in zip(answer.logits, expected.logits, strict=True))


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_any_chunk_size(model: K2Model, alone: Answer, chunk: int) -> None:
    recorder = Recorder(Engine(model, EngineConfig(max_num_batched_tokens=chunk)))
    answer = recorder.add("r", PROMPT, max_tokens=ANSWER)
    recorder.run()
    assert_same(answer, alone)


@pytest.mark.parametrize("block_size", [1, 24])
def test_any_block_size(model: K2Model, alone: Answer, block_size: int) -> None:
    recorder = Recorder(Engine(model, EngineConfig(block_size=block_size)))
    answer = recorder.add("r", PROMPT, max_tokens=ANSWER)
    recorder.run()
    assert_same(answer, alone)


@pytest.mark.parametrize("chunk", [30, 512])
def test_in_a_batch_of_eight(model: K2Model, alone: Answer, chunk: int) -> None:
    recorder = Recorder(Engine(model, EngineConfig(max_num_batched_tokens=chunk)))
    answers = []
    for i in range(8):
        if i == 3:
            answers.append(recorder.add("same", PROMPT, max_tokens=ANSWER))
        else:
            budget = {"topk": 1 + i % 4} if i % 2 else {}
            recorder.add(str(i), prompt(5 + 13 * i, seed=50 + i), temperature=i / 5, seed=i, max_tokens=9 + i, **budget)
        recorder.step()
    answers.append(recorder.add("late", PROMPT, max_tokens=ANSWER))
    recorder.run()
    for answer in answers:
        assert_same(answer, alone)


def test_cache_hit(model: K2Model, alone: Answer) -> None:
    recorder = Recorder(Engine(model, EngineConfig(max_num_batched_tokens=40)))
    recorder.add("other", PROMPT[:50] + prompt(20, seed=9), max_tokens=3)
    recorder.run()
    for name, cached in (("part", 48), ("whole", 64)):
        answer = recorder.add(name, PROMPT, max_tokens=ANSWER)
        recorder.run()
        assert answer.cached_tokens == cached
        assert_same(answer, alone)


def test_reply_that_comes_back_in_a_prompt(model: K2Model, alone: Answer) -> None:
    """The first request's answer ran absorbed, and perhaps on fewer experts: its blocks are not for others."""
    second = PROMPT + alone.tokens + prompt(9, seed=3)
    fresh = Recorder(Engine(model, EngineConfig(enable_prefix_caching=False)))
    expected = fresh.add("r", second)
    fresh.run()
    recorder = Recorder(Engine(model, EngineConfig()))
    recorder.add("first", PROMPT, max_tokens=ANSWER)
    recorder.add("reduced", PROMPT, max_tokens=ANSWER, topk=1)
    recorder.run()
    answer = recorder.add("second", second)
    recorder.run()
    assert answer.cached_tokens == 64
    assert_same(answer, expected)


def test_preemption(model: K2Model, alone: Answer) -> None:
    """Two requests that do not fit together: the later one is computed twice, its answer as an answer."""
    engine = Engine(model, EngineConfig(block_size=8, num_blocks=17, enable_prefix_caching=False))
    recorder = Recorder(engine)
    recorder.add("first", prompt(25, seed=4), max_tokens=70)
    recorder.step()
    answer = recorder.add("r", PROMPT, max_tokens=ANSWER)
    recorder.run()
    assert engine.stats().preemptions > 0
    assert_same(answer, alone)


@pytest.mark.slow
def test_threads_change_nothing(alone: Answer, model: K2Model) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3 - before)
    try:
        recorder = Recorder(Engine(model, EngineConfig()))
        answer = recorder.add("r", PROMPT, max_tokens=ANSWER)
        recorder.run()
    finally:
        torch.set_num_threads(before)
    assert_same(answer, alone)
