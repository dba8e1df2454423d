"""A request's mode is its own: its bits, its count of experts, and nothing of its neighbours'."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.engine.conftest import Answer, Recorder, prompt, random_model, tiny_config

from openk2.checkpoint import Quantization, load_model, save_model
from openk2.engine import Engine, EngineConfig
from openk2.engine.request import ExpertUse
from openk2.models import K2Model
from openk2.ops import cpu

PROMPT = prompt(40, seed=1)
KINDS: list[dict[str, Any]] = [{}, {"mode": "deliberative"}, {"mode": "reflex"}, {"mode": "auto"}, {"topk": 1}]
TRAINED = 6
ANSWER = 10
ROUTERS = 2


@pytest.fixture(scope="module", params=["modules", "native"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[K2Model]:
    made = random_model(replace(tiny_config("k2-0905"), num_experts_per_tok=TRAINED))
    if request.param == "native":
        if not cpu.available():
            pytest.skip("the extension is not built")
        folder = save_model(made.to(torch.bfloat16), tmp_path_factory.mktemp("m") / "model")
        made = load_model(folder, quantization=Quantization.parse("int8"))
    yield made


def answer(model: K2Model, **sampling: Any) -> Answer:
    recorder = Recorder(Engine(model, EngineConfig()))
    made = recorder.add("r", PROMPT, max_tokens=ANSWER, **sampling)
    recorder.run()
    return made


@pytest.fixture(scope="module")
def alone(model: K2Model) -> list[Answer]:
    return [answer(model, **kind) for kind in KINDS]


def same(a: Answer, b: Answer) -> bool:
    logits = zip(a.logits, b.logits, strict=True)
    return a.tokens == b.tokens and a.expert_use == b.expert_use and all(torch.equal(*pair) for pair in logits)


def test_modes_differ_and_tell_what_they_took(alone: list[Answer]) -> None:
    full, deliberative, reflex, auto, one = alone
    assert same(full, deliberative) and full.expert_use is None
    choices = (ANSWER - 1) * ROUTERS
    assert one.expert_use == ExpertUse(choices, choices)
    for made, least, most in ((reflex, 3, 5), (auto, 3, TRAINED)):
        assert made.expert_use is not None and made.expert_use.choices == choices
        assert least * choices <= made.expert_use.taken < most * choices
        assert torch.equal(made.logits[0], full.logits[0]), "the prompt has the trained number"
        assert not torch.equal(made.logits[1], full.logits[1])
    assert not torch.equal(reflex.logits[1], auto.logits[1])


@pytest.mark.parametrize("chunk", [7, 512])
def test_neighbours_of_other_modes_change_no_bit(model: K2Model, alone: list[Answer], chunk: int) -> None:
    recorder = Recorder(Engine(model, EngineConfig(max_num_batched_tokens=chunk)))
    made = []
    for number, kind in enumerate([*KINDS, *reversed(KINDS)]):
        made.append(recorder.add(str(number), PROMPT, max_tokens=ANSWER, **kind))
        recorder.step()
    recorder.run()
    for answered, expected in zip(made, [*alone, *reversed(alone)], strict=True):
        assert same(answered, expected)


def test_a_request_that_is_computed_twice_counts_once(model: K2Model, alone: list[Answer]) -> None:
    engine = Engine(model, EngineConfig(block_size=8, num_blocks=11, enable_prefix_caching=False))
    recorder = Recorder(engine)
    recorder.add("first", prompt(25, seed=4), max_tokens=40)
    recorder.step()
    made = recorder.add("r", PROMPT, max_tokens=ANSWER, mode="auto")
    recorder.run()
    assert engine.stats().preemptions > 0
    assert same(made, alone[3])


def test_the_engine_counts_every_choice(model: K2Model) -> None:
    recorder = Recorder(Engine(model, EngineConfig()))
    made = [recorder.add(str(i), PROMPT, max_tokens=ANSWER, **kind) for i, kind in enumerate(KINDS)]
    recorder.run()
    counted = recorder.engine.stats().experts_taken
    choices = (ANSWER - 1) * ROUTERS
    assert sum(counted) == len(KINDS) * choices and counted[0] == 0 and counted[1] == choices
    taken = sum(number * times for number, times in enumerate(counted))
    told = sum(one.expert_use.taken for one in made if one.expert_use is not None)
    assert taken == told + 2 * TRAINED * choices


def test_a_model_without_experts_has_one_mode() -> None:
    dense = replace(tiny_config("k2-0905"), first_k_dense_replace=3)
    model = random_model(dense)
    full, reflex = answer(model), answer(model, mode="reflex")
    assert same(full, reflex) and reflex.expert_use is None


def test_answers_whose_routing_is_recorded_count_too(model: K2Model) -> None:
    """Choices are recorded module by module, without the native step."""
    recorder = Recorder(Engine(model, EngineConfig(record_routing=True)))
    made = recorder.add("r", PROMPT, max_tokens=ANSWER, mode="reflex")
    recorder.run()
    choices = (ANSWER - 1) * ROUTERS
    assert made.expert_use is not None and made.expert_use.choices == choices
    assert 3 * choices <= made.expert_use.taken <= 5 * choices
