"""The generator's source of chance."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice(random.Random):
    """`random.Random` with quicker `choice` and `randint`: most of the generator's time goes there.

    Their bias, below 2**-40 for the short lists used here, does not matter for training data.
    """

    def choice(self, seq: Sequence[T]) -> T:  # type: ignore[override]
        return seq[int(self.random() * len(seq))]

    def randint(self, a: int, b: int) -> int:
        return a + int(self.random() * (b - a + 1))
