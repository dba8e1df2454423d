"""Curves against the plan that they come from, and the files that are drawn."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from openk2.errors import EnvironmentFault
from openk2.planner import Load, Plan, read_hardware
from openk2.planner.cost import HostedPrice
from openk2.planner.curves import Figure, cost_over_load, memory_over_context, speed_over_batch
from openk2.planner.make_plan import make_plan
from openk2.planner.plots import draw
from openk2.planner.read_model import read_model


def price(provider: str, usd: float) -> HostedPrice:
    return HostedPrice(
        provider=provider,
        models=("k2-0905",),
        input_usd=usd,
        cached_input_usd=usd,
        output_usd=usd,
        source="by hand",
        date="now",
    )


@pytest.fixture(scope="module")
def plan() -> Plan:
    load = Load(context_tokens=32_768, batch=8, prompt_tokens=1000, output_tokens=2000)
    return make_plan(read_model("k2-0905"), read_hardware("16xH200"), load)


@pytest.fixture(scope="module")
def figures(plan: Plan) -> dict[str, Figure]:
    hosted = (price("a", 1), price("b", 2), price("c", 1))
    made = (cost_over_load(plan, 2.0, hosted), memory_over_context(plan), speed_over_batch(plan))
    return {figure.name: figure for figure in made}


def test_cost_is_whole_deployments_against_a_price_per_request(figures: dict[str, Figure]) -> None:
    own, *hosted = figures["cost"].lines
    assert (own.y[0], own.x[0]) == (16 * 2.0 * 720, 1000)
    assert all(month % own.y[0] == pytest.approx(0) for month in own.y)
    assert list(own.y) == sorted(own.y) and own.y[-1] > own.y[0]
    assert [line.name for line in hosted] == ["a, c", "b"]
    assert hosted[0].y[0] == pytest.approx(1000 * 30 * 3000 / 1e6)


def test_memory_adds_up_to_the_plan(plan: Plan, figures: dict[str, Figure]) -> None:
    memory = figures["memory"]
    at = memory.lines[0].x.index(plan.load.context_tokens)
    assert sum(line.y[at] for line in memory.lines) == pytest.approx(plan.memory.needed_bytes / 1e9)
    assert {line.name for line in memory.lines} == {"weights", "cache", "activations", "runtime", "reserve"}
    assert memory.lines[0].x[-1] == 262_144
    totals = [sum(line.y[i] for line in memory.lines) for i in range(len(memory.lines[0].x))]
    assert totals == sorted(totals)


def test_speed_meets_the_plan_at_its_batch(plan: Plan, figures: dict[str, Figure]) -> None:
    together, each = figures["speed"].lines
    assert plan.speed is not None
    assert together.y[together.x.index(8)] == pytest.approx(plan.speed.decode_tokens_per_s)
    assert each.y[each.x.index(8)] == pytest.approx(plan.speed.decode_tokens_per_s_per_request)
    assert together.x[-1] == plan.largest_batch


def test_a_refused_plan_still_has_its_memory() -> None:
    refused = make_plan(read_model("k2-0905"), read_hardware("8xH100"), Load(context_tokens=4096))
    figure = memory_over_context(refused)
    assert figure.limit is not None
    assert sum(line.y[0] for line in figure.lines) > figure.limit[1]


def test_png_and_svg_are_drawn(figures: dict[str, Figure], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = draw(list(figures.values()), tmp_path / "new")
    assert sorted((tmp_path / "new").iterdir()) == sorted(files)  # and nothing half-written beside them
    assert {file.name for file in files} == {f"{name}.{end}" for name in figures for end in ("png", "svg")}
    for file in files:
        data = file.read_bytes()
        if file.suffix == ".png":
            assert data.startswith(b"\x89PNG\r\n")
        else:
            assert ElementTree.fromstring(data).tag.endswith("svg")


def test_the_same_figure_gives_the_same_svg(figures: dict[str, Figure], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    first, second = (draw([figures["memory"]], tmp_path / name)[1].read_bytes() for name in ("a", "b"))
    assert first == second


def test_without_matplotlib_the_way_out_is_named(
    figures: dict[str, Figure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'openk2\[plots\]'"):
        draw(list(figures.values()), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(figures: dict[str, Figure], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot write"):
        draw([replace(figures["memory"], name="x")], tmp_path / "file")
