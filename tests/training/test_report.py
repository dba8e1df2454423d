"""A run's log read back and reported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from openk2.cli.train import app
from openk2.errors import DataError, EnvironmentFault
from openk2.training.charts import heat_map, line_chart
from openk2.training.report import report_page, run_report, smooth
from openk2.training.run_log import read_log


def step(number: int, loss: float) -> dict[str, Any]:
    return {"step": number, "tokens": 100 * number, "loss": loss, "max_logit": 5.0 + number, "lr_scale": 0.5}


def held(tokens: int, loss: float) -> dict[str, Any]:
    turns = {"single": "3/4"}
    load = [[0, 0, 0, 0], [40, 20, 10, 10]]
    return {
        "tokens": tokens,
        "held_loss": loss,
        "held_exact_calls": 0.75,
        "held_exact_turns": turns,
        "expert_load": load,
    }


def write(folder: Path, *entries: Any, end: str = "") -> Path:
    (folder / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries) + end)
    return folder


def test_what_a_cut_run_did_twice_counts_once(tmp_path: Path) -> None:
    first = [step(1, 4.0), step(2, 3.0), held(200, 2.9), step(3, 2.5), held(300, 2.4), step(4, 2.0)]
    log = read_log(write(tmp_path, *first, step(3, 2.6), step(4, 2.1), end='{"step": 5, "tok'))
    assert [e["loss"] for e in log.steps] == [4.0, 3.0, 2.6, 2.1] and log.cuts == 1
    assert [e["tokens"] for e in log.validations] == [200]


def test_the_figures_are_of_the_log(tmp_path: Path) -> None:
    report, log = run_report(write(tmp_path, *(step(i, 10.0 / i) for i in range(1, 201)), held(20_000, 1.5)))
    by_name = {s.name: s for s in report.series}
    loss = by_name["loss"]
    assert (loss.first, loss.least, loss.most) == (10.0, 0.05, 10.0)
    assert loss.last == pytest.approx(sum(10.0 / i for i in range(151, 201)) / 50)
    assert by_name["held-out loss"].last == 1.5 and by_name["learning rate, of its peak"].last == 0.5
    assert "update RMS" not in by_name, "this log is from before it was kept"
    page = report_page(report, log)
    charts = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    titles = [chart.find("{*}text").text or "" for chart in charts]  # type: ignore[union-attr]
    assert titles[0] == "Loss, nats" and any("Expert load" in title for title in titles)
    assert len(charts[0].findall("{*}polyline")) == 3
    assert len(charts[0].findall("{*}circle")) == 1, "the one validation is marked"
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_chart_puts_larger_values_higher() -> None:
    svg = ElementTree.fromstring(line_chart("t", {"a": [(0, 1.0), (5, float("nan")), (10, 100.0)]}, log_scale=True))
    (line,) = svg.findall("{*}polyline")
    (x1, y1), (x2, y2) = (tuple(map(float, p.split(","))) for p in line.attrib["points"].split())
    assert x1 < x2 and y1 > y2
    assert line_chart("t", {"a": []}) == ""
    cells = ElementTree.fromstring(heat_map("t", ["r"], [[1.0, 4.0, 0.1]], middle=1.0)).findall("{*}rect")
    assert [c.attrib["fill"] for c in cells] == ["rgb(255,255,255)", "rgb(255,85,85)", "rgb(85,85,255)"]


def test_smoothing_is_a_running_mean() -> None:
    assert smooth([(i, float(i)) for i in range(5)], 2) == [(0, 0.0), (1, 0.5), (2, 1.5), (3, 2.5), (4, 3.5)]


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    write(tmp_path, step(1, 4.0), held(100, 3.0))
    page = tmp_path / "report.html"
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--html", str(page)])
    assert result.exit_code == 0 and "max attention logit" in result.output and "single: 3/4" in result.output
    assert page.read_text().startswith("<!doctype html>")
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--html", str(tmp_path)])
    assert isinstance(result.exception, EnvironmentFault) and "it is a folder" in str(result.exception)
    figures = json.loads(CliRunner().invoke(app, ["report", str(tmp_path), "--json"]).output)
    assert figures["tokens"] == 100 and figures["series"][0]["name"] == "held-out loss"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no step yet"),
        (b"{}\n", "line 1: not a record"),
        (b"x\n", "line 1"),
        (b"\xff\n", "line 1: not a record"),
        (b'{"tokens": "5", "step": 1}\n', "line 1: not a record"),
    ],
)
def test_logs_that_are_none(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "log.jsonl").write_bytes(text)
    with pytest.raises(DataError, match=message):
        read_log(tmp_path)
    with pytest.raises(DataError, match="is .* a run's folder"):
        read_log(tmp_path / "none")
