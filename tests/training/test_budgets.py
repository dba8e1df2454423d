"""Sequences that are trained with fewer experts."""

from __future__ import annotations

import torch

from openk2.training.budgets import draw_budgets
from openk2.training.packing import Example, PackedBatch, collate


def batch(sequences: int = 200) -> PackedBatch:
    return collate(
        [Example([i % 90, 1, 2, 3, 4, 5], [False, False, False, True, True, False]) for i in range(sequences)]
    )


def test_only_the_assistants_tokens_of_some_sequences_take_fewer() -> None:
    drawn = draw_budgets(batch(), 8, 0.5, seed=3)
    assert drawn is not None
    by_sequence = drawn.most_T.view(200, 6)
    assert torch.equal(drawn.least_T, drawn.most_T)
    assert (by_sequence[:, [0, 1, 2, 5]] == 8).all(), "tokens of the prompt"
    assert torch.equal(by_sequence[:, 3], by_sequence[:, 4]), "one number a sequence"
    numbers = by_sequence[:, 3].unique().tolist()
    assert numbers == [3, 4, 5, 6, 7, 8]
    assert 60 < (by_sequence[:, 3] < 8).sum() < 140


def test_the_same_tokens_draw_the_same() -> None:
    one, two, other = (draw_budgets(batch(), 8, 0.5, seed) for seed in (3, 3, 4))
    assert one is not None and two is not None and other is not None
    assert torch.equal(one.most_T, two.most_T)
    assert not torch.equal(one.most_T, other.most_T)


def test_nothing_is_drawn_where_nothing_can_be_cut() -> None:
    assert draw_budgets(batch(), 8, 0.0, 1) is None
    assert draw_budgets(batch(), 3, 0.5, 1) is None
