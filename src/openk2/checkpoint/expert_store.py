"""Routed experts on disk, the hot ones of them in memory: for models larger than memory.

A cache of a fixed number of slots, over all layers together. A layer's experts are brought by `hold`, which waits; what
the next layer will probably want is fetched ahead by a thread of its own while this one computes (Eliseev and Mazur,
arXiv:2312.17238, guess it as we do: by the next layer's router on this layer's input).

The slot that is given up is the one whose expert is coldest. An expert's heat is the share of the passes through its
layer that used it, a pass counting half as much after HALF_LIFE more of them; it is known also while the expert is not
in memory. Passes, not time: layers come round in turn, and by least recent use everything would go just before its turn
comes where the cache is smaller than what one pass uses. Slots in use, and those that are being filled, are pinned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from openk2.checkpoint.expert_store_file import ExpertFile, zero_bytes
from openk2.errors import ConfigError
from openk2.models.packed_stored import ExpertCacheStats
from openk2.quant import PackedStack

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

READERS = 4
"""Reads at once: one at a time leaves a solid-state disk idle."""
MOST_AHEAD = 32
HALF_LIFE = 16
"""Passes. On k2-nano's own routing, whose topics change, 4 hits one point more often and 64 two points less; on routing
that stays the same, 64 one point more (`benchmarks/expert_store.py`)."""


def least_slots(topk: int) -> int:
    """Slots without which one token cannot be computed: its experts, and one that is fetched ahead."""
    return topk + 1


class ExpertStore:
    """See `models.packed_stored.ExpertSlots`. One thread calls; reading has threads of its own."""

    def __init__(self, file: ExpertFile, cache_bytes: int, topk: int) -> None:
        """Slots for as many experts as `cache_bytes` hold. Raises ConfigError for fewer than one token needs."""
        shape = self.shape = file.shape
        self.file = file
        self.slots = min(cache_bytes // shape.expert_bytes, shape.count)
        if self.slots < least_slots(topk):
            raise ConfigError(
                f"{cache_bytes:,} bytes hold {self.slots} experts; a token needs {least_slots(topk)}", param="memory"
            )
        self.most_ahead = max(1, min(MOST_AHEAD, (self.slots - topk) // 2))
        self.most_held = self.slots - self.most_ahead
        self.gate_up = PackedStack(shape.gate_up(self.slots), zero_bytes(shape.gate_up(self.slots)))
        self.down = PackedStack(shape.down(self.slots), zero_bytes(shape.down(self.slots)))
        self._gate_ups, self._downs = _slices(self.gate_up, 2), _slices(self.down, 1)

        self._slot_of: dict[int, int] = {}
        """By expert, counted over all layers: what is in memory, or being read."""
        self._expert_in = np.full(self.slots, -1)
        """-1: none."""
        self._uses = np.zeros(shape.count)
        """Of each expert, decayed."""
        self._passes = np.zeros(shape.layers)
        """Through each layer, decayed alike."""
        self._decay = 2 ** (-1 / HALF_LIFE)
        self._layer: int | None = None
        """Of the last `hold`."""
        self._pinned = np.zeros(self.slots, dtype=bool)
        self._held: list[int] = []
        """Slots of the last `hold`."""
        self._ahead: dict[int, Future[None]] = {}
        self._readers = ThreadPoolExecutor(READERS, "openk2-experts")
        self._reader_ahead = ThreadPoolExecutor(1, "openk2-experts-ahead")
        self._lookups = self._hits_ahead = self._reads = self._reads_ahead = 0

    @property
    def stats(self) -> ExpertCacheStats:
        return ExpertCacheStats(
            slots=self.slots,
            experts=self.shape.count,
            lookups=self._lookups,
            hits=self._lookups - self._hits_ahead - self._reads,
            hits_ahead=self._hits_ahead,
            reads=self._reads,
            reads_ahead=self._reads_ahead,
            bytes_read=(self._reads + self._reads_ahead) * self.shape.record_bytes,
        )

    def is_resident(self, layer: int, expert: int) -> bool:
        """In memory, or on the way."""
        return layer * self.shape.experts + expert in self._slot_of

    def hold(self, layer: int, experts: Sequence[int]) -> list[int]:
        """The slot of each of these different experts of a layer, at most `most_held`, until the next call.

        Raises CheckpointError where the file cannot be read or is damaged.
        """
        first = layer * self.shape.experts
        wanted = [first + expert for expert in experts]
        self._pinned[self._held] = False
        self._held = []
        arrived = self._settle_ahead(set(wanted))
        self._count(layer, wanted)
        missing = [expert for expert in wanted if expert not in self._slot_of]
        self._held = [self._slot_of[expert] for expert in wanted if expert in self._slot_of]
        self._pinned[self._held] = True
        reading = {expert: self._begin(self._readers, expert, slot) for expert, slot in self._free_slots(missing)}
        self._held += [self._slot_of[expert] for expert in missing]
        self._lookups += len(wanted)
        self._reads += len(reading)
        self._hits_ahead += len(arrived)
        faults = []
        for expert, future in (arrived | reading).items():  # all: none may write into a slot that is given away again
            fault = future.exception()
            if fault is not None:
                faults.append(fault)
                self._drop(expert)
        if faults:
            raise faults[0]
        return [self._slot_of[expert] for expert in wanted]

    def expect(self, layer: int, experts: Sequence[int]) -> None:
        """Begin to fetch those of a layer's experts that are not there, the first ones first, as far as there is room
        for what may be wanted in vain."""
        first = layer * self.shape.experts
        room = self.most_ahead - len(self._ahead)
        wanted = [first + expert for expert in experts if first + expert not in self._slot_of][: max(room, 0)]
        for expert, slot in self._free_slots(wanted):
            self._ahead[expert] = self._begin(self._reader_ahead, expert, slot)

    def _settle_ahead(self, wanted: set[int]) -> dict[int, Future[None]]:
        """The readings of `wanted` that have begun; those that have not are left to `hold`. What was fetched in vain is
        no longer pinned, or not read at all, but for what is being read now."""
        arrived = {}
        for expert, future in list(self._ahead.items()):
            if future.cancel():
                self._drop(expert)
            elif expert in wanted:
                arrived[expert] = future
            elif not future.done():
                continue
            elif future.exception() is not None:
                self._drop(expert)  # whoever wants it will be told
            else:
                self._pinned[self._slot_of[expert]] = False
            self._reads_ahead += not future.cancelled()
            del self._ahead[expert]
        return arrived

    def _count(self, layer: int, wanted: list[int]) -> None:
        """Several calls in a row for one layer are parts of one pass."""
        if layer != self._layer or self.shape.layers == 1:
            self._uses[layer * self.shape.experts : (layer + 1) * self.shape.experts] *= self._decay
            self._passes[layer] = self._passes[layer] * self._decay + 1
        self._layer = layer
        self._uses[wanted] += 1

    def _heat(self) -> FloatArray:
        """Of each slot's expert; -1 for an empty slot, infinite for one that is pinned."""
        passes = np.maximum(self._passes[self._expert_in // self.shape.experts], 1)
        heat = np.where(self._expert_in < 0, -1.0, self._uses[self._expert_in] / passes)
        return np.where(self._pinned, np.inf, heat)

    def _free_slots(self, experts: list[int]) -> Iterator[tuple[int, int]]:
        """For each expert a slot: the coldest ones that are not pinned."""
        if experts:
            coldest = np.argpartition(self._heat(), len(experts) - 1).tolist()
            for expert, slot in zip(experts, coldest, strict=False):
                assert not self._pinned[slot], "more experts at once than there are slots"
                self._slot_of.pop(int(self._expert_in[slot]), None)
                yield expert, slot

    def _begin(self, readers: ThreadPoolExecutor, expert: int, slot: int) -> Future[None]:
        self._slot_of[expert], self._expert_in[slot] = slot, expert
        self._pinned[slot] = True
        return readers.submit(self.file.read, expert, self._gate_ups[slot], self._downs[slot])

    def _drop(self, expert: int) -> None:
        slot = self._slot_of.pop(expert)
        self._expert_in[slot], self._pinned[slot] = -1, False


def _slices(stack: PackedStack, matrices: int) -> list[memoryview]:
    """The memory of every so many matrices."""
    whole, step = memoryview(stack.data.flatten().numpy().data), matrices * stack.layout.matrix_bytes
    return [whole[at : at + step] for at in range(0, len(whole), step)]
