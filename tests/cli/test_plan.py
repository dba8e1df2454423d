"""`openk2 plan` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from openk2.cli.plan import command
from openk2.errors import ConfigError

app = Typer()
app.command()(command)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_json_of_a_plan_that_fits() -> None:
    done = run("k2-0905", "--hardware", "16xH200", "--context", "256k", "--against", "glm-4.5", "--json")
    shown = json.loads(done.stdout)
    assert done.exit_code == 0
    assert shown["weights_bytes"] == 1_029_173_249_888
    assert sum(term["bytes"] for term in shown["memory"]["terms"]) == shown["memory"]["needed_bytes"]
    assert shown["against"][0]["model"] == "glm-4.5"
    assert {one["provider"] for one in shown["cost"]["hosted"]} >= {"moonshot"}


def test_a_plan_that_does_not_fit_ends_with_1_and_the_bytes() -> None:
    done = run("k2-0905", "--hardware", "8xH200", "--context", "256k")
    assert done.exit_code == 1
    assert "lacks" in done.stdout


def test_a_price_of_ones_own() -> None:
    done = run("--load", "requests=1000,in=1000,out=1000", "--price", "hour=1,in=1,out=1", "--json")
    cost = json.loads(done.stdout)["cost"]
    assert cost["month_usd"] == 16 * 720
    assert cost["hosted"][0]["month_usd"] == pytest.approx(60)


def test_what_costs_nothing_has_no_break_even() -> None:
    free = ("--price", "hour=2,in=0,out=0", "--load", "requests=10,in=1000,out=1000")
    shown = run(*free)
    assert shown.exit_code == 0 and "no break-even" in " ".join(shown.output.split())
    cost = json.loads(run(*free, "--json").stdout)["cost"]
    assert cost["hosted"][0]["break_even_requests_per_day"] is None


def test_a_wrong_price_is_refused() -> None:
    assert isinstance(run("--price", "hour=free").exception, ConfigError)


def test_a_price_file_of_ones_own_replaces_ours(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(
        '[device_hour.H200]\nusd = 1\n[[hosted]]\nprovider = "mine"\nmodels = ["k2-0905"]\ninput_usd = 1\n'
        'cached_input_usd = 1\noutput_usd = 1\nsource = "a contract"\ndate = "2026-11-25"\n'
    )
    load = ("--load", "requests=1000,in=1000,out=1000", "--price-file", str(file))
    cost = json.loads(run(*load, "--json").stdout)["cost"]
    assert cost["month_usd"] == 16 * 720
    assert [one["provider"] for one in cost["hosted"]] == ["mine"]
    assert json.loads(run(*load, "--hardware", "16xH100", "--json").stdout)["cost"] is None  # the file has no H100


def test_plots_are_written_and_named(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run("--hardware", "16xH200", "--plots", str(tmp_path / "plots"), "--json")
    files = json.loads(done.stdout)["plots"]
    assert sorted(Path(file).name for file in files) == [
        f"{name}.{end}" for name in ("cost", "memory", "speed") for end in ("png", "svg")
    ]
    assert all(Path(file).is_file() for file in files)


def test_a_plan_that_does_not_fit_draws_its_memory(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run("--hardware", "8xH100", "--plots", str(tmp_path), "--json")
    assert done.exit_code == 1
    assert {Path(file).stem for file in json.loads(done.stdout)["plots"]} == {"memory"}


def test_this_machine_or_another_not_both() -> None:
    done = run("k2-0905", "--here", "--hardware", "8xH200")
    assert isinstance(done.exception, ConfigError)
    assert "--hardware" in str(done.exception)
