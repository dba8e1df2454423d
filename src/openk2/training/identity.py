"""What of a recipe a run's state belongs to: with other values it would go on as a run that nobody could repeat.

Rates, schedule, batch sizes and the like may change on the way; these may not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openk2.errors import CheckpointError
from openk2.training.recipe import Recipe


def identity(recipe: Recipe) -> dict[str, Any]:
    """Recipe keys to plain values, kept in the run's state."""
    data = recipe.data
    return {
        "seed": recipe.seed,  # of the order of the data: with another, some would be seen twice and some never
        "data.kind": data.kind,
        "data.held_out": data.held_out,  # with another, what was learned would be validated on
        "data.text_field": data.text_field,
        "optimizer.kind": recipe.optimizer.kind,
    }


def check_identity(saved: Mapping[str, Any], recipe: Recipe, state: str) -> None:
    """Raises CheckpointError that names the first key which differs. States from before a key was kept have none."""
    for key, value in identity(recipe).items():
        if key in saved and saved[key] != value:
            raise CheckpointError(
                f"{key} is {value!r} in the recipe, and {saved[key]!r} in the run of {state}: set it back to go on, or "
                "choose another --output for a new run",
                param=key,
            )
