"""Conversations to packed training batches: whole sequences end to end, each attending only to itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from openk2.chat.messages import Message, ToolSpec
from openk2.chat.template import ChatTemplate
from openk2.models import ForwardBatch

IGNORE = -100


@dataclass(frozen=True)
class Example:
    """One sequence and which of its tokens are to be learned."""

    token_ids: list[int]
    supervised: list[bool]
    """True where the token is the assistant's own: its reply and the end of its turn."""


@dataclass(frozen=True)
class PackedBatch:
    """Several examples end to end: `labels[i]` is what follows `input_ids[i]`."""

    input_ids: Tensor
    """(T,) int64."""
    labels: Tensor
    """(T,) int64; IGNORE at the last token of each sequence."""
    supervised: Tensor
    """(T,) bool: the label is one of the assistant's tokens."""
    lengths: tuple[int, ...]

    def to(self, device: str) -> PackedBatch:
        return PackedBatch(self.input_ids.to(device), self.labels.to(device), self.supervised.to(device), self.lengths)

    def forward_batch(self, **observers: Any) -> ForwardBatch:
        """Of these sequences, with `ForwardBatch`'s other fields: budgets, and what observes the pass."""
        return replace(ForwardBatch.packed(self.lengths, device=self.input_ids.device), **observers)

    @property
    def cu_seqlens(self) -> tuple[int, ...]:
        return (0, *accumulate(self.lengths))


def render_example(template: ChatTemplate, tools: tuple[ToolSpec, ...], messages: tuple[Message, ...]) -> Example:
    """Render a conversation and mark the assistant's tokens: from after the header of its turn through the turn's end.

    Control tokens can only be the template's own, so the turns are read off the rendered ids.
    """
    token_ids = template.render(messages, tools, add_generation_prompt=False)
    specials = template.tokenizer.specials
    begin, middle, end = (specials[f"<|im_{name}|>"] for name in ("assistant", "middle", "end"))
    supervised, role, inside = [], 0, False
    for token_id in token_ids:
        supervised.append(inside)
        if token_id == middle:
            inside = role == begin
        elif token_id == end:
            inside = False
        elif token_id in template.tokenizer.special_ids and not inside:
            role = token_id
    return Example(token_ids, supervised)


def collate(examples: list[Example]) -> PackedBatch:
    """Put examples end to end."""
    ids, labels, supervised = [], [], []
    for example in examples:
        ids += example.token_ids
        labels += [*example.token_ids[1:], IGNORE]
        supervised += [*example.supervised[1:], False]
    return PackedBatch(
        torch.tensor(ids), torch.tensor(labels), torch.tensor(supervised), tuple(len(e.token_ids) for e in examples)
    )
