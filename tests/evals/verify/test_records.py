"""Request lines and records: the vendor's keys, resuming, and lines that are none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tests.evals.verify.conftest import FaithfulModel
from tests.server.conftest import running
from typer.testing import CliRunner

from openk2.cli.main import app
from openk2.errors import DataError
from openk2.evals.verify import Overrides, generate_lines, read_lines, read_records
from openk2.evals.verify.requests import fingerprint, prepare

VENDOR_RECORD = set(
    "data_index request extra_body response status finish_reason tool_calls_valid last_run_at duration_ms hash".split()
)
VENDOR_SUMMARY = set(
    "model success_count failure_count finish_stop finish_tool_calls finish_others finish_others_detail "
    "schema_validation_error_count successful_tool_call_count usage eval_started_at eval_finished_at "
    "eval_duration_ms".split()
)


def test_a_run_keeps_the_vendors_keys_and_resumes(tmp_path: Path) -> None:
    lines, output = tmp_path / "lines.jsonl", tmp_path / "records.jsonl"
    assert CliRunner().invoke(app, ["verify", "--write-requests", str(lines), "--n", "6"]).exit_code == 0
    with running(FaithfulModel()) as server:
        options = ["verify", server.url, "--requests", str(lines), "--schemas", "0", "--output", str(output), "--json"]
        first = CliRunner().invoke(app, options)
        assert first.exit_code == 0, first.output
        assert set(json.loads(first.stdout)["summary"]) == VENDOR_SUMMARY
        entries = [json.loads(line) for line in output.read_text().splitlines()]
        assert all(set(entry) >= VENDOR_RECORD for entry in entries)
        assert {entry["data_index"] for entry in entries} == set(range(1, 7))
        # Two are lost: one failed, and one was cut off while it was written.
        entries[1] |= {"status": "failed", "response": {"error": "gone"}, "finish_reason": None}
        output.write_text("".join(json.dumps(entry) + "\n" for entry in entries)[:-40])
        second = CliRunner().invoke(app, options)
        assert second.exit_code == 0, second.output
        assert len(output.read_text().splitlines()) == 5 + 2
        records = read_records(output)
        assert [record.data_index for record in records] == list(range(1, 7))
        assert {record.status for record in records} == {"success"}
        with pytest.raises(DataError, match="holds another run"):
            CliRunner().invoke(app, [*options, "--temperature", "1"], catch_exceptions=False)


def test_preparation_is_the_vendors() -> None:
    line = {"model": "other", "messages": [{"role": "_input", "content": "Hi"}], "stream": True, "temperature": 0.3}
    body = prepare(line, Overrides("k2", max_tokens=9))
    assert body == {
        "model": "k2",
        "messages": [{"role": "system", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.3,
        "max_tokens": 9,
    }
    assert line["messages"][0]["role"] == "_input"
    assert fingerprint({"b": 1, "a": "é"}) == hashlib.md5('{"a": "é", "b": 1}'.encode()).hexdigest()


@pytest.mark.parametrize("text", ["", "not json\n", "[]\n", '{"messages": "Hi"}\n', '{"messages": [1]}\n'])
def test_lines_that_are_no_requests_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"lines\.jsonl"):
        read_lines(tmp_path / "lines.jsonl")


def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("dear diary")
    with pytest.raises(DataError, match="not a record"):
        read_records(notes)
    assert notes.read_text() == "dear diary"


def test_the_generator_is_seeded_and_varied() -> None:
    lines = generate_lines(300, 7)
    assert lines[:40] == generate_lines(40, 7)
    assert lines[:40] != generate_lines(40, 8)
    tools = [len(line["tools"]) for line in lines]
    turns = [sum(message["role"] == "tool" for message in line["messages"]) for line in lines]
    assert min(tools) == 1 and max(tools) > 24
    assert min(turns) == 0 and max(turns) > 15
    ids = [call["id"] for line in lines for message in line["messages"] for call in message.get("tool_calls") or ()]
    for prefix in ("functions.", "call_", "toolu_", "functions_"):
        assert any(id.startswith(prefix) for id in ids)
    text = json.dumps(lines, ensure_ascii=False)
    assert "请你" in text and "$ref" in text and "anyOf" in text
    assert {bool(line.get("stream")) for line in lines} == {True, False}
    longest = max(len(json.dumps(line, ensure_ascii=False)) for line in generate_lines(300, 7, window=4096))
    assert longest < 3584 * 1.5
