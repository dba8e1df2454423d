"""`openk2 bench`: its cases, its limits, and that it measures what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from openk2.bench import Case, MachineLimits, make_cases, run
from openk2.bench.limits import measure_disk
from openk2.cli.bench import command
from openk2.config import preset
from openk2.errors import ConfigError
from openk2.llm.source import Source
from openk2.planner import ModelShape, scheme

app = Typer()
app.command()(command)
LIMITS = MachineLimits("a processor", 1, 8 << 30, read_bytes_per_s=10e9, f32_flops_per_s=50e9)
SMALL = ("--prefill", "32", "--depth", "16", "--batch", "3", "--rounds", "1", "--threads", "1")


def test_cases_cover_lengths_depths_and_batches() -> None:
    assert len(make_cases([4095], [4064], [], window=4096)) == 2, "as long as the window allows"
    made = make_cases([128], [16, 1024], [1, 4], window=4096)
    assert [case.name for case in made] == [
        "prefill 128",
        "decode at 16",
        "decode at 1,024",
        "decode at 16, 4 together",
    ]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (([0], [1], [1]), "prefill must be at least 1"),
        (([1], [5000], [1]), "exceeds the model's window of 4,096"),
        (([1], [4065], [1]), "decode at 4,065 with an answer of 32 exceeds"),
        (([4096], [1], [1]), "prefill 4,096 with an answer of 1 exceeds"),
        (([], [], [4]), "nothing to measure"),
    ],
)
def test_impossible_cases_are_refused(sizes: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_cases(*sizes, window=4096)


def test_the_limit_of_a_decode_step_is_its_bytes_over_the_bandwidth() -> None:
    shape = ModelShape.from_config("mini", preset("mini"))
    terms = Case("decode", 1).limit(shape, scheme("f32"), "f32", LIMITS.as_device())
    weights = 4 * shape.active_parameters_without_embedding
    assert terms.total_s == pytest.approx(weights / 10e9, rel=1e-3) and terms.binds == "weight bandwidth"
    whole = Case("prefill", 1024).limit(shape, scheme("f32"), "f32", LIMITS.as_device())
    assert whole.binds == "arithmetic"


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_every_case_is_measured(quantization: str | None) -> None:
    cases = make_cases([32], [16], [3], window=4096)
    rounds: list[None] = []
    on_round = lambda: rounds.append(None)  # noqa: E731
    done = run(Source.find("k2-nano"), cases, LIMITS, quantization=quantization, rounds=2, on_round=on_round)
    assert [one.case for one in done.results] == cases and len(rounds) == 3 * len(cases)
    for one in done.results:
        assert one.slowest <= one.tokens_per_s <= one.fastest
        counted = one.case.context if one.case.kind == "prefill" else one.case.batch
        assert one.tokens_per_s * one.seconds == pytest.approx(counted)
        assert one.share == one.tokens_per_s / one.limit_tokens_per_s > 0
    assert done.formats == f"{quantization or 'bf16'} packed" and done.resident_bytes > 50 << 20


def test_a_mode_reads_fewer_experts() -> None:
    shown = CliRunner().invoke(app, ["k2-nano", *SMALL, "--mode", "reflex", "--json"])
    prefill, alone, together = json.loads(shown.stdout)["results"]
    assert prefill["experts_per_token"] is None and all(3 <= one["experts_per_token"] <= 5 for one in (alone, together))
    full, reflex = (
        run(Source.find("k2-nano"), make_cases([], [16], [], window=4096), LIMITS, mode=mode, rounds=1).results[0]
        for mode in (None, "reflex")
    )
    assert full.limit_tokens_per_s < reflex.limit_tokens_per_s
    wrong = CliRunner().invoke(app, ["k2-nano", *SMALL, "--mode", "fast"])
    assert isinstance(wrong.exception, ConfigError) and "reflex, deliberative, auto" in str(wrong.exception)


def test_table_json_and_errors() -> None:
    shown = CliRunner().invoke(app, ["k2-nano", *SMALL])
    assert shown.exit_code == 0 and "decode at 16, 3 together" in shown.stdout and "GB/s" in shown.stdout
    facts = json.loads(CliRunner().invoke(app, ["k2-nano", *SMALL, "--json"]).stdout)
    assert [one["name"] for one in facts["results"]] == ["prefill 32", "decode at 16", "decode at 16, 3 together"]
    assert facts["limits"]["read_bytes_per_s"] > 1e8
    plotless = CliRunner().invoke(app, ["k2-nano", "--depth", "", "--plot", "plots"])
    assert isinstance(plotless.exception, ConfigError) and "give --depth" in str(plotless.exception)
    wrong = CliRunner().invoke(app, ["k2-nano", "--prefill", "a lot"])
    assert wrong.exit_code != 0 and isinstance(wrong.exception, ConfigError)


def test_the_disk_is_measured_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openk2.bench.limits._FILE_BYTES", 1 << 23)
    assert measure_disk(tmp_path) > 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError):
        measure_disk(tmp_path / "missing")
