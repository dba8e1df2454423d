"""What a mode means for a model's trained number of experts."""

from __future__ import annotations

from typing import Any

import pytest

from openk2.config import MODES, ExpertBudget, SamplingParams, expert_budget, read_mode
from openk2.errors import ConfigError, RequestError


@pytest.mark.parametrize("trained", [1, 2, 3, 4, 6, 8])
def test_budgets_lie_within_the_trained_number(trained: int) -> None:
    assert expert_budget(None, None, trained) is None and expert_budget("deliberative", None, trained) is None
    reflex, auto = expert_budget("reflex", None, trained), expert_budget("auto", None, trained)
    assert (reflex is None) == (auto is None) == (trained <= 3), "nothing to leave out is no budget"
    for budget in (reflex, auto):
        assert budget is None or 3 == budget.least <= budget.most <= trained
    assert reflex is None or reflex.most <= 5
    assert auto is None or auto.most == trained
    for topk in range(1, trained + 1):
        assert expert_budget(None, topk, trained) == (ExpertBudget(topk, topk) if topk < trained else None)


def test_names_are_read() -> None:
    assert [read_mode(mode) for mode in (*MODES, None)] == [*MODES, None]
    with pytest.raises(ConfigError, match="mode must be one of reflex, deliberative, auto, not 'quick'"):
        read_mode("quick")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"mode": "quick"}, "one of reflex"), ({"mode": "auto", "topk": 3}, "left out where there is a mode")],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        SamplingParams(**wrong)
