"""A run's records for TensorBoard and Weights & Biases, beside `log.jsonl`, which stays the log that is read back.

Both are packages of their own, imported when a recipe asks for them. The horizontal axis is the tokens trained on.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from openk2.errors import EnvironmentFault, TrainingError

if TYPE_CHECKING:
    from openk2.training.recipe import Recipe

TENSORBOARD_FOLDER = "tensorboard"
WANDB_ID = "wandb-id.txt"


class Tracker(Protocol):
    """Takes a run's records, step by step and validation by validation."""

    def record(self, entry: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


@contextmanager
def trackers(recipe: Recipe, folder: Path, tokens: int) -> Iterator[list[Tracker]]:
    """Those that the recipe asks for, closed at the end. `tokens`: where the run goes on.

    Raises EnvironmentFault for a package that is not installed.
    """
    opened: list[Tracker] = []
    try:
        if recipe.tracking.tensorboard:
            opened.append(TensorBoard(folder / TENSORBOARD_FOLDER, tokens))
        if recipe.tracking.wandb is not None:
            opened.append(WeightsAndBiases(recipe.tracking.wandb, recipe, folder))
        yield opened
    finally:
        for tracker in opened:
            tracker.close()


def scalars(entry: Mapping[str, Any]) -> dict[str, float]:
    """A record's numbers by name: `train/loss` of a step, `held/loss` of a validation, `held/turns/single`: shares."""
    part = "train" if "step" in entry else "held"
    found: dict[str, float] = {}
    for key, value in entry.items():
        name = f"{part}/{key.removeprefix('held_')}"
        if key == "held_exact_turns":
            shares = ((kind, share.partition("/")) for kind, share in value.items())
            found |= {f"held/turns/{kind}": int(right) / max(int(total), 1) for kind, (right, _, total) in shares}
        elif isinstance(value, Mapping):
            found |= {f"{name}/{inner}": float(v) for inner, v in value.items()}
        elif isinstance(value, (int, float)) and key not in ("step", "tokens"):
            found[name] = float(value)
    return found


class TensorBoard:
    """Event files for `tensorboard --logdir runs`."""

    def __init__(self, folder: Path, tokens: int) -> None:
        """`tokens`: records after these, of a stretch that was cut, are taken back."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise EnvironmentFault(
                "tracking.tensorboard needs tensorboard, which is not installed; add it with: "
                "pip install 'openk2[tensorboard]'"
            ) from None
        self.folder = folder
        self._writer = SummaryWriter(str(folder), purge_step=tokens + 1 if tokens else None)

    def record(self, entry: Mapping[str, Any]) -> None:
        """Raises TrainingError when the file cannot be written."""
        try:
            for name, value in scalars(entry).items():
                self._writer.add_scalar(name, value, entry["tokens"])
        except OSError as error:
            raise TrainingError(f"cannot write {self.folder}: {error.strerror or error}") from None

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One run there for each run's folder, gone on with when this one is. `WANDB_MODE=offline` keeps it on disk."""

    def __init__(self, project: str, recipe: Recipe, folder: Path) -> None:
        """`project`: its name, or `entity/name`. Raises EnvironmentFault when W&B refuses the run."""
        try:
            import wandb
        except ImportError:
            raise EnvironmentFault(
                "tracking.wandb needs wandb, which is not installed; add it with: pip install 'openk2[wandb]'"
            ) from None
        known = folder / WANDB_ID
        if not known.exists():
            known.write_text(secrets.token_hex(4) + "\n")
        entity, _, name = project.rpartition("/")
        try:
            self._run = wandb.init(
                project=name,
                entity=entity or None,
                name=recipe.name,
                id=known.read_text().strip(),
                resume="allow",
                dir=str(folder),
                config=asdict(recipe),
            )
        except wandb.Error as error:
            raise EnvironmentFault(f"tracking.wandb: {error}") from None
        self._run.define_metric("*", step_metric="tokens")

    def record(self, entry: Mapping[str, Any]) -> None:
        self._run.log({**scalars(entry), "tokens": entry["tokens"]})

    def close(self) -> None:
        self._run.finish()
