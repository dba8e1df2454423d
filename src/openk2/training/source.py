"""The batches of a run: a pure function of (seed, step), so that a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from openk2.chat.template import ChatTemplate
from openk2.training.data import Conversation
from openk2.training.packing import Example, PackedBatch, collate, render_example
from openk2.training.recipe import StageConfig

Conversations = Callable[[int, int], Iterator[Conversation]]
"""(seed, data stage) to an endless stream."""


class BatchSource:
    """Draws a step's conversations, renders and packs them."""

    def __init__(self, template: ChatTemplate, conversations: Conversations, *, seed: int, max_length: int) -> None:
        self.template, self.conversations = template, conversations
        self.seed, self.max_length = seed, max_length

    def batch(self, step: int, stage: StageConfig) -> PackedBatch:
        """At most `stage.batch_tokens` tokens in whole conversations of at most `max_length` tokens."""
        seed = self.seed * 1_000_003 + step
        examples: list[Example] = []
        size = 0
        for conversation in self.conversations(seed, stage.data_stage):
            example = render_example(self.template, conversation.tools, conversation.messages)
            length = len(example.token_ids)
            if length > self.max_length:
                continue
            if examples and size + length > stage.batch_tokens:
                break
            examples.append(example)
            size += length
        batch = collate(examples)
        if stage.prompt_weight > 0:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.rand(batch.labels.shape, generator=generator) < stage.prompt_weight
            batch.supervised.logical_or_(drawn & (batch.labels >= 0))
        return batch
