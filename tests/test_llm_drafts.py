"""Tool turns of k2-nano with drafts: the answers, their streams and their usage are those without."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from typer import Typer
from typer.testing import CliRunner

from openk2.chat.events import ChatEvent
from openk2.chat.provider import ChatRequest
from openk2.cli.serve import command
from openk2.config import SamplingParams
from openk2.engine.draft_costs import Chances, DraftCosts
from openk2.errors import ConfigError
from openk2.evals import generated_cases
from openk2.llm import LLM
from openk2.training.data import held_cases

SAMPLINGS = [
    SamplingParams(temperature=0.0, max_tokens=160),
    SamplingParams(temperature=0.8, seed=4, max_tokens=160, logprobs=2, mode="auto"),
    SamplingParams(temperature=0.0, max_tokens=40, repetition_penalty=1.1),  # calls closed before they are whole
]


@pytest.fixture(scope="module", params=["packed", "int8"])
def llms(request: pytest.FixtureRequest) -> Iterator[list[LLM]]:
    quantization = None if request.param == "packed" else request.param
    made = [LLM("k2-nano", quantization=quantization, num_speculative_tokens=count) for count in (0, 6)]
    yield made
    for llm in made:
        llm.close()


async def streams(llm: LLM, requests: Sequence[ChatRequest]) -> list[list[ChatEvent]]:
    async def one(request: ChatRequest) -> list[ChatEvent]:
        return [event async for event in llm.stream(request)]

    return await asyncio.gather(*map(one, requests))


def test_answers_streams_and_usage_are_the_same(llms: list[LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    def all_of_them(self: DraftCosts, rows: int, guesses: Sequence[Chances], room: int) -> list[int]:
        return [min(guess.tokens, room // len(guesses)) for guess in guesses]

    monkeypatch.setattr(DraftCosts, "lengths", all_of_them)
    cases = [case for case in generated_cases(held_cases, 12, 5) if case.calls][:4]
    requests = [
        ChatRequest(tuple(case.messages), tuple(case.tools), sampling=sampling)
        for sampling in SAMPLINGS
        for case in cases
    ]
    plain, drafted = (asyncio.run(streams(llm, requests)) for llm in llms)
    for a, b in zip(plain, drafted, strict=True):
        # Requests that run together find more or less of each other's prompts in the prefix cache.
        (*events, end), (*others, other_end) = a, b
        assert events == others
        assert replace(end, usage=replace(end.usage, cached_tokens=0)) == replace(  # type: ignore[type-var]
            other_end, usage=replace(other_end.usage, cached_tokens=0)
        )
    figures = {figure.name: figure.value for figure in llms[1].figures}
    accepted, tokens = (figures[f"vllm:spec_decode_num_{name}_tokens"] for name in ("accepted", "draft"))
    assert 0 < accepted < tokens
    assert not any("spec_decode" in figure.name for figure in llms[0].figures)


def test_bad_lengths_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="between 0 and 32, not 33"):
        LLM("k2-nano", num_speculative_tokens=33)
    app = Typer()
    app.command()(command)
    done = CliRunner().invoke(app, ["--upstream", "http://127.0.0.1:9/v1", "--num-speculative-tokens", "4"])
    assert isinstance(done.exception, ConfigError) and "--num-speculative-tokens" in str(done.exception)
