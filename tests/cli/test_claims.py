"""`openk2 claims` as a user calls it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from openk2.cli.claims import command
from openk2.errors import ConfigError
from openk2.planner.claims import check_claims

app = Typer()
app.command()(command)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_json_holds_every_claim() -> None:
    done = run("--json")
    shown = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert done.exit_code == 0 and list(shown) == ["claims"]
    assert [one["id"] for one in shown["claims"]] == [one.claim.id for one in check_claims()]
    by_id = {one["id"]: one for one in shown["claims"]}
    assert by_id["fp8-size"]["value"] == 1_029_173_249_888
    assert (
        by_id["cache-at-256k"] | {"verdict": "wrong", "unit": "B", "figure": [410e9, 410e9]} == by_id["cache-at-256k"]
    )
    assert [by_id[name]["is_bound"] for name in ("awq-speed", "awq-size")] == [True, False]
    assert by_id["swe-bench-0905"]["verdict"] == "cited elsewhere"


def test_topic_and_verdict_choose() -> None:
    shown = json.loads(run("--topic", "cost", "--verdict", "wrong", "--json").stdout)["claims"]
    assert shown and {(one["topic"], one["verdict"]) for one in shown} == {("cost", "wrong")}


def test_a_table_for_people() -> None:
    done = run("--topic", "cache")
    assert done.exit_code == 0
    assert "wrong" in done.stdout and "9.211" in done.stdout


def test_unknown_topics_and_verdicts_are_refused() -> None:
    for name, valid in (("--topic", "memory"), ("--verdict", "not checkable")):
        error = run(name, "luck").exception
        assert isinstance(error, ConfigError) and "no " in str(error) and valid in str(error)


def test_a_page_of_one_topic() -> None:
    page = run("--topic", "cache", "--markdown").stdout
    assert [line for line in page.splitlines() if line.startswith("## ")] == ["## Cache"]
    assert page.count("\n| ") == 1 + sum(one.claim.topic == "cache" for one in check_claims())
