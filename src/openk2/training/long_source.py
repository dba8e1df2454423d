"""Batches for extending a window: one long conversation in each, and ordinary ones in what is left of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from openk2.chat.template import ChatTemplate
from openk2.errors import CheckpointError
from openk2.training.data import Conversation
from openk2.training.data.long import long_conversations
from openk2.training.packing import Example, render_example
from openk2.training.recipe import StageConfig
from openk2.training.source import MOST_REFUSED, BatchSource, Position

CHARS_A_TOKEN = 2
"""Of texts; names, ids and roles take tokens too. What is written is cut to the tokens wanted."""
SPREAD = 8
"""The longest conversations over the shortest."""


class LongSource(BatchSource):
    """Long conversations have from a `SPREAD`th to all of the stage's `sequence_tokens`, evenly on a logarithmic scale,
    so that distances of every size are learned. None is longer than the window.
    """

    left_out = 0
    """Long conversations so far whose tools and first turn were too long."""

    def _examples(self, seed: int, stage: StageConfig) -> Iterator[Example]:
        most = stage.sequence_tokens or self.max_length
        made = self._long(seed, most)
        yield render_example(self.template, made.tools, made.messages)
        yield from super()._examples(seed, stage)

    def _long(self, seed: int, most: int) -> Conversation:
        length = drawn_length(seed, most)
        for made in islice(long_conversations(seed, CHARS_A_TOKEN * length), MOST_REFUSED):
            fitting = cut(self.template, made, length) or cut(self.template, made, most)
            if fitting is not None:
                return fitting
            self.left_out += 1
        raise self._no_use()

    def position(self) -> Position:
        return {"left_out": self.left_out}

    def seek(self, position: Position) -> None:
        if position.keys() != {"left_out"}:
            raise CheckpointError("the run's state is of other data than long conversations; choose another --output")
        self.left_out = position["left_out"]


def drawn_length(seed: int, most: int) -> int:
    """Tokens."""
    return int(most * SPREAD ** -random.Random(f"{seed}/length").random())


def cut(template: ChatTemplate, conversation: Conversation, most: int) -> Conversation | None:
    """Its first turns of the user with all that follows each, as many as `most` tokens hold; None: not even one."""
    ids = template.render(conversation.messages, conversation.tools, add_generation_prompt=False)
    user = template.tokenizer.specials["<|im_user|>"]
    ends = [*[at for at, token in enumerate(ids) if token == user][1:], len(ids)]
    fitting = sum(end <= most for end in ends)
    if fitting == 0:
        return None
    asked = [at for at, message in enumerate(conversation.messages) if message.role == "user"]
    end = asked[fitting] if fitting < len(asked) else len(conversation.messages)
    return Conversation(conversation.kind, conversation.tools, conversation.messages[:end])


def held_long(template: ChatTemplate, seed: int, most: int, count: int) -> list[Conversation]:
    """At most `count` conversations of the held-out part, of lengths as in training."""
    found = []
    for number in range(count):
        own = seed * 1_000_003 + number
        length = drawn_length(own, most)
        fitting = cut(template, next(long_conversations(own, CHARS_A_TOKEN * length, "held")), length)
        if fitting is not None:
            found.append(fitting)
    return found
