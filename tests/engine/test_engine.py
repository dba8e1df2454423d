"""Requests through the engine: how they end, what is refused, and what is freed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.engine.conftest import VOCAB, Recorder, prompt, random_model, tiny_config

from openk2.engine import Engine, EngineConfig
from openk2.errors import ConfigError, ContextLengthError, RequestError
from openk2.models import ForwardBatch, K2Model

Make = Callable[..., Recorder]


def test_greedy_is_the_models_argmax(model: K2Model, recorder: Make) -> None:
    """Against whole forward passes without a cache: transformers' parity test holds for those."""
    run = recorder()
    ids = prompt(20)
    answer = run.add("r", ids, max_tokens=10)
    run.run()
    assert answer.finish_reason == "length"
    whole = ids + answer.tokens
    with torch.no_grad():
        logits = model.compute_logits(model(torch.tensor(whole), ForwardBatch.packed([len(whole)])))
    assert logits[19:-1].argmax(-1).tolist() == answer.tokens
    torch.testing.assert_close(torch.stack(answer.logits), logits[19:-1], rtol=0, atol=1e-4)


def test_stop_token_ends_the_answer_and_is_its_last(recorder: Make) -> None:
    run = recorder()
    free = run.add("free", prompt(20), max_tokens=10)
    run.run()
    stop = free.tokens[6]
    length = free.tokens.index(stop) + 1
    stopped, ignoring = (
        run.add("stopped", prompt(20), stop=[stop]),
        run.add("go on", prompt(20), stop=[stop], ignore_eos=True),
    )
    run.run()
    assert (stopped.tokens, stopped.finish_reason) == (free.tokens[:length], "stop")
    assert (ignoring.tokens[:10], ignoring.finish_reason) == (free.tokens, "length")


def test_one_token(recorder: Make) -> None:
    run = recorder()
    answer = run.add("r", prompt(1), max_tokens=1)
    run.run()
    assert (len(answer.tokens), answer.finish_reason) == (1, "length")


def test_answer_ends_at_the_window(recorder: Make) -> None:
    run = recorder(max_model_len=30)
    answer = run.add("r", prompt(20), max_tokens=None)
    capped = run.add("s", prompt(29), max_tokens=50)
    run.run()
    assert (len(answer.tokens), answer.finish_reason) == (10, "length")
    assert (len(capped.tokens), capped.finish_reason) == (1, "length")


def test_refusals(model: K2Model, recorder: Make) -> None:
    run = recorder(max_model_len=30)
    with pytest.raises(ContextLengthError, match="30 tokens, but the prompt has 31"):
        run.add("r", prompt(31))
    with pytest.raises(RequestError, match="empty"):
        run.add("r", [])
    with pytest.raises(RequestError, match="outside the vocabulary"):
        run.add("r", [3, VOCAB])
    with pytest.raises(RequestError, match="topk must be at most 4"):
        run.add("r", [3], topk=5)
    assert not run.engine.has_work
    run.add("r", prompt(3))
    with pytest.raises(RequestError, match="in use"):
        run.add("r", prompt(3))
    with pytest.raises(ConfigError, match="exceeds the model's window of 512"):
        Engine(model, EngineConfig(max_model_len=513))
    with pytest.raises(ConfigError, match="num_blocks must be at least 2"):
        EngineConfig(num_blocks=1)


def test_prompt_that_the_cache_can_never_hold(recorder: Make) -> None:
    run = recorder(block_size=8, num_blocks=5)
    assert run.engine.max_model_len == 32
    with pytest.raises(ContextLengthError, match="32"):
        run.add("r", prompt(32))
    answer = run.add("r", prompt(31), max_tokens=5)
    run.run()
    assert len(answer.tokens) == 1


def test_abort_frees_at_once(recorder: Make) -> None:
    run = recorder(max_num_seqs=1, enable_prefix_caching=False)
    free = run.engine.stats().free_blocks
    run.add("running", prompt(40))
    run.add("waiting", prompt(40))
    run.step()
    assert run.engine.stats().free_blocks < free
    run.engine.abort("running")
    assert run.engine.stats().free_blocks == free
    run.engine.abort("waiting")
    run.engine.abort("never was")
    assert not run.engine.has_work
    assert run.engine.step() == []


def test_stats(recorder: Make) -> None:
    run = recorder(max_num_seqs=1)
    for name in "abc":
        run.add(name, prompt(40), max_tokens=4)
    run.step()
    stats = run.engine.stats()
    assert (stats.running, stats.waiting, stats.generated_tokens) == (1, 2, 1)
    run.run()
    stats = run.engine.stats()
    assert (stats.running, stats.waiting, stats.generated_tokens) == (0, 0, 12)
    assert (stats.prompt_tokens, stats.cached_tokens, stats.cached_blocks) == (120, 64, 2)
    assert [answer.cached_tokens for answer in run.answers.values()] == [0, 32, 32]


def test_last_prompt_token_is_always_computed(recorder: Make) -> None:
    run = recorder(block_size=16)
    for _ in range(2):
        answer = run.add("r", prompt(32), max_tokens=2)
        run.run()
    assert answer.cached_tokens == 16


def test_answers_are_not_cached(recorder: Make) -> None:
    run = recorder(block_size=4)
    first = run.add("r", prompt(8), max_tokens=20)
    run.run()
    again = run.add("s", prompt(8) + first.tokens[:18])
    run.run()
    assert again.cached_tokens == 8


def test_ends_of_the_request_and_the_fewest_tokens(recorder: Make) -> None:
    """And a batch changes nothing about them."""
    run = recorder()
    free = run.add("free", prompt(20), max_tokens=12)
    run.run()
    first, third = free.tokens[0], free.tokens[2]
    assert third not in free.tokens[:2]
    ended = run.add("ended", prompt(20), stop_token_ids=(third,), ignore_eos=True)
    alone = run.add("alone", prompt(20), stop=[first], min_tokens=6)
    run.run()
    assert (ended.tokens, ended.finish_reason) == (free.tokens[:3], "stop")
    assert first not in alone.tokens[:6] and len(alone.tokens) >= 7
    others = [run.add(str(i), prompt(30, seed=i), temperature=1.0, logit_bias=((i, 3.0),)) for i in range(3)]
    run.step()
    together = run.add("together", prompt(20), stop=[first], min_tokens=6)
    run.run()
    assert together.tokens == alone.tokens
    assert all(torch.equal(a, b) for a, b in zip(together.logits, alone.logits, strict=True))
    assert all(other.finish_reason == "length" for other in others)
    with pytest.raises(RequestError, match="97"):
        run.add("strange", prompt(5), logit_bias=((97, 1.0),))


def test_seeded_answers_do_not_depend_on_company(recorder: Make) -> None:
    run = recorder()
    alone = run.add("alone", prompt(20), temperature=1.5, seed=3)
    run.run()
    others = [run.add(str(i), prompt(30, seed=i), temperature=1.0) for i in range(3)]
    run.step()
    together = run.add("together", prompt(20), temperature=1.5, seed=3)
    different = run.add("different", prompt(20), temperature=1.5, seed=4)
    run.run()
    assert together.tokens == alone.tokens != different.tokens
    assert all(other.finish_reason == "length" for other in others)


def test_expert_budget_is_for_answers_only(recorder: Make) -> None:
    run = recorder(enable_prefix_caching=False)
    full, reduced, trained = (
        run.add("f", prompt(40)),
        run.add("r", prompt(40), topk=1),
        run.add("t", prompt(40), topk=4),
    )
    run.run()
    assert torch.equal(reduced.logits[0], full.logits[0])
    assert not torch.equal(reduced.logits[1], full.logits[1])
    assert all(torch.equal(a, b) for a, b in zip(trained.logits, full.logits, strict=True))


def test_not_finite_logits_end_one_request() -> None:
    model = random_model(tiny_config("k2-0905"))
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.inf
    run = Recorder(Engine(model, EngineConfig()))
    bad, good = run.add("bad", [7, *prompt(40)]), run.add("good", [8] * 10)
    run.run()
    assert (bad.tokens, bad.finish_reason) == ([], "error")
    assert bad.error is not None and "not finite" in bad.error
    assert good.finish_reason == "length"
    # What the bad one left in its blocks reaches nobody who gets them next.
    config = EngineConfig(num_blocks=5, enable_prefix_caching=False)
    reused = Recorder(Engine(model, config))
    reused.add("bad", [7] * 60)
    reused.run()
    again = reused.add("good", [8] * 10)
    reused.run()
    assert again.tokens == good.tokens


def test_many_requests_in_few_blocks(recorder: Make) -> None:
    """Everything gets done, in order of arrival where it matters, and every block comes back."""
    run = recorder(block_size=4, num_blocks=24, max_num_batched_tokens=16, max_num_seqs=6)
    expected = recorder()
    for i in range(14):
        for each in (run, expected):
            each.add(str(i), prompt(3 + 5 * i, seed=i % 5), max_tokens=5 + i % 7, temperature=i % 2, seed=i)
    run.run()
    expected.run()
    assert run.engine.stats().preemptions > 0
    assert {k: a.tokens for k, a in run.answers.items()} == {k: a.tokens for k, a in expected.answers.items()}
    assert run.engine.stats().free_blocks == 23


class Script:
    """A grammar that dictates the answer; '?' leaves a choice of two. Forced tokens only if `ahead`."""

    def __init__(self, script: list[int | str], ahead: bool) -> None:
        self.script, self.ahead, self.accepted = script, ahead, list[int]()

    @property
    def is_finished(self) -> bool:
        return len(self.accepted) >= len(self.script)

    def fill_mask(self, words: np.ndarray) -> bool:
        if self.is_finished:
            return False
        entry = self.script[len(self.accepted)]
        for token in (40, 41) if isinstance(entry, str) else (entry,):
            words[token // 32] |= 1 << token % 32
        return True

    def accept(self, token_id: int) -> None:
        if not self.is_finished:
            entry = self.script[len(self.accepted)]
            assert token_id in ((40, 41) if isinstance(entry, str) else (entry,))
        self.accepted.append(token_id)

    def closing_tokens(self, token_id: int, room: int) -> list[int]:
        return []

    def forced_tokens(self) -> list[int]:
        forced: list[int] = []
        for entry in self.script[len(self.accepted) :] if self.ahead else []:
            if isinstance(entry, str):
                break
            forced.append(entry)
        return forced[:3]  # the rest with the next question, as a grammar may


def test_a_deep_prompt_takes_longer_chunks_while_no_answer_waits(recorder: Make) -> None:
    run = recorder(enable_prefix_caching=False, max_num_batched_tokens=8)
    sizes: list[list[int]] = []
    inner = run.engine.runner.run

    def noting(chunks):  # type: ignore[no-untyped-def]
        sizes.append([chunk.num_tokens for chunk in chunks])
        return inner(chunks)

    run.engine.runner.run = noting  # type: ignore[method-assign]
    run.add("alone", prompt(100), max_tokens=1)
    run.run()
    assert sizes == [[8], [8], [16], [32], [32], [4]]
    sizes.clear()
    run.add("answers", prompt(8, seed=1), max_tokens=30)
    run.step()
    run.add("waits", prompt(100), max_tokens=1)
    run.run()
    assert all(sum(step) <= 8 for step in sizes)


@pytest.mark.parametrize("opening", [["?"], [5, 6, 7, 8, 9], []], ids=["choice", "forced", "none"])
@pytest.mark.parametrize(
    "end", [{}, {"stop": [13]}, {"max_tokens": 8}, {"topk": 2}, {"temperature": 1.0, "seed": 5}], ids=str
)
def test_forced_tokens_are_as_if_sampled(recorder: Make, opening: list[int | str], end: dict[str, object]) -> None:
    script = [*opening, "?", 11, 12, 13, 14, "?", 15, "?", *range(16, 31), "?"]
    results = []
    for ahead in (True, False):
        run = recorder(enable_prefix_caching=False, max_num_batched_tokens=9)
        constraint = Script(script, ahead)
        answer = run.add("r", prompt(23), constraint=constraint, **{"max_tokens": 40, **end})
        run.run()
        assert constraint.accepted == answer.tokens
        results.append(answer)
    chunked, single = results
    assert chunked.tokens == single.tokens
    assert chunked.finish_reason == single.finish_reason
    assert len(chunked.logits) < len(single.logits)
    if not opening or isinstance(opening[0], str):
        assert torch.equal(chunked.logits[0], single.logits[0])
    assert torch.equal(chunked.logits[-1], single.logits[-1]) or end.keys() & {"stop", "max_tokens"}


def test_closing_tokens_end_the_answer_in_the_sampled_ones_place(recorder: Make) -> None:
    """As the limit's doing, also where they leave some of it."""

    class Closing(Script):
        def closing_tokens(self, token_id: int, room: int) -> list[int]:
            assert room == 8 - len(self.accepted)
            return [] if room > 4 else [40, 11, 12]

    run = recorder()
    constraint = Closing(["?", 5, 6, "?", "?", 11, 12, 13], True)
    answer = run.add("r", prompt(9), constraint=constraint, max_tokens=8, stop=[12])
    run.run()
    assert answer.tokens[1:3] + answer.tokens[4:] == [5, 6, 40, 11, 12]
    assert constraint.accepted == answer.tokens
    assert answer.finish_reason == "length"


def test_grammar_fault_ends_its_own_request(recorder: Make) -> None:
    class Refusing(Script):
        def accept(self, token_id: int) -> None:
            raise RuntimeError("cannot go on")

    run = recorder()
    bad, good = run.add("bad", prompt(9), constraint=Refusing(["?"], True)), run.add("good", prompt(9))
    run.run()
    assert bad.finish_reason == "error"
    assert bad.error is not None and "cannot go on" in bad.error
    assert good.finish_reason == "length"


def test_window_of_the_config_is_the_default(model: K2Model) -> None:
    assert Engine(model).max_model_len == 512
    small = random_model(replace(tiny_config("k2-0905"), max_position_embeddings=64))
    assert Engine(small).max_model_len == 64
