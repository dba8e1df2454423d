from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from openk2.chat.messages import Message
from openk2.chat.provider import ChatRequest
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.errors import DataError, OverloadedError, ProviderError, RequestError
from openk2.evals import Case, RecordFile, evaluate, runner, written_cases

CASES = [*written_cases("handwritten"), *written_cases("builtin")]
RUN = {"model": "scripted", "seed": 0}


def right_answer(case: Case) -> ScriptedTurn:
    if case.calls:
        return ScriptedTurn(calls=[ScriptedCall(call.name, call.arguments) for call in case.calls])
    return ScriptedTurn(f"{' '.join(case.contains)} Which one?")


def oracle(cases: list[Case]) -> ScriptedProvider:
    """Knows every right answer."""

    def turn(request: ChatRequest) -> ScriptedTurn:
        return right_answer(next(c for c in cases if c.messages == request.messages and c.tools == request.tools))

    return ScriptedProvider(turn)


def test_right_answers_get_every_figure() -> None:
    report = evaluate(oracle(CASES), CASES, concurrency=4)
    assert report.runs == (("builtin", True), ("handwritten", True))
    for set_name, grammar in report.runs:
        shares = report.figures(set_name, grammar=grammar)
        assert {name: share.value for name, share in shares.items()} == {
            name: float(name not in ("unparsed", "failed")) for name in shares
        }
        assert len(shares) == 13


def test_a_model_that_only_talks() -> None:
    provider = ScriptedProvider(lambda request: "Sorry, no.")
    shares = evaluate(provider, written_cases("handwritten")).figures("handwritten", grammar=True)
    assert shares["tool choice"].right == shares["parallel"].right == shares["ask-back"].right == 0
    assert shares["no-call recall"].value == 1.0
    assert shares["no-call precision"].n == 258
    assert shares["no-call precision"].right == 67


def test_grammar_settings_and_greedy_sampling_reach_the_provider() -> None:
    provider = oracle(CASES)
    report = evaluate(provider, CASES[:3], grammar=(True, False))
    assert [request.grammar for request in provider.requests] == [True] * 3 + [False] * 3
    assert all(request.sampling.temperature == 0.0 for request in provider.requests)
    assert report.runs == (("handwritten", True), ("handwritten", False))


def test_concurrency_is_bounded_and_used() -> None:
    running = peak = 0

    async def turn(request: ChatRequest) -> str:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running -= 1
        return "no"

    evaluate(ScriptedProvider(turn), CASES[:20], concurrency=3)
    assert peak == 3


def test_refused_requests_count_as_failed() -> None:
    report = evaluate(ScriptedProvider(lambda request: RequestError("too long")), CASES[:4])
    shares = report.figures("handwritten", grammar=True)
    assert (shares["failed"].right, shares["whole call"].right, shares["whole call"].n) == (4, 0, 4)


def test_an_overloaded_provider_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "OVERLOAD_WAIT_S", 0.0)
    busy = OverloadedError("busy")
    report = evaluate(ScriptedProvider([busy, busy, right_answer(CASES[0])]), CASES[:1])
    assert report.figures("handwritten", grammar=True)["whole call"].right == 1
    with pytest.raises(OverloadedError, match="busy"):
        evaluate(ScriptedProvider(lambda request: busy), CASES[:1])


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file, cases = tmp_path / "replies.jsonl", CASES[:5]
    begun = ScriptedProvider([right_answer(cases[0]), right_answer(cases[1]), ProviderError("gone")])
    with RecordFile(file, RUN) as records, pytest.raises(ProviderError, match="gone"):
        evaluate(begun, cases, concurrency=1, records=records)
    with file.open("a") as stream:
        stream.write('{"case": "handwritten/sin')  # a line cut off while it was written
    rest = oracle(cases)
    seen: list[str] = []
    with RecordFile(file, RUN) as records:
        report = evaluate(
            rest, cases, concurrency=1, records=records, on_record=lambda record: seen.append(record.case)
        )
    assert [request.messages for request in rest.requests] == [case.messages for case in cases[2:]]
    assert seen == [case.id for case in cases[2:]]
    assert report.figures("handwritten", grammar=True)["whole call"].value == 1.0
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 6
    with RecordFile(file, RUN) as records:
        again = evaluate(ScriptedProvider([]), cases, records=records)
    assert again.to_json() == report.to_json()


def test_records_of_another_question_run_or_kind_of_file_are_not_used(tmp_path: Path) -> None:
    file, case = tmp_path / "replies.jsonl", CASES[0]
    with RecordFile(file, RUN) as records:
        evaluate(oracle(CASES), [case], records=records)
    edited = Case(case.id, case.set, case.kind, case.tools, (Message("user", "changed"),), case.calls)
    with RecordFile(file, RUN) as records:
        assert records.find(case, True) is not None
        assert records.find(case, False) is None
        assert records.find(edited, True) is None
    with pytest.raises(DataError, match="another run \\(seed differ"):
        RecordFile(file, {**RUN, "seed": 1})
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes")
    with pytest.raises(DataError, match="line 1: not a record"):
        RecordFile(notes, RUN)
    assert notes.read_text() == "my notes"
    with pytest.raises(DataError, match="cannot write"):
        RecordFile(tmp_path / "none" / "replies.jsonl", RUN)


def test_the_report_for_programs_and_for_people() -> None:
    from rich.console import Console

    report = evaluate(oracle(CASES), CASES[:3], grammar=(True, False))
    data: dict[str, Any] = json.loads(json.dumps(report.to_json()))
    assert [(run["set"], run["grammar"], run["cases"]) for run in data["runs"]] == [
        ("handwritten", True, 3),
        ("handwritten", False, 3),
    ]
    whole = data["runs"][0]["figures"]["whole call"]
    assert (whole["right"], whole["n"], whole["share"]) == (3, 3, 1.0)
    assert whole["interval_95"] == pytest.approx([0.4385, 1.0], abs=1e-3)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(*report.tables())
    assert "100.0% (44%..100%) n=3" in captured.get()
    assert "grammar off" in captured.get()


def test_zero_concurrency_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        evaluate(ScriptedProvider([]), CASES[:1], concurrency=0)
