"""Reflex and deliberative modes: how many routed experts a generated token takes. Why so: docs/modes.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from openk2.errors import ConfigError

Mode = Literal["reflex", "deliberative", "auto"]
MODES: tuple[Mode, ...] = get_args(Mode)


def read_mode(name: str | None) -> Mode | None:
    """Raises ConfigError for what is no mode."""
    for mode in MODES:
        if name == mode:
            return mode
    if name is None:
        return None
    raise ConfigError(f"mode must be one of {', '.join(MODES)}, not {name!r}", param="mode")


@dataclass(frozen=True)
class ExpertBudget:
    """In each layer the fewest of a token's strongest experts, from `least` to `most`, whose weights have the share
    `mass` of those of the trained number."""

    least: int
    most: int
    mass: float = 1.0

    def within(self, trained: int) -> ExpertBudget:
        return ExpertBudget(min(self.least, trained), min(self.most, trained), self.mass)


REFLEX = ExpertBudget(least=3, most=5, mass=0.5)
AUTO_LEAST, AUTO_MASS = 3, 0.7


def expert_budget(mode: Mode | None, topk: int | None, trained: int) -> ExpertBudget | None:
    """Of a request, at most one of whose `mode` and `topk` is given; None: the trained number in every layer."""
    if topk is not None:
        budget = ExpertBudget(topk, topk)
    elif mode == "reflex":
        budget = REFLEX.within(trained)
    elif mode == "auto":
        budget = ExpertBudget(AUTO_LEAST, trained, AUTO_MASS).within(trained)
    else:
        return None
    return None if budget.least == trained else budget
