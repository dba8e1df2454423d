"""Long contexts: what is asked can be answered from the context alone, lengths are kept, every cell is scored."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openk2.chat.messages import Usage
from openk2.chat.provider import ChatRequest
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.cli import eval as verb
from openk2.cli.main import app
from openk2.errors import ConfigError
from openk2.evals import Case
from openk2.evals.context import (
    ANSWER_TOKENS,
    Context,
    Filler,
    default_lengths,
    make_contexts,
    max_answer_tokens,
    places,
    token_counter,
)
from openk2.evals.context.cases import _BADGE, LOOK_UP, USE


def words(request: ChatRequest) -> int:
    return sum(len(m.text.split()) for m in request.messages)


def looked_up(request: ChatRequest) -> dict[str, str]:
    """Person to badge, read off the calls and their results."""
    calls = {c.id: json.loads(c.arguments)["name"] for m in request.messages for c in m.tool_calls}
    return {calls[m.tool_call_id]: json.loads(m.text)["badge"] for m in request.messages if m.tool_call_id in calls}


def reader(request: ChatRequest) -> ScriptedTurn:
    """Answers as a model that reads everything."""
    asked, badges = request.messages[-1].text, looked_up(request)
    if asked.startswith("Get"):
        name = asked.removeprefix("Get the badge of ").removesuffix(".")
        assert name not in badges
        return ScriptedTurn(calls=[ScriptedCall(LOOK_UP.name, {"name": name})])
    named = [badge for name, badge in badges.items() if f"for {name}," in asked]
    begun = [badge for badge in badges.values() if f"begins with {badge.partition('-')[0]}." in asked]
    (badge,) = named + begun
    return ScriptedTurn(calls=[ScriptedCall(USE.name, {"badge": badge})])


def run(monkeypatch: pytest.MonkeyPatch, provider: ScriptedProvider, *arguments: str) -> str:
    monkeypatch.setattr(verb, "_provider", lambda model, base_url: provider)
    result = CliRunner().invoke(app, ["eval", "context", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("concurrency", [1, 3])
def test_every_length_task_and_place_has_its_cases(concurrency: int) -> None:
    depths = places(3)
    cases = list(make_contexts(Filler(words), [300, 900], depths, 4, seed=7, concurrency=concurrency))
    cells = Counter((one.task, one.length, one.depth) for one in cases)
    assert set(cells.values()) == {4} and len(cells) == 2 * (2 * 3 + 1)
    assert len({one.case.id for one in cases}) == len(cases) == 56
    for one in cases:
        asked = ChatRequest(one.case.messages, one.case.tools)
        assert words(asked) <= one.prompt_tokens <= one.length - ANSWER_TOKENS
        assert one.length - ANSWER_TOKENS - one.prompt_tokens < 20, "another record would have fitted"
        (call,) = one.case.calls
        (turn,) = reader(asked).calls
        assert turn.arguments == call.arguments, "one record is meant, and it is the one"
        if one.depth is None:
            continue
        at = list(looked_up(asked).values()).index(call.arguments["badge"])
        assert at == round(one.depth * (one.records - 1))


def test_a_text_is_a_function_of_the_seed_and_longer_ones_go_on_with_shorter_ones() -> None:
    assert Context("1-0").messages(30) == Context("1-0").messages(50)[:120]
    assert Context("1-0").messages(9) != Context("1-1").messages(9) != Context("2-0").messages(9)
    entries = Context("x").entries(3000)
    assert len({e.beginning for e in entries}) == len({e.name for e in entries}) == 3000
    assert not any(b.startswith(a) for a, b in pairwise(sorted(_BADGE)))


def test_requests_over_one_context_stand_together_for_the_cache() -> None:
    cases = list(make_contexts(Filler(words), [400], places(5), 6, seed=0, concurrency=2))
    first = [one.context.seed for one in cases[:22]]
    assert first == ["0-0", "0-1"] * 11, "two at a time, each context's eleven requests before the next contexts"


def test_contexts_are_filled_with_few_counts() -> None:
    counted: list[int] = []

    def count(request: ChatRequest) -> int:
        counted.append(len(request.messages) // 4)
        return 150 + 61 * counted[-1]

    filler = Filler(count)
    for most in (5_000, 5_000, 30_000):
        counted.clear()
        records, tokens = filler.fill(Context("c"), most)
        assert tokens <= most < tokens + 61 and records == (tokens - 150) // 61
        assert len(counted) <= 6
    assert filler.fill(Context("c"), 200) == (0, 211)


def test_an_endpoints_tokens_are_estimated_by_its_usage() -> None:
    def usage(request: ChatRequest) -> ScriptedTurn:
        chars = sum(len(m.text) for m in request.messages) + sum(
            len(c.arguments) for m in request.messages for c in m.tool_calls
        )
        return ScriptedTurn("x", usage=Usage(90 + chars // 2, 1))

    class Remote(ScriptedProvider):
        count_prompt_tokens = None  # type: ignore[assignment]

    provider = Remote(usage)
    count, exact = asyncio.run(token_counter(provider))
    assert not exact and {r.sampling.max_tokens for r in provider.requests} == {1}
    cases = list(make_contexts(Filler(count), [8_000], places(2), 2, seed=0))
    for one in cases:
        told = usage(ChatRequest(one.case.messages, one.case.tools)).usage
        assert told is not None and 0.95 < told.prompt_tokens / (8_000 - ANSWER_TOKENS) <= 1


def test_lengths_places_and_room() -> None:
    assert default_lengths(4096) == [1024, 2048, 4096]
    assert default_lengths(5000) == [1024, 2048, 4096, 5000] and default_lengths(700) == [700]
    assert places(5) == [0.0, 0.25, 0.5, 0.75, 1.0] and places(1) == [0.5]
    assert max_answer_tokens(4096, 4096, 512) == ANSWER_TOKENS
    assert max_answer_tokens(4096, 131072, 512) == 512 == max_answer_tokens(4096, None, 512)


def test_a_report_counts_each_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def near(request: ChatRequest) -> ScriptedTurn:
        """Finds only what stands in the second half, and never by its beginning."""
        turn = reader(request)
        badges = list(looked_up(request).values())
        (call,) = turn.calls
        assert isinstance(call.arguments, dict)
        if "badge" not in call.arguments:
            return turn
        far = badges.index(call.arguments["badge"]) < round((len(badges) - 1) / 2)
        return ScriptedTurn("I do not know.") if far or "begins" in request.messages[-1].text else turn

    options = ("--lengths", "300,600", "--depths", "3", "--n", "2")
    report = json.loads(run(monkeypatch, ScriptedProvider(near), *options, "--json"))
    assert (report["task"], report["seed"], report["exact_lengths"], report["window"]) == ("context", 0, True, None)
    shares = {(c["task"], c["length"], c["depth"]): (c["right"], c["n"]) for c in report["cells"]}
    assert shares == {
        (task, length, depth): (2 if task == "needle" and depth >= 0.5 else 0, 2)
        for task in ("needle", "copy")
        for length in (300, 600)
        for depth in (0.0, 0.5, 1.0)
    }
    assert [(x["task"], x["right"], x["n"]) for x in report["lengths"]] == (
        [("needle", 4, 6)] * 2 + [("copy", 0, 6)] * 2 + [("call", 2, 2)] * 2
    )
    assert all(0 < x["length"] - ANSWER_TOKENS - x["prompt_tokens"] < 20 for x in report["lengths"])


def test_table_and_resume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ("--lengths", "300", "--n", "1", "--output", str(tmp_path / "replies.jsonl"))
    first = run(monkeypatch, ScriptedProvider(reader), *options)
    assert re.search(r"300 +100 21-100", first) and max(map(len, first.splitlines())) <= 80
    assert run(monkeypatch, ScriptedProvider([]), *options) == first


def test_heat_maps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run(monkeypatch, ScriptedProvider(reader), "--lengths", "300", "--n", "1", "--plot", str(tmp_path))
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["context-copy.png", "context-copy.svg", "context-needle.png", "context-needle.svg"]


def test_lengths_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="does not tell its window: give --lengths"):
        run(monkeypatch, ScriptedProvider(reader))
    with pytest.raises(ConfigError, match="a length of 80 tokens has room for 0 records, and 5 places need one each"):
        run(monkeypatch, ScriptedProvider(reader), "--lengths", "80")
    provider = ScriptedProvider(reader)
    provider.max_model_len = 700  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="a length of 1,024 tokens is beyond the window of scripted, which is 700"):
        run(monkeypatch, provider, "--lengths", "300,1k")
    assert '"length": 700' in run(monkeypatch, provider, "--n", "1", "--json")
    assert provider.requests[-1].sampling.max_tokens == ANSWER_TOKENS


def test_a_case_is_one_of_the_common_kind() -> None:
    (one, *_) = make_contexts(Filler(words), [300], [0.5], 1, seed=0)
    assert isinstance(one.case, Case) and one.case is one.case
