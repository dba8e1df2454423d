"""The whole command over loopback: our own server passes, and each broken front has its fault named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from tests.evals.verify.conftest import Change, front, ignore_schemas, leak_markers, rewrite_ids
from typer.testing import CliRunner

from openk2.cli.main import app
from openk2.errors import ProviderError

SMALL = ("--n", "12", "--schemas", "3", "--json")


def verify(url: str, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON report."""
    result = CliRunner().invoke(app, ["verify", url, *SMALL, *options], catch_exceptions=False)
    return result.exit_code, json.loads(result.stdout)


def failed(report: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["faults"][0] for check in report["checks"] if check["outcome"] == "failed"}


def test_our_own_server_passes_everything(faithful: str) -> None:
    code, report = verify(faithful)
    assert not failed(report)
    assert code == 0 and report["passed"]
    assert all(check["outcome"] == "passed" for check in report["checks"]), report["checks"]
    assert report["summary"]["success_count"] == 12
    assert report["summary"]["successful_tool_call_count"] == report["summary"]["finish_tool_calls"] > 3
    figures = {figure["name"]: figure["value"] for figure in report["figures"]}
    assert figures["schema accuracy"] == figures["canonical ids"] == figures["stream parity"] == 1
    assert figures["marker leaks"] == figures["loops"] == figures["empty turns"] == 0
    assert figures["same at 8 at once"] == figures["same at 32 at once"] == figures["schema accuracy at 32"] == 1
    assert figures["abort latency"] is not None


def test_no_more_than_the_given_requests_run_at_a_time(faithful: str) -> None:
    _, report = verify(faithful, "--concurrency", "8", "--schemas", "0")
    names = {figure["name"] for figure in report["figures"]}
    assert "same at 8 at once" in names and "same at 32 at once" not in names


@pytest.mark.parametrize(
    ("change", "drop", "named", "kept", "said"),
    [
        (rewrite_ids, (), ["call ids", "ids over two turns"], ["schema", "no markers"], "has the id 'call_"),
        (leak_markers, (), ["no markers", "required calls a tool"], ["schema", "call ids"], "<|tool_call_begin|>"),
        (
            ignore_schemas,
            ("response_format",),
            ["schema", "strict json_schema", "generated 0/0"],
            ["no markers", "call ids"],
            "the value: ",
        ),
    ],
)
def test_a_broken_front_has_its_fault_named(
    faithful: str, change: Change, drop: tuple[str, ...], named: Sequence[str], kept: Sequence[str], said: str
) -> None:
    with front(faithful, change, drop) as url:
        code, report = verify(url)
    faults = failed(report)
    assert code == 1 and not report["passed"]
    assert set(named) <= set(faults), faults
    assert not set(kept) & set(faults), faults
    assert said in faults[named[0]]


def test_the_front_itself_breaks_nothing(faithful: str) -> None:
    with front(faithful, lambda payload: None) as url:
        code, report = verify(f"{url}/v1/")
    assert code == 0, failed(report)


def test_no_server_is_one_line() -> None:
    with pytest.raises(ProviderError, match="cannot reach http://127.0.0.1:9/v1"):
        CliRunner().invoke(app, ["verify", "http://127.0.0.1:9"], catch_exceptions=False)
