from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openk2.chat.scripted import ScriptedProvider
from openk2.cli import eval as verb
from openk2.cli.main import app
from openk2.errors import DataError, ProviderError
from openk2.evals.cases import KINDS


def run(monkeypatch: pytest.MonkeyPatch, provider: ScriptedProvider, *arguments: str) -> str:
    monkeypatch.setattr(verb, "_provider", lambda model, base_url: provider)
    result = CliRunner().invoke(app, ["eval", "toolcalls", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_json_report_of_both_grammar_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = ScriptedProvider(lambda request: "No.")
    report = json.loads(run(monkeypatch, provider, "--set", "handwritten", "--n", "10", "--grammar", "both", "--json"))
    assert report["model"] == "scripted"
    assert [(one["set"], one["grammar"], one["cases"]) for one in report["runs"]] == [
        ("handwritten", True, 10),
        ("handwritten", False, 10),
    ]
    assert len({request.messages for request in provider.requests}) == 10


def test_table_and_resume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ("--set", "builtin", "--n", "6", "--grammar", "on", "--output", str(tmp_path / "replies.jsonl"))
    first = run(monkeypatch, ScriptedProvider(["No."] * 6), *options)
    assert "whole call" in first
    assert run(monkeypatch, ScriptedProvider([]), *options) == first
    with pytest.raises(DataError, match="seed differ"):
        run(monkeypatch, ScriptedProvider([]), *options, "--seed", "1")


def test_a_failing_provider_ends_in_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProviderError, match="unreachable"):
        run(monkeypatch, ScriptedProvider([ProviderError("unreachable")]), "--set", "builtin", "--n", "1")


def test_generated_cases_come_from_the_held_out_split() -> None:
    cases = verb._cases(verb.CaseSet.generated, 100, 3)
    assert len(cases) == 100
    assert {case.kind for case in cases} == set(KINDS)
    assert all(case.messages[-1].role != "assistant" for case in cases)
    assert verb._cases(verb.CaseSet.generated, 100, 3) == cases
    assert verb._cases(verb.CaseSet.generated, 100, 4) != cases


def test_evaluations_need_no_torch() -> None:
    code = "import sys, openk2.evals, openk2.cli.eval; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_wrong_usage_is_refused() -> None:
    result = CliRunner().invoke(app, ["eval", "cooking"])
    assert result.exit_code == 2
    assert "there are toolcalls and context" in result.output
    result = CliRunner().invoke(app, ["eval", "toolcalls", "x", "--base-url", "http://127.0.0.1:9", "--grammar", "off"])
    assert result.exit_code == 2
    assert "--base-url" in result.output
