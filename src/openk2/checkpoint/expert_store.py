"""Routed experts on disk, the hot ones of them in memory: for models larger than memory.

A cache of a fixed number of slots, over all layers together. A layer's experts are brought by `hold`, which waits; what
the next layer will probably want is fetched ahead by a thread of its own while this one computes (Eliseev and Mazur,
arXiv:2312.17238, guess it as we do: by the next layer's router on this layer's input).

The slot that is given up is the one whose expert is coldest. An expert's heat is the sum of its uses, each halved with
every HALF_LIFE passes that it lies back: between least frequently (a long half-life) and least recently used (a short
one), as LRFU (Lee et al., IEEE Transactions on Computers 50(12), 2001). An expert's heat is known also while it is not
in memory. Slots in use, and those that are being filled, are pinned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from openk2.checkpoint.expert_store_file import ExpertFile, zero_bytes
from openk2.errors import ConfigError
from openk2.models.packed_stored import ExpertCacheStats
from openk2.quant import PackedStack

READERS = 4
"""Reads at once: one at a time leaves a solid-state disk idle."""
MOST_AHEAD = 32
HALF_LIFE = 64
"""Passes through all layers after which a use counts half. On recorded routing of k2-nano, 16 to 256 hit alike."""
RESCALE = 1e200


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
        self._expert_in: list[int | None] = [None] * self.slots
        self._heat = np.zeros(shape.count)
        self._slot_heat = np.full(self.slots, -1.0)
        self._pinned = np.zeros(self.slots, dtype=bool)
        self._held: list[int] = []
        """Slots of the last `hold`."""
        self._gain = 1.0
        """What one use adds now. It grows, in place of all heats shrinking."""
        self._growth = 2 ** (1 / (HALF_LIFE * shape.layers * topk))
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
        self._warm(wanted)
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

    def close(self) -> None:
        self._reader_ahead.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)
        self.file.close()

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

    def _warm(self, wanted: list[int]) -> None:
        self._gain *= self._growth ** len(wanted)
        self._heat[wanted] += self._gain
        for expert in wanted:
            if expert in self._slot_of:
                self._slot_heat[self._slot_of[expert]] = self._heat[expert]
        if self._gain > RESCALE:
            self._heat /= self._gain
            occupied = self._slot_heat >= 0
            self._slot_heat[occupied] /= self._gain
            self._gain = 1.0

    def _free_slots(self, experts: list[int]) -> Iterator[tuple[int, int]]:
        """For each expert a slot: the coldest ones that are not pinned."""
        if experts:
            heat = np.where(self._pinned, np.inf, self._slot_heat)
            for expert, slot in zip(experts, np.argpartition(heat, len(experts) - 1).tolist(), strict=False):
                assert not self._pinned[slot], "more experts at once than there are slots"
                before = self._expert_in[slot]
                if before is not None:
                    del self._slot_of[before]
                yield expert, slot

    def _begin(self, readers: ThreadPoolExecutor, expert: int, slot: int) -> Future[None]:
        self._slot_of[expert], self._expert_in[slot] = slot, expert
        self._slot_heat[slot], self._pinned[slot] = self._heat[expert], True
        return readers.submit(self.file.read, expert, self._gate_ups[slot], self._downs[slot])

    def _drop(self, expert: int) -> None:
        slot = self._slot_of.pop(expert)
        self._expert_in[slot], self._slot_heat[slot], self._pinned[slot] = None, -1.0, False


def _slices(stack: PackedStack, matrices: int) -> list[memoryview]:
    """The memory of every so many matrices."""
    whole, step = memoryview(stack.data.flatten().numpy().data), matrices * stack.layout.matrix_bytes
    return [whole[at : at + step] for at in range(0, len(whole), step)]
