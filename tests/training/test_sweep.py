"""Sweeps: every combination once, each in its folder, resumed where it was cut, and what diverged is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.training.test_runs import small  # noqa: F401  (a fixture)

from openk2.errors import ConfigError, DataError
from openk2.training.recipe import Recipe
from openk2.training.sweep import (
    OUTCOMES_FILE,
    Outcome,
    combinations,
    folder_name,
    outcome_rows,
    parse_axis,
    read_outcomes,
    run_sweep,
)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("optimizer.lr=1e-4, 3e-4", ["1e-4", "3e-4"]),
        ("optimizer.betas=[0.9,0.95],[0.9,0.99]", ["[0.9,0.95]", "[0.9,0.99]"]),
        ("data.files=[\"a,b.txt\"],['c]']", ['["a,b.txt"]', "['c]']"]),
        ("seed=1", ["1"]),
    ],
)
def test_an_axis_is_divided_at_its_own_commas(text: str, values: list[str]) -> None:
    assert parse_axis(text) == (text.partition("=")[0], values)


@pytest.mark.parametrize("text", ["optimizer.lr", "=1,2", "seed=1,,2", "seed=", "seed=1,1"])
def test_an_axis_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--sweep"):
        parse_axis(text)


def test_every_combination_comes_once() -> None:
    assert combinations([("a", ["1", "2"]), ("b", ["x", "y"])]) == [
        ["a=1", "b=x"],
        ["a=1", "b=y"],
        ["a=2", "b=x"],
        ["a=2", "b=y"],
    ]
    with pytest.raises(ConfigError, match="a is given twice"):
        combinations([("a", ["1"]), ("a", ["2"])])


def test_folders_are_safe_and_apart() -> None:
    names = [folder_name(run) for run in ("a=1", 'f=["../x"]', 'f=[".._x"]', "f=" + "y" * 300, "f=" + "y" * 301)]
    assert names[0] == "a=1" and len(set(names)) == len(names)
    assert all("/" not in name and len(name) <= 120 for name in names)


@pytest.fixture
def recipe(small: Recipe) -> Recipe:  # noqa: F811
    model = replace(small.model, vocab_size=516)
    schedule = replace(small.schedule, stable_tokens=500)
    return replace(small, model=model, schedule=schedule, stages=(replace(small.stages[0], batch_tokens=300),))


def test_a_sweep_goes_on_where_it_was_cut_and_keeps_what_has_ended(recipe: Recipe, tmp_path: Path) -> None:
    runs = {f"seed={seed}": replace(recipe, seed=seed) for seed in (1, 2)}
    whole = run_sweep(runs, tmp_path / "whole")
    assert [o.run for o in whole] == list(runs) and all(o.status == "done" for o in whole)
    assert whole[0].held_loss != whole[1].held_loss and whole[0].optimizer_bytes > 0
    vocabularies = [(tmp_path / "whole" / run / "tokenizer" / "tiktoken.model").read_bytes() for run in runs]
    assert vocabularies[0] == vocabularies[1]

    stretches = 0
    while len(outcomes := run_sweep(runs, tmp_path / "cut", max_seconds=1e-9)) < 2:
        stretches += 1
        assert stretches < 20
    assert stretches > 1, "cut after every step"
    assert [(o.run, o.tokens, o.loss, o.held_loss) for o in outcomes] == [
        (o.run, o.tokens, o.loss, o.held_loss) for o in whole
    ]

    told: list[str] = []
    assert run_sweep(runs, tmp_path / "cut", report=lambda run, record: told.append(run)) == outcomes
    assert not told, "what has ended is not trained again"
    with pytest.raises(ConfigError, match="seed=1 ended by another recipe"):
        run_sweep({"seed=1": replace(recipe, seed=3)}, tmp_path / "cut")
    more = {**runs, "seed=3": replace(recipe, seed=3)}
    assert [o.run for o in run_sweep(more, tmp_path / "cut")] == list(more)


def test_a_run_that_diverges_is_told_and_not_tried_again(recipe: Recipe, tmp_path: Path) -> None:
    wild = replace(recipe, optimizer=replace(recipe.optimizer, lr=1e30))
    runs = {"lr=1e30": wild, "lr=1e-3": recipe}
    outcomes = run_sweep(runs, tmp_path)
    assert [o.status for o in outcomes] == ["diverged", "done"]
    assert outcomes[0].tokens < outcomes[1].tokens and outcomes[0].held_loss is None
    told: list[str] = []
    run_sweep(runs, tmp_path, report=lambda run, record: told.append(run))
    assert not told
    rows = outcome_rows(outcomes)
    assert "diverged" in rows[0][1] and rows[1][3] == f"{outcomes[1].held_loss:.4f}"


def test_the_least_loss_is_marked() -> None:
    rows = outcome_rows(
        [Outcome(run=str(loss), status="done", tokens=9, seconds=1.0, held_loss=loss) for loss in (2.0, 1.5)]
    )
    assert [row[3] for row in rows] == ["2.0000", "1.5000 *"]


def test_a_broken_line_of_outcomes_is_named(tmp_path: Path) -> None:
    (tmp_path / OUTCOMES_FILE).write_text(json.dumps({"run": "a"}) + "\n")
    with pytest.raises(DataError, match="line 1: not the outcome of a run"):
        read_outcomes(tmp_path)
