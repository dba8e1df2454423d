"""The simulated front: exact where the run is, near what was measured where chance decides; what must always hold."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from statistics import mean

import pytest
from dev.write_scale import BENCHMARK, BENCHMARK_SERVICE, GATEWAY_RANGE_S, MEASURED_FILE, benchmark_runs
from hypothesis import given, settings
from hypothesis import strategies as st

from openk2.client.gateway.routing import choose
from openk2.errors import ConfigError
from openk2.planner.scale import Fleet, Service, Workload, simulate

MEASURED = json.loads(MEASURED_FILE.read_text(encoding="utf-8"))


def test_one_upstream_is_the_measured_run_to_the_token() -> None:
    (run,) = benchmark_runs(1)
    for key in ("answered", "prompt_tokens", "cached_tokens", "lost", "broken"):
        assert getattr(run, key) == MEASURED["one"][key]


def test_a_cache_of_words_finds_the_same() -> None:
    """The benchmark's own bookkeeping, word by word, beside the simulation's lengths."""
    blocks: set[int] = set()
    prompt = cached = 0
    for number in range(BENCHMARK.sessions):
        draw, words = random.Random(number), [f"rule{n}" for n in range(BENCHMARK.system_tokens)]
        for turn in range(BENCHMARK.turns):
            words += [f"s{number}t{turn}w{n}" for n in range(draw.randint(*BENCHMARK.user_tokens))]
            beginnings = [hash(tuple(words[:end])) for end in range(16, len(words) + 1, 16)]
            prompt += len(words)
            cached += 16 * sum(one in blocks for one in beginnings)
            blocks.update(beginnings)
            words += ["answer"] * BENCHMARK.answer_tokens
    (run,) = benchmark_runs(1)
    assert (run.prompt_tokens, run.cached_tokens) == (prompt, cached)


@pytest.mark.parametrize("gateway_s", GATEWAY_RANGE_S)
def test_four_upstreams_find_what_was_measured(gateway_s: float) -> None:
    runs = benchmark_runs(4, gateway_s=gateway_s)
    measured = MEASURED["several"]
    assert {run.prompt_tokens for run in runs} == {measured["prompt_tokens"]}
    assert abs(mean(run.cached_share for run in runs) - measured["cached_tokens"] / measured["prompt_tokens"]) < 0.015


def test_a_killed_upstream_loses_nothing_that_had_not_begun() -> None:
    runs = benchmark_runs(4, loss_after=0.4)
    measured = MEASURED["killed"]
    share = measured["cached_tokens"] / measured["prompt_tokens"]
    for run in runs:
        assert run.lost == measured["lost"] == 0
        assert run.broken <= 4  # the measured run had none; by chance, those that it streamed at that moment
        assert run.answered >= measured["answered"] - BENCHMARK.turns * run.broken
        assert abs(run.cached_share - share) < 0.035


def test_all_engines_dead_is_a_loss() -> None:
    fleet = Fleet(engines=("only",), service=BENCHMARK_SERVICE, loss_after=0.5)
    run = simulate(replace(BENCHMARK, sessions=20), fleet, choose)
    assert run.lost > 0 and run.answered < 120


def test_conversations_must_come() -> None:
    with pytest.raises(ConfigError, match="conversations must come"):
        simulate(replace(BENCHMARK, at_once=None), Fleet(engines=("only",), service=BENCHMARK_SERVICE), choose)


def first(loads: Mapping[str, int], key: bytes) -> str:
    return next(iter(loads))


def test_a_full_engine_makes_wait() -> None:
    one = Workload(sessions=2, turns=1, user_tokens=(16, 16), answer_tokens=1, system_tokens=0, at_once=2)
    service = Service(begin_s=1.0, answer_s=9.0, slots=1, jitter=0.0)
    run = simulate(one, Fleet(engines=("a",), service=service), first)
    assert run.first_token_s == [1.0, 11.0] and run.ended_s == 20.0
    run = simulate(one, Fleet(engines=("a",), service=replace(service, slots=None)), first)
    assert run.first_token_s == [1.0, 1.0] and run.ended_s == 10.0


def test_what_is_not_in_the_cache_takes_time() -> None:
    two = Workload(sessions=1, turns=2, user_tokens=(32, 32), answer_tokens=16, system_tokens=0, at_once=1)
    service = Service(begin_s=0.0, answer_s=0.0, per_uncached_token_s=1.0, jitter=0.0)
    run = simulate(two, Fleet(engines=("a",), service=service), first)
    assert run.first_token_s == [32.0, 80.0 - 32.0]
    run = simulate(two, Fleet(engines=("a",), service=service, cache_blocks=0), first)
    assert run.first_token_s == [32.0, 80.0] and run.cached_tokens == 0


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 3), st.sampled_from([None, 0.0, 0.5]), st.integers(0, 99))
def test_every_turn_ends_somehow(engines: int, gateways: int, slots: int, loss_after: float | None, seed: int) -> None:
    workload = Workload(
        sessions=15, turns=3, user_tokens=(5, 40), answer_tokens=10, system_tokens=40, arrivals_per_s=5, think_s=1
    )
    fleet = Fleet(
        engines=tuple(map(str, range(engines))),
        service=Service(begin_s=0.1, answer_s=1.0, slots=slots or None),
        gateways=gateways,
        gateway_s=0.01,
        cache_blocks=30,
        loss_after=loss_after,
        back_after_s=5.0,
    )
    run = simulate(workload, fleet, choose, seed=seed)
    assert run.answered + run.broken + run.lost >= workload.sessions
    assert run.answered <= workload.sessions * workload.turns
    if not run.broken + run.lost:
        assert run.answered == workload.sessions * workload.turns
    assert sum(run.answered_by.values()) == run.answered == len(run.first_token_s)
    assert 0 <= run.cached_tokens <= run.prompt_tokens
    assert simulate(workload, fleet, choose, seed=seed) == run
