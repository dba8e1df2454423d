"""What an answer is worth: checked against what is right, less where it ran over its budget."""

from __future__ import annotations

from dataclasses import dataclass

from openk2.chat.messages import Completion
from openk2.evals.cases import CALLING_KINDS, Case
from openk2.evals.execution import score_executed
from openk2.training.rl.config import RLConfig


@dataclass(frozen=True)
class Reward:
    value: float
    right: bool
    """The check alone: what `openk2 eval toolcalls` counts, and calls that come to the same value."""
    cut: bool
    """The answer reached its token budget without an end."""


def verified(case: Case, reply: Completion, config: RLConfig) -> Reward:
    """1 for a right answer, `right_tools` for calls of the right tools with wrong arguments, else 0; an answer that was
    cut loses `budget_penalty` (K2's budget control) and is never right."""
    score = score_executed(case, reply)
    match case.kind:
        case kind if kind in CALLING_KINDS:
            right = score.right_calls
        case "ask_back":
            right = score.asks
        case _:  # answer, no_tool, chat: text that is not empty and tells what it must
            right = score.right_text
    cut = reply.finish_reason == "length"
    value = 1.0 if right else config.right_tools if score.right_tools and case.kind in CALLING_KINDS else 0.0
    return Reward(value - config.budget_penalty * cut, right, cut)
