"""Log probabilities of answers: those of whole forward passes, and the same however a grammar's tokens come."""

from __future__ import annotations

import pytest
import torch
from tests.engine.conftest import prompt
from tests.engine.test_engine import Script

from openk2.config import SamplingParams
from openk2.engine import Engine, EngineConfig, EngineRequest
from openk2.engine.request import TokenLogprobs
from openk2.models import ForwardBatch, K2Model


def answer(
    model: K2Model, ids: list[int], constraint: Script | None = None, **sampling: object
) -> tuple[list[int], list[TokenLogprobs]]:
    engine = Engine(model, EngineConfig())
    params = SamplingParams(**{"temperature": 1.0, "seed": 3, **sampling})  # type: ignore[arg-type]
    engine.add_request(EngineRequest("r", ids, params, frozenset(), constraint))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return [t for output in outputs for t in output.token_ids], [t for output in outputs for t in output.logprobs]


@pytest.mark.parametrize("more", [{}, {"temperature": 0.3, "frequency_penalty": 1.5, "repetition_penalty": 1.3}])
def test_they_are_those_of_a_whole_pass(model: K2Model, more: dict[str, float]) -> None:
    ids = prompt(20)
    tokens, told = answer(model, ids, max_tokens=10, logprobs=4, **more)
    whole = ids + tokens
    with torch.no_grad():
        logits = model.compute_logits(model(torch.tensor(whole), ForwardBatch.packed([len(whole)])))
    expected = logits[19:-1].double().log_softmax(-1)
    for row, token, entry in zip(expected, tokens, told, strict=True):
        assert entry.logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert [value for _, value in entry.top] == pytest.approx(row.topk(4).values.tolist(), abs=1e-4)


def test_nothing_is_told_unasked(model: K2Model) -> None:
    tokens, told = answer(model, prompt(20), max_tokens=3)
    assert len(tokens) == 3 and told == []


def test_forced_tokens_are_as_certain_as_sampled_ones(model: K2Model) -> None:
    script: list[int | str] = [5, 6, 7, 8, "?", 11, 12, 13, "?", 15]
    ahead, single = (answer(model, prompt(20), Script(script, way), max_tokens=10, logprobs=3) for way in (True, False))
    assert ahead == single
    _, told = ahead
    assert [len(entry.top) for entry in told] == [1, 1, 1, 1, 2, 1, 1, 1, 2, 1]
    assert told[0] == TokenLogprobs(0.0, ((5, 0.0),))


def test_those_of_a_prompt(model: K2Model) -> None:
    """Of every token but the first, from a whole pass; computed anew where the cache has the prompt."""

    def told(config: EngineConfig, *others: list[int]) -> tuple[TokenLogprobs, ...]:
        engine = Engine(model, config)
        for i, other in enumerate(others):
            engine.add_request(EngineRequest(str(i), other, SamplingParams(temperature=0, max_tokens=4)))
            engine.step()
        params = SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=2)
        engine.add_request(EngineRequest("r", ids, params))
        outputs = []
        while engine.has_work:
            outputs += [output for output in engine.step() if output.request_id == "r"]
        assert outputs[0].cached_tokens == 0 and not any(output.prompt_logprobs for output in outputs[1:])
        return outputs[0].prompt_logprobs

    ids = prompt(40)
    alone = told(EngineConfig())
    with torch.no_grad():
        logits = model.compute_logits(model(torch.tensor(ids), ForwardBatch.packed([len(ids)])))
    for row, token, entry in zip(logits[:-1].double().log_softmax(-1), ids[1:], alone, strict=True):
        assert entry.logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert [value for _, value in entry.top] == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)
    assert told(EngineConfig(block_size=4, max_num_batched_tokens=11), ids, prompt(9, seed=1)) == alone
