"""The `[rl]` section of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openk2.errors import ConfigError
from openk2.evals.cases import KINDS
from openk2.models.packed import Quantization

RUBRIC = (
    "Does the answer do what the user wants, or say what is missing?",
    "Is the answer free of facts that stand neither in the conversation nor in a tool's result?",
    "Is the answer short and polite?",
)
"""After K2's core rubric (clear, helpful, in the user's interest), as questions that a small model is asked."""


@dataclass(frozen=True, kw_only=True)
class RLConfig:
    """Learn from the model's own answers to the data's prompts, judged by checks.

    A step takes `prompts` prompts from the data, `samples` answers to each by the engine, and `updates` optimizer steps
    on them, each on its own part of the prompts.
    """

    prompts: int = 16
    samples: int = 8
    updates: int = 1
    kinds: Mapping[str, float] = field(default_factory=lambda: {"single": 1.0, "parallel": 1.0, "chain": 1.0})
    """Kinds of cases (`evals.cases`), each with its share of the prompts."""
    max_prompt_tokens: int = 1024
    """Longer prompts are passed over."""
    tau: float = 0.1
    """Weight of the squared log-ratio to the policy that answered."""
    temperature: tuple[float, float] = (1.0, 0.7)
    """Of the answers, at the first token and at the last; it falls evenly."""
    budget_factor: float = 1.5
    budget_tokens: int = 24
    """A prompt's token budget is its known answer's length times the factor, plus these. Answers are cut there."""
    budget_penalty: float = 0.5
    """Taken from the reward of an answer that was cut."""
    right_tools: float = 0.2
    """Reward of calls of the right tools with wrong arguments; wholly right ones get 1."""
    critique_weight: float = 0.0
    """Most that the model's own judgement of an answer in text adds to its reward."""
    rubric: tuple[str, ...] = RUBRIC
    """Yes-or-no questions that it judges by."""
    ptx_weight: float = 0.1
    """Of the loss on the data's own answers, beside the policy's; 0 takes no such batches."""
    rollout: str = "shared"
    """`shared`: the engine answers with the very weights that are trained; or a format to pack a copy in (`bf16`,
    `int8`, `int4`, parts as in `int4,head=int8`), which is refreshed after each step."""

    def __post_init__(self) -> None:
        counts = {"prompts": 1, "samples": 2, "updates": 1, "max_prompt_tokens": 1, "budget_tokens": 1}
        for name, least in counts.items():
            if getattr(self, name) < least:
                raise ConfigError(f"rl.{name} must be at least {least}, not {getattr(self, name)}", param=f"rl.{name}")
        if self.updates > self.prompts:
            raise ConfigError(
                f"rl.updates ({self.updates}) cannot exceed rl.prompts ({self.prompts})", param="rl.updates"
            )
        for name in ("tau", "budget_factor", "budget_penalty", "right_tools", "critique_weight", "ptx_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"rl.{name} must not be negative, not {getattr(self, name):g}", param=f"rl.{name}")
        if not _are(self.temperature, float, int) or len(self.temperature) != 2 or not min(self.temperature) > 0:
            raise ConfigError("rl.temperature is two numbers above 0: first and last", param="rl.temperature")
        unknown = sorted(set(self.kinds) - set(KINDS)) if isinstance(self.kinds, Mapping) else []
        if unknown:
            raise ConfigError(f"rl.kinds: no kind {unknown[0]!r}; there are {', '.join(KINDS)}", param="rl.kinds")
        if not isinstance(self.kinds, Mapping) or not _are(shares := tuple(self.kinds.values()), float, int):
            raise ConfigError("rl.kinds is a table such as { single = 1, parallel = 2 }", param="rl.kinds")
        if not shares or min(shares) < 0 or not sum(shares) > 0:
            raise ConfigError("rl.kinds needs shares that are not negative, one above 0", param="rl.kinds")
        if not _are(self.rubric, str) or not self.rubric:
            raise ConfigError("rl.rubric is a list of questions", param="rl.rubric")
        if self.rollout != "shared":
            Quantization.parse(self.rollout)


def _are(values: Any, *kinds: type) -> bool:
    return isinstance(values, tuple) and all(type(value) in kinds for value in values)
