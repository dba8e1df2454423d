"""Held-out data under teacher forcing: of conversations, how much of the assistant's turns the model would have said.

A turn counts as exact when the most likely token is the right one at each of its positions, which is the same as greedy
decoding reproducing it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openk2.chat.template import ChatTemplate
from openk2.models import K2Model
from openk2.training.data import Conversation
from openk2.training.packing import Example, collate, render_example


@dataclass(frozen=True)
class Validation:
    loss: float
    """Mean negative log-likelihood of the learned tokens (the assistant's; of a text, all), nats."""
    token_accuracy: float
    exact_turns: dict[str, tuple[int, int]]
    """(exact turns, turns) by kind: the conversation's kind for turns with calls, `text` for turns without."""

    @property
    def exact_calls(self) -> float:
        right, total = (sum(v[i] for k, v in self.exact_turns.items() if k != "text") for i in (0, 1))
        return right / max(total, 1)


@torch.no_grad()
def validate(
    model: K2Model, template: ChatTemplate, held: Sequence[Conversation | Example], batch: int = 8
) -> Validation:
    """Run all of `held`, `batch` at a time. Plain examples have no turns, so there `exact_turns` is empty."""
    losses: list[Tensor] = []
    rights: list[Tensor] = []
    turns: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for start in range(0, len(held), batch):
        part = held[start : start + batch]
        examples = [h if isinstance(h, Example) else render_example(template, h.tools, h.messages) for h in part]
        packed = collate(examples).to(str(model.lm_head.weight.device))
        hidden = model(packed.input_ids, packed.forward_batch())
        rows = packed.supervised.nonzero()[:, 0]
        logits, labels = model.compute_logits(hidden[rows]), packed.labels[rows]
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
        right = logits.argmax(-1) == labels
        rights.append(right)
        spoken = [h for h in part if isinstance(h, Conversation)]
        if len(spoken) == len(part):
            _count_turns(packed.cu_seqlens, rows.cpu(), right.cpu(), spoken, turns)
    exact = {kind: (a, b) for kind, (a, b) in sorted(turns.items())}
    return Validation(float(torch.cat(losses).mean()), float(torch.cat(rights).float().mean()), exact)


def _count_turns(
    borders: Sequence[int],
    rows: Tensor,
    right: Tensor,
    conversations: Sequence[Conversation],
    turns: dict[str, list[int]],
) -> None:
    starts = torch.ones_like(rows, dtype=torch.bool)
    starts[1:] = rows[1:] != rows[:-1] + 1
    turn_of_row = starts.cumsum(0) - 1
    wrong = torch.zeros(int(starts.sum()), dtype=torch.int64).scatter_add_(0, turn_of_row, (~right).long())
    first_rows = rows[starts].tolist()
    position = 0
    for conversation, end in zip(conversations, borders[1:], strict=True):
        replies = [m for m in conversation.messages if m.role == "assistant"]
        for reply in replies:
            assert first_rows[position] < end, "a supervised run for every reply"
            tally = turns[conversation.kind if reply.tool_calls else "text"]
            tally[0] += int(wrong[position] == 0)
            tally[1] += 1
            position += 1
