"""Several ranks train as one process does, go on exactly, and pass their state to any other number of ranks."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.parallel_runs import (
    compare_at_points,
    cut_and_whole,
    experts_with_idle_ranks,
    losses_with_replayed_choices,
    make_trainer,
    records,
    run_ranks,
    save_again,
)

from openk2.config import ModelConfig
from openk2.errors import ConfigError
from openk2.training.lora import LoraConfig
from openk2.training.parallel import Ranks, my_rows
from openk2.training.parallel.owners import owners
from openk2.training.recipe import GuidesConfig, ParallelConfig, Recipe, StageConfig

GUIDES: dict[str, Any] = {"weight": 1.0, "until_tokens": 10**9, "heads": {"source": [[2, 0]], "previous": [[1, 0]]}}


@pytest.fixture
def shared(recipe: Recipe) -> Recipe:
    """For two ranks, with rows that do not divide and heads that QK-Clip scales."""
    model = replace(recipe.model, intermediate_size=97, vocab_size=513)
    return replace(
        recipe,
        model=model,
        accumulate=2,
        parallel=ParallelConfig(expert_parallel=2),
        stages=(StageConfig(batch_tokens=400, data_stage=0, prompt_weight=0.1),),
        optimizer=replace(recipe.optimizer, qk_clip_threshold=4.0),
    )


def test_two_ranks_do_the_step_of_one_process(shared: Recipe, tmp_path: Path) -> None:
    points = run_ranks(2, compare_at_points, tmp_path, shared, 10, 1)[0]
    assert len(points) == 10
    for point in points:
        for kind, most in (("gradients", 1e-5), ("updates", 1e-5), ("weights", 1e-6)):
            together, worst_tensor = point[kind]
            assert together < most and worst_tensor < 3 * most, (kind, point[kind])
        ours, theirs = point["ours"], point["theirs"]
        for key in ("step", "tokens", "supervised", "clipped_heads", "imbalance"):
            assert ours[key] == theirs[key], key
        for key in ("loss", "grad_norm", "max_logit", "update_rms"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5), key
    assert any(point["ours"]["clipped_heads"] for point in points)


def test_losses_stay_together_while_the_router_chooses_alike(shared: Recipe, tmp_path: Path) -> None:
    steps = 50
    schedule = replace(shared.schedule, stable_tokens=50_000)
    ours, theirs = run_ranks(2, losses_with_replayed_choices, tmp_path, replace(shared, schedule=schedule), steps)[0]
    assert len(ours) == steps and theirs[-1] < theirs[0] - 0.5
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4


def read(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "state.pt", weights_only=True)


def assert_same_state(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Every tensor and count, bit by bit; only the clock may differ."""
    assert ours.keys() == theirs.keys()
    for key in ours.keys() - {"seconds", "model", "optimizer"}:
        assert ours[key] == theirs[key], key
    assert ours["model"].keys() == theirs["model"].keys()
    for name, value in theirs["model"].items():
        assert torch.equal(ours["model"][name], value), name
    groups = [[{**g, "lr": None} for g in state["optimizer"]["param_groups"]] for state in (ours, theirs)]
    assert groups[0] == groups[1]  # the rate of the next step is the schedule's
    for index, state in theirs["optimizer"]["state"].items():
        for key, value in state.items():
            mine = ours["optimizer"]["state"][index][key]
            assert torch.equal(mine, value) if isinstance(value, torch.Tensor) else mine == value, (index, key)


def test_a_cut_run_of_two_ranks_goes_on_bit_identically(shared: Recipe, tmp_path: Path) -> None:
    run_ranks(2, cut_and_whole, tmp_path, shared, 5, random.randint(1, 4))
    assert_same_state(read(tmp_path / "cut"), read(tmp_path / "whole"))


def test_a_state_passes_between_one_rank_and_two(shared: Recipe, tmp_path: Path) -> None:
    alone = make_trainer(shared, tmp_path / "alone")
    for _ in range(2):
        alone.train_step()
    alone.save()
    run_ranks(2, save_again, tmp_path, shared, tmp_path / "alone")
    assert_same_state(read(tmp_path / "again"), read(tmp_path / "alone"))
    back = make_trainer(shared, tmp_path / "again")
    assert back.resume()
    ours, theirs = back.train_step(), alone.train_step()
    assert ours["loss"] == theirs["loss"] and ours["grad_norm"] == theirs["grad_norm"]


@pytest.mark.parametrize("degree", [1, 2])
def test_bfloat16_recomputation_and_guides_over_two_ranks(recipe: Recipe, tmp_path: Path, degree: int) -> None:
    recipe = replace(recipe, accumulate=2, dtype="bfloat16", parallel=ParallelConfig(expert_parallel=degree))
    variants = {"recompute": True} if degree == 2 else {"guides": GuidesConfig(**GUIDES)}
    recipe = replace(recipe, **variants)
    both = run_ranks(2, records, tmp_path, recipe, 2)
    alone = make_trainer(recipe, tmp_path / "alone")
    for ours, others, theirs in zip(*both, [alone.train_step() for _ in range(2)], strict=True):
        timed = {"tokens_per_second"}
        assert {k: v for k, v in ours.items() if k not in timed} == {k: v for k, v in others.items() if k not in timed}
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=5e-2)
        assert ours.get("guides", {}) == pytest.approx(theirs.get("guides", {}), rel=5e-2)


@pytest.mark.slow
def test_four_ranks_two_by_two(shared: Recipe, tmp_path: Path) -> None:
    four = replace(shared, accumulate=4)
    points = run_ranks(4, compare_at_points, tmp_path / "points", four, 10, 3)[0]
    assert all(point["gradients"][0] < 1e-5 and point["updates"][0] < 1e-5 for point in points)
    run_ranks(4, cut_and_whole, tmp_path / "runs", four, 4, 2)
    assert_same_state(read(tmp_path / "runs" / "cut"), read(tmp_path / "runs" / "whole"))
    run_ranks(2, save_again, tmp_path / "two", four, tmp_path / "runs" / "cut")
    assert_same_state(read(tmp_path / "two" / "again"), read(tmp_path / "runs" / "cut"))


def test_ranks_whose_experts_nobody_chose_go_along(tiny_config: ModelConfig, tmp_path: Path) -> None:
    for found in run_ranks(2, experts_with_idle_ranks, tmp_path, tiny_config):
        assert max(found) < 1e-5, found


@pytest.mark.slow
def test_ranks_without_a_share_of_the_experts(shared: Recipe, tmp_path: Path) -> None:
    few = replace(shared.model, n_routed_experts=5, num_experts_per_tok=2)  # 2, 2, 1 and 0 of them
    four = replace(shared, accumulate=4, model=few, parallel=ParallelConfig(expert_parallel=1))
    points = run_ranks(4, compare_at_points, tmp_path / "points", four, 3, 3)[0]
    assert all(point["gradients"][0] < 1e-5 and point["updates"][0] < 1e-5 for point in points)
    run_ranks(4, cut_and_whole, tmp_path / "runs", four, 3, 1)
    assert_same_state(read(tmp_path / "runs" / "cut"), read(tmp_path / "runs" / "whole"))


def test_owners_have_about_the_same_work() -> None:
    shapes = [torch.Size(s) for s in [(64, 64)] * 7 + [(128, 64), (64, 256), (8, 8)]]
    found = owners(shapes, 3)
    loads = [sum(r * c * min(r, c) for (r, c), o in zip(shapes, found, strict=True) if o == rank) for rank in range(3)]
    assert max(loads) < 1.4 * sum(loads) / 3
    assert owners(shapes, 1) == [0] * len(shapes)


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 97])
def test_rows_are_those_of_torchs_chunks(rows: int) -> None:
    for size in (1, 2, 3, 4, 8):
        chunks = torch.arange(rows).chunk(size)
        for index in range(size):
            expected = chunks[index].tolist() if index < len(chunks) else []
            assert list(range(rows))[my_rows(rows, size, index)] == expected


def test_what_ranks_cannot_share_is_refused(shared: Recipe, tmp_path: Path) -> None:
    two = Ranks(size=2)
    two.check(shared)
    for wrong, key in (
        (replace(shared, accumulate=3), "accumulate"),
        (replace(shared, parallel=ParallelConfig(expert_parallel=5)), "parallel.expert_parallel"),
        (replace(shared, init=str(tmp_path), lora=LoraConfig(rank=2, alpha=2)), "lora"),
    ):
        Ranks().check(wrong)  # one process has nothing to share
        with pytest.raises(ConfigError) as error:
            two.check(wrong)
        assert error.value.param == key
    with pytest.raises(ConfigError, match="at least 1"):
        ParallelConfig(expert_parallel=0)
