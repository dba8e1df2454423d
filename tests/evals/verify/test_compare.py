"""Precision, recall and F1 against counts by hand, and the intervals against what is known of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openk2.cli.main import app
from openk2.errors import DataError
from openk2.evals.compare import compare
from openk2.evals.verify import Record


def record(index: int, calls: bool, *, valid: bool = True, name: str = "find", failed: bool = False) -> Record:
    call = {"id": f"functions.{name}:0", "type": "function", "function": {"name": name, "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]} if calls else {"content": "No."}
    reason = "tool_calls" if calls else "stop"
    return Record(
        data_index=index,
        request={"messages": [{"role": "user", "content": f"question {index}"}]},
        extra_body={},
        response={"error": "no"} if failed else {"choices": [{"message": message, "finish_reason": reason}]},
        status="failed" if failed else "success",
        finish_reason=None if failed else reason,
        tool_calls_valid=valid if calls else None,
        last_run_at="",
        duration_ms=1.0,
        hash=str(index),
    )


def runs() -> tuple[list[Record], list[Record]]:
    """60 both, 20 only the reference, 10 only the run, 10 neither."""
    reference = [record(i, calls=i < 80) for i in range(100)]
    run = [
        record(i, calls=i < 60 or 80 <= i < 90, valid=i % 2 == 0, name="find" if i < 45 else "get") for i in range(100)
    ]
    return reference, run


def test_figures_are_those_of_the_counts() -> None:
    found = compare(*runs())
    assert found.precision.value == pytest.approx(60 / 70)
    assert found.recall.value == pytest.approx(60 / 80)
    assert found.f1.value == pytest.approx(2 * 60 / (2 * 60 + 10 + 20))
    assert [one.value for one in found.schema_accuracy] == [1.0, 0.5]
    assert found.same_calls.value == 0.75 and found.same_calls.n == 60
    assert (found.lines, found.left_out) == (100, 0)


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    """The bootstrap of a share over its own lines has the standard error sqrt(p (1 - p) / n)."""
    reference = [record(i, calls=True) for i in range(400)]
    run = [record(i, calls=i < 300) for i in range(400)]
    recall = compare(reference, run).recall
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert recall.low == pytest.approx(0.75 - half, abs=0.006)
    assert recall.high == pytest.approx(0.75 + half, abs=0.006)


def test_the_same_seed_gives_the_same_interval() -> None:
    assert compare(*runs(), seed=3) == compare(*runs(), seed=3)
    assert compare(*runs(), seed=3).f1 != compare(*runs(), seed=4).f1


def test_failed_and_missing_lines_are_left_out_and_counted() -> None:
    reference = [record(1, True), record(2, True), record(3, False)]
    run = [record(1, True), record(2, True, failed=True), record(4, True)]
    found = compare(reference, run)
    assert (found.lines, found.left_out) == (1, 3)
    assert found.f1.value == 1.0


def test_no_calls_at_all_have_no_f1() -> None:
    found = compare([record(1, False)], [record(1, False)])
    assert found.f1.value is None and found.f1.shown == "-"


def test_runs_that_do_not_belong_together_are_refused() -> None:
    other = record(1, True)
    other = Record(**{**asdict(other), "request": {"messages": [{"role": "user", "content": "something else"}]}})
    with pytest.raises(DataError, match="line 1 asks different things"):
        compare([record(1, True)], [other])
    with pytest.raises(DataError, match="no request line that both answered"):
        compare([record(1, True)], [record(2, True)])


def test_the_command(tmp_path: Path) -> None:
    paths = []
    for name, records in zip(("reference", "run"), runs(), strict=True):
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(asdict(one)) + "\n" for one in records))
    result = CliRunner().invoke(app, ["compare", *map(str, paths), "--again", str(paths[0]), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["tool_call_f1"]["value"] == pytest.approx(0.8)
    assert report["reference_again"]["tool_call_f1"]["value"] == 1.0
    table = CliRunner().invoke(app, ["compare", *map(str, paths)]).stdout
    assert "80.00%" in table and "recall" in table
    paths[1].write_text("{}\n")
    with pytest.raises(DataError, match=r"run\.jsonl, line 1: not a record"):
        CliRunner().invoke(app, ["compare", *map(str, paths)], catch_exceptions=False)
