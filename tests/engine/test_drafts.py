"""Drafts, right or wrong, change how many steps an answer takes; no token, no logit bit, nothing that is told."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tests.engine.conftest import VOCAB, prompt, random_model, tiny_config
from torch import Tensor

from openk2.checkpoint import Quantization, load_model, save_model
from openk2.config import SamplingParams
from openk2.engine import Engine, EngineConfig, EngineRequest
from openk2.engine.draft_costs import LONGEST_MATCH, PROBE_EVERY, Chances, DraftCosts
from openk2.engine.drafts import MOST_DRAFT_TOKENS, Draft, PromptLookup
from openk2.engine.request import RequestState, StepOutput
from openk2.errors import ConfigError
from openk2.models import K2Model
from openk2.ops import cpu

FORCED = {7: [50, 51], 20: [21, 22, 23], 33: [60]}
"""The test grammar's: after a token, those that must come."""


class Grammar:
    """Allows a third of the vocabulary, by the last token; forces what FORCED says."""

    def __init__(self) -> None:
        self._last = 0
        self._forced: list[int] = []

    @property
    def is_finished(self) -> bool:
        return False

    def fill_mask(self, words: Any) -> bool:
        for token in range(VOCAB):
            if token % 3 == self._last % 3 or token in FORCED:
                words[token // 32] |= torch.tensor(1 << token % 32).to(torch.int32).item()
        return True

    def accept(self, token_id: int) -> None:
        if self._forced:
            assert token_id == self._forced.pop(0)
        else:
            self._forced = list(FORCED.get(token_id, ()))
        self._last = token_id

    def closing_tokens(self, token_id: int, room: int) -> list[int]:
        return [1, 2] if room == 2 else []

    def forced_tokens(self) -> list[int]:
        return list(self._forced)


KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "random": {"temperature": 0.8, "seed": 5, "top_k": 20},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "logit_bias": ((3, 1.5),)},
    "told": {"logprobs": 3, "temperature": 0.5, "seed": 1},
    "stopped": {"stop_token_ids": tuple(range(0, VOCAB, 3)), "min_tokens": 9},
    "few experts": {"topk": 1},
    "auto": {"mode": "auto", "temperature": 1.0, "seed": 2},
    "grammar": {"grammar": True, "logprobs": 1},
    "random grammar": {"grammar": True, "temperature": 0.9, "seed": 3, "mode": "reflex", "max_tokens": 14},
    "one token": {"max_tokens": 1},
    "two tokens": {"max_tokens": 2},
}


@dataclass
class Run:
    outputs: dict[str, list[StepOutput]] = field(default_factory=dict)
    logits: dict[str, list[Tensor]] = field(default_factory=dict)
    """Of each request, the rows that it sampled from, before masks."""
    steps: int = 0
    experts_taken: tuple[int, ...] = ()


def run(engine: Engine, kinds: Sequence[str], *, late: Sequence[str] = ()) -> Run:
    """All of `kinds` together; those of `late` join after some steps."""
    made, rows = Run(), {}
    compute = engine.runner.run

    def recording(chunks):  # type: ignore[no-untyped-def]
        logits = compute(chunks)
        counts = [1 + len(chunk.drafts) for chunk in chunks if chunk.samples]
        names = [chunk.request.request_id for chunk in chunks if chunk.samples]
        rows.update(zip(names, logits.clone().split(counts), strict=True))
        return logits

    engine.runner.run = recording  # type: ignore[method-assign]
    for wave in (kinds, late):
        for kind in wave:
            sampling: dict[str, Any] = {"temperature": 0.0, "max_tokens": 20, **KINDS[kind]}
            grammar = Grammar() if sampling.pop("grammar", False) else None
            place = list(KINDS).index(kind)
            ids = prompt(9 + 3 * place, seed=8 + place)
            engine.add_request(EngineRequest(kind, ids, SamplingParams(**sampling), constraint=grammar))
        while engine.has_work and (wave is late or made.steps < 4):
            row: dict[str, int] = {}
            for output in engine.step():
                name = output.request_id
                made.outputs.setdefault(name, []).append(output)
                at = row.get(name, 0)
                made.logits.setdefault(name, []).append(rows[name][at])
                row[name] = at + len(output.token_ids)
            made.steps += 1
    engine.runner.run = compute  # type: ignore[method-assign]
    made.experts_taken = engine.stats().experts_taken
    return made


def assert_same(made: Run, expected: Run, names: Sequence[str]) -> None:
    for name in names:
        assert made.outputs[name] == expected.outputs[name]
        assert all(torch.equal(a, b) for a, b in zip(made.logits[name], expected.logits[name], strict=True))


class Oracle:
    """In place of the lookup: what will come, now and then with a mistake; of any length that is allowed."""

    def __init__(self, answers: dict[str, list[int]], seed: int) -> None:
        self._answers, self._random = answers, random.Random(seed)

    def guess(self, request: RequestState, count: int) -> Draft:
        tokens = self._answers[request.request_id][request.num_answer_tokens :][: max(0, count)]
        tokens += [self._random.randrange(VOCAB) for _ in range(count - len(tokens))]
        if tokens and self._random.random() < 0.4:
            tokens[self._random.randrange(len(tokens))] = self._random.randrange(VOCAB)
        return Draft(tuple(tokens), 1)

    def lengths(self, rows: int, guesses: Sequence[Chances], room: int) -> list[int]:
        chosen = []
        for guess in guesses:
            chosen.append(self._random.randint(0, min(guess.tokens, room)))
            room -= chosen[-1]
        return chosen


def drafting(model: K2Model, plain: Run, seed: int, most: int = 6, **config: Any) -> Engine:
    engine = Engine(model, EngineConfig(num_speculative_tokens=most, **config))
    assert engine.drafter is not None
    answers = {name: [token for o in outputs for token in o.token_ids] for name, outputs in plain.outputs.items()}
    oracle, drafter = Oracle(answers, seed), engine.drafter
    drafter.costs.lengths = oracle.lengths  # type: ignore[method-assign]
    drafter._guess = lambda chunk: oracle.guess(  # type: ignore[method-assign]
        chunk.request, min(most, chunk.request.max_total_tokens - chunk.end - 1)
    )
    return engine


@pytest.fixture(scope="module", params=["float32", "bfloat16", "int8", "bf16"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[K2Model]:
    """By modules in a dtype, or packed for the native call."""
    if request.param in ("float32", "bfloat16"):
        yield random_model(tiny_config("k2-0905"), dtype=getattr(torch, request.param))
        return
    if not cpu.available():
        pytest.skip("the extension is not built")
    made = random_model(tiny_config("k2-0905"), dtype=torch.bfloat16)
    folder = save_model(made, tmp_path_factory.mktemp("m") / "model")
    yield load_model(folder, quantization=Quantization.parse(request.param))


@pytest.fixture(scope="module")
def plain(model: K2Model) -> Run:
    """Each kind alone, without drafts."""
    alone = Run()
    for kind in KINDS:
        made = run(Engine(model, EngineConfig()), [kind])
        alone.outputs |= made.outputs
        alone.logits |= made.logits
        alone.steps += made.steps
    assert {kind: alone.outputs[kind][-1].finish_reason for kind in ("greedy", "stopped")} == {
        "greedy": "length",
        "stopped": "stop",
    }
    assert any(len(output.token_ids) > 1 for output in alone.outputs["grammar"]), "nothing was forced"
    return alone


@pytest.mark.parametrize("seed", range(2))
def test_alone(model: K2Model, plain: Run, seed: int) -> None:
    steps = 0
    for kind in KINDS:
        engine = drafting(model, plain, seed)
        made = run(engine, [kind])
        assert_same(made, plain, [kind])
        steps += made.steps
        stats = engine.stats()
        assert 0 <= stats.accepted_tokens <= stats.draft_tokens
        assert engine.blocks.num_available == engine.blocks.num_blocks - 1
    assert steps < plain.steps


@pytest.mark.parametrize("config", [{}, {"max_num_batched_tokens": 16}, {"num_blocks": 19, "block_size": 8}])
def test_together(model: K2Model, plain: Run, config: dict[str, int]) -> None:
    """Prompts beside answers, drafts beside no drafts; too few tokens a step and too few blocks for all."""
    kinds = list(KINDS)
    made = run(drafting(model, plain, 7, max_model_len=64, **config), kinds[:6], late=kinds[6:])
    assert_same(made, plain, kinds)


def test_experts_are_counted_as_without(model: K2Model, plain: Run) -> None:
    kinds = ["greedy", "few experts", "auto", "random grammar"]
    expected = run(Engine(model, EngineConfig()), kinds)
    assert run(drafting(model, plain, 3), kinds).experts_taken == expected.experts_taken


def test_an_abort_between_steps_leaves_nothing(model: K2Model, plain: Run) -> None:
    engine = drafting(model, plain, 1)
    engine.add_request(EngineRequest("greedy", prompt(9, seed=8), SamplingParams(temperature=0.0, max_tokens=20)))
    for _ in range(3):
        engine.step()
    engine.abort("greedy")
    assert not engine.has_work and engine.blocks.num_available == engine.blocks.num_blocks - 1
    assert not engine.drafter._lookups  # type: ignore[union-attr]


def test_lookup_end_to_end() -> None:
    """No oracle: a text that repeats itself is guessed, and the answer is that without drafts."""
    model = random_model(tiny_config("k2-0905"))
    outputs = []
    for most in (0, 4):
        engine = Engine(model, EngineConfig(num_speculative_tokens=most))
        if engine.drafter is not None:
            engine.drafter.costs.lengths = lambda rows, guesses, room: [  # type: ignore[method-assign]
                guess.tokens for guess in guesses
            ]
        sampling = SamplingParams(temperature=0.0, max_tokens=60, repetition_penalty=0.2)
        engine.add_request(EngineRequest("r", prompt(30, seed=2) * 2, sampling))
        outputs.append([])
        while engine.has_work:
            outputs[-1] += engine.step()
    assert outputs[0] == outputs[1]
    stats = engine.stats()
    assert 0 < stats.accepted_tokens <= stats.draft_tokens and stats.drafts


@pytest.mark.parametrize("count", [-1, MOST_DRAFT_TOKENS + 1])
def test_bad_lengths_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match="num_speculative_tokens must be between 0 and 32"):
        EngineConfig(num_speculative_tokens=count)


def test_lookup_takes_the_longest_match_then_the_latest() -> None:
    ids = [1, 2, 3, 4, 9, 2, 3, 5, 9, 2, 3, 6, 8, 1, 2, 3]
    assert PromptLookup().draft(ids, 2) == Draft((4, 9), 3)
    assert PromptLookup().draft(ids[1:], 2) == Draft((6, 8), 2)
    assert PromptLookup().draft([5, 6, 5, 6, 5], 5) == Draft((6, 5, 6, 5, 6), 3)
    assert PromptLookup().draft([4, 4], 3) == Draft((4, 4, 4), 1)
    for nothing in (PromptLookup().draft([1, 2, 3], 4), PromptLookup().draft([7], 4), PromptLookup().draft([7, 7], 0)):
        assert nothing == Draft()


def test_lookup_goes_on_with_a_growing_text() -> None:
    wheel = random.Random(3)
    lookup, ids, kept = PromptLookup(), [wheel.randrange(5) for _ in range(400)], 0
    ids += [*ids[50:90], 9, *ids[60:80]]
    end = 1
    while end < len(ids):
        made, fresh = lookup.draft(ids[:end], 4), PromptLookup().draft(ids[:end], 4)
        assert made.match == fresh.match
        if made.match < LONGEST_MATCH:
            assert made == fresh
        kept += made.match == LONGEST_MATCH and list(made.tokens) == ids[end : end + 4]
        end += wheel.randrange(1, 4)
    assert kept > 8


def costs(*, slope: float, right: float, rest: float = 0.0) -> DraftCosts:
    """Steps of 1 ms and `slope` for each further row, guesses right at the rate `right`."""
    made = DraftCosts()
    for _ in range(40):
        for rows in (1, 2, 5, 17):
            made.saw_step(rows, 0.001 * (1 + slope * (rows - 1)), 1, rest)
    wheel = random.Random(0)
    for _ in range(2000):
        made.saw_guess(4, [wheel.random() < right])
        made.saw_guess(LONGEST_MATCH, [wheel.random() < right])
    return made


def test_drafts_go_where_they_pay() -> None:
    guess = Chances(match=4, tokens=8, sampled_share=1.0)
    assert costs(slope=0.0, right=0.9).lengths(1, [guess], 32) == [8]
    short = costs(slope=0.4, right=0.7).lengths(1, [guess], 32)[0]
    assert 0 < short < 8, "a wrong token's row costs as much as a right one's"
    assert costs(slope=0.0, right=0.9).lengths(1, [guess], 3) == [3]
    assert costs(slope=0.0, right=0.9).lengths(0, [], 32) == []
    assert DraftCosts().lengths(1, [guess], 32) == [0], "nothing is known yet"
    good, bad = Chances(8, 8, 1.0), Chances(1, 8, 1.0)
    model = costs(slope=0.2, right=0.95)
    for _ in range(100):
        model.saw_guess(1, [False])
    lengths = model.lengths(2, [bad, good], 32)
    assert lengths[0] == 0 < lengths[1]


def test_drafts_are_off_below_the_least_gain() -> None:
    """1.3 tokens in the time of 1.35 steps are a loss; in that of 1.05 steps a gain of 1.24."""
    guess = Chances(match=4, tokens=1, sampled_share=1.0)
    assert costs(slope=0.05, right=0.3).lengths(1, [guess], 32) == [1]
    model = costs(slope=0.35, right=0.3)
    lengths = [model.lengths(1, [guess], 32)[0] for _ in range(2 * PROBE_EVERY)]
    assert sum(lengths) == 2, "only the probes"
    forced = Chances(match=4, tokens=8, sampled_share=1.0)
    assert costs(slope=1.0, right=1.0, rest=0.0).lengths(1, [forced], 32) == [0], "rows as dear as steps"


def test_forced_tokens_save_no_steps() -> None:
    few, all_sampled = Chances(4, 6, 0.2), Chances(4, 6, 1.0)
    model = costs(slope=0.3, right=0.8)
    assert model.lengths(1, [few], 32)[0] < model.lengths(1, [all_sampled], 32)[0]


def test_times_between_those_measured_and_after_a_slow_first_one() -> None:
    model = DraftCosts()
    model.saw_step(1, 5.0, 1, 0.0)
    model.saw_step(1, 0.5, 1, 0.0)
    assert model.seconds(1) == 0.5 == model.seconds(9), "warm at once; nothing else known"
    model.saw_step(5, 1.5, 1, 0.0)
    assert model.seconds(3) == pytest.approx(1.0)
    assert model.seconds(9) == pytest.approx(2.5)
    model.saw_step(1, 100.0, 1, 0.0)
    assert model.seconds(1) <= 0.56, "one slow step moves little"
