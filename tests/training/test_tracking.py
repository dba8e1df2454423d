"""Trackers get the log's records, over tokens, and go on with a run; without their package the pip line is told."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.training.test_runs import small, trainer_of  # noqa: F401  (a fixture)

from openk2.chat.template import ChatTemplate
from openk2.errors import ConfigError, EnvironmentFault
from openk2.training.recipe import Recipe, TrackingConfig
from openk2.training.tracking import TENSORBOARD_FOLDER, scalars


def test_numbers_of_a_record_have_names() -> None:
    step = {"step": 3, "tokens": 90, "loss": 1.5, "clipped_heads": 2, "guides": {"tool": 0.25}, "critic_gap": None}
    assert scalars(step) == {"train/loss": 1.5, "train/clipped_heads": 2.0, "train/guides/tool": 0.25}
    held = {"tokens": 90, "held_loss": 2.0, "held_exact_turns": {"single": "3/4", "text": "0/0"}, "expert_load": [[1]]}
    assert scalars(held) == {"held/loss": 2.0, "held/turns/single": 0.75, "held/turns/text": 0.0}


def with_tracking(recipe: Recipe, **tracking: Any) -> Recipe:
    return replace(recipe, tracking=TrackingConfig(**tracking))


@pytest.mark.parametrize(
    ("tracking", "modules", "extra"),
    [
        ({"tensorboard": True}, ["tensorboard", "torch.utils.tensorboard"], "tensorboard"),
        ({"wandb": "p"}, ["wandb"], "wandb"),
    ],
)
def test_without_the_package_the_run_does_not_begin(
    small: Recipe,  # noqa: F811
    template: ChatTemplate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tracking: dict[str, Any],
    modules: list[str],
    extra: str,
) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    trainer = trainer_of(with_tracking(small, **tracking), template, tmp_path)
    with pytest.raises(EnvironmentFault, match=rf"needs {extra}, .*pip install 'openk2\[{extra}\]'"):
        trainer.run([])
    assert trainer.step == 0


def test_a_project_is_a_name() -> None:
    with pytest.raises(ConfigError, match="tracking.wandb is a project's name, not True"):
        TrackingConfig(wandb=True)  # type: ignore[arg-type]


def test_tensorboard_reads_what_the_log_says(
    small: Recipe,  # noqa: F811
    template: ChatTemplate,
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = with_tracking(small, tensorboard=True)
    first = trainer_of(recipe, template, tmp_path)
    first.run([], max_seconds=1e-9)
    cut = trainer_of(recipe, template, tmp_path)
    assert cut.resume()

    class Killed(Exception):
        pass

    def kill(record: dict[str, Any]) -> None:
        if record["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        cut.run([], report=kill)  # steps 2 and 3 are logged, and not saved
    again = trainer_of(recipe, template, tmp_path)
    assert again.resume() and again.step == 1
    again.run([])
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records][:5] == [1, 2, 3, 2, 3]
    events = EventAccumulator(str(tmp_path / TENSORBOARD_FOLDER))
    events.Reload()
    expected = {r["tokens"]: r["loss"] for r in records}
    shown = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert [step for step, _ in shown] == list(expected), "each step once, though two were done twice"
    assert [value for _, value in shown] == pytest.approx(list(expected.values()))
    assert {"train/max_logit", "train/update_rms", "train/lr", "train/imbalance"} <= set(events.Tags()["scalars"])


def test_wandb_gets_one_run_that_goes_on(
    small: Recipe,  # noqa: F811
    template: ChatTemplate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against a stand-in for the package."""
    begun: list[dict[str, Any]] = []
    logged: list[dict[str, Any]] = []
    finished: list[bool] = []
    axes: list[tuple[str, str]] = []

    class Error(Exception):
        pass

    def init(**given: Any) -> SimpleNamespace:
        if given["project"] == "forbidden":
            raise Error("permission denied")
        begun.append(given)
        return SimpleNamespace(
            log=logged.append,
            finish=lambda: finished.append(True),
            define_metric=lambda name, step_metric: axes.append((name, step_metric)),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Error=Error))  # type: ignore[arg-type]
    recipe = with_tracking(small, wandb="team/project")
    trainer = trainer_of(recipe, template, tmp_path)
    trainer.run([], max_seconds=1e-9)
    again = trainer_of(recipe, template, tmp_path)
    assert again.resume()
    again.run([], max_seconds=1e-9)
    assert (begun[0]["entity"], begun[0]["project"], begun[0]["resume"]) == ("team", "project", "allow")
    assert begun[0]["id"] == begun[1]["id"] and begun[0]["config"]["optimizer"]["lr"] == recipe.optimizer.lr
    assert axes[0] == ("*", "tokens") and finished == [True, True]
    assert [set(entry) >= {"tokens", "train/loss"} for entry in logged] == [True, True]
    with pytest.raises(EnvironmentFault, match=r"tracking.wandb: permission denied"):
        trainer_of(with_tracking(small, wandb="forbidden"), template, tmp_path / "b").run([])
