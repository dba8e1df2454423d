"""Which documents are held out, and in which order the others come: functions of their content and the run's seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from openk2.errors import DataError


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64 bits that looks random."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def split(digests: Sequence[int], held_out: float) -> tuple[list[int], list[int]]:
    """(training, held-out) documents: about `held_out` of them are held out, by their content alone.

    So equal documents are on the same side, and neither the seed nor other documents move one to the other side.
    Raises DataError when either side is empty although it should hold some.
    """
    drawn = mix(np.array(digests, dtype=np.uint64)) / np.float64(2**64)
    held = drawn < held_out
    if held_out > 0 and not held.any():
        raise DataError(
            f"data.held_out = {held_out:g} holds out none of {len(digests)} documents; raise it, or set 0 to go "
            "without validation",
            param="data.held_out",
        )
    if held.all():
        raise DataError(f"data.held_out = {held_out:g} leaves none of {len(digests)} documents", param="data.held_out")
    return np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()


class Order:
    """The documents `members`, epoch after epoch, each epoch in an order drawn from (seed, epoch) alone."""

    def __init__(self, members: Sequence[int], seed: int) -> None:
        self.members, self.seed = np.array(members), seed
        self.epoch = self.index = 0
        self._shuffle()

    def _shuffle(self) -> None:
        key = mix(np.array([self.seed % 2**64, self.epoch], dtype=np.uint64))
        ranks = mix(np.arange(len(self.members), dtype=np.uint64) ^ key[0] ^ mix(key[1:]))
        self._order = self.members[np.argsort(ranks, kind="stable")]

    @property
    def current(self) -> int:
        return int(self._order[self.index])

    def advance(self) -> None:
        self.index += 1
        if self.index == len(self._order):
            self.seek(self.epoch + 1, 0)

    def seek(self, epoch: int, index: int) -> None:
        self.epoch, self.index = epoch, index
        self._shuffle()
