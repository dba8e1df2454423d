"""Who holds which cache block, and which blocks hold a prefix worth keeping."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

NULL_BLOCK = 0
"""Never handed out: what unused entries of a block table point at."""
ROOT = 0
"""The node of the empty prefix."""

_Key = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class CachedBlock:
    """A block of the prefix cache."""

    block: int
    parent: int | None
    """The block before it; None at a prompt's start."""
    token_ids: tuple[int, ...]


class BlockManager:
    """Reference-counted blocks, and a prefix cache over full ones.

    A cached block is a node of a tree: its key is its parent's node and its own tokens, compared exactly, so two
    prefixes share a block only if they are equal token by token. Blocks that nobody holds stay cached until their room
    is needed; the least recently used goes first, and a chain goes from its tail.
    """

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool = True) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._free = list(range(num_blocks - 1, NULL_BLOCK, -1))
        self._holders = [0] * num_blocks
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Cached blocks without a holder, least recently used first."""
        self._block_of: dict[_Key, int] = {}
        self._key_of: dict[int, _Key] = {}
        self._node_of: dict[int, int] = {}
        self._last_node = ROOT

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out now, idle cached ones among them."""
        return len(self._free) + len(self._idle)

    @property
    def num_cached(self) -> int:
        """Blocks in the prefix cache, held or idle."""
        return len(self._key_of)

    @property
    def capacity(self) -> int:
        """Tokens that fit when one sequence has every block."""
        return (self.num_blocks - 1) * self.block_size

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def match(self, token_ids: Sequence[int]) -> tuple[list[int], int]:
        """The longest cached chain of full blocks that starts `token_ids`, now held; and its last node."""
        blocks: list[int] = []
        node = ROOT
        if not self.enable_prefix_caching:
            return blocks, node
        for start in range(0, len(token_ids) - self.block_size + 1, self.block_size):
            block = self._block_of.get((node, tuple(token_ids[start : start + self.block_size])))
            if block is None:
                break
            self._hold(block)
            blocks.append(block)
            node = self._node_of[block]
        return blocks, node

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks for one holder, or None, taking none, if there are fewer."""
        if count > self.num_available:
            return None
        while len(self._free) < count:
            self._evict()
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def register(self, parent: int, token_ids: Sequence[int], block: int) -> int:
        """Put a full block that follows the node `parent` into the prefix cache; returns its node.

        When an equal block is there already, that one stays and this one is its holder's alone.
        """
        if not self.enable_prefix_caching:
            return ROOT
        key = (parent, tuple(token_ids))
        known = self._block_of.get(key)
        if known is not None:
            return self._node_of[known]
        self._last_node += 1
        self._block_of[key], self._key_of[block], self._node_of[block] = block, key, self._last_node
        return self._last_node

    def cached(self) -> list[CachedBlock]:
        """The prefix cache, what would be evicted last first: each block comes after the one that it follows."""
        held = sorted(self._key_of.keys() - self._idle.keys(), key=self._node_of.__getitem__)
        block_of_node = {node: block for block, node in self._node_of.items()}
        return [
            CachedBlock(block, block_of_node.get(self._key_of[block][0]), self._key_of[block][1])
            for block in (*held, *reversed(self._idle))
        ]

    def restore(self, token_ids: Sequence[tuple[int, ...]], parents: Sequence[int | None]) -> dict[int, int]:
        """Register blocks in `cached`'s order, as far as there is free room; their contents are the caller's to write.

        `parents` are places in the sequence. Returns the block of each place that was taken.
        """
        count = min(len(token_ids), len(self._free)) if self.enable_prefix_caching else 0
        blocks = self.allocate(count) or []
        nodes: list[int] = []
        for tokens, parent, block in zip(token_ids, parents, blocks, strict=False):
            nodes.append(self.register(ROOT if parent is None else nodes[parent], tokens, block))
        self.release(blocks)
        return dict(enumerate(blocks))

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one holder's blocks, in the order of the sequence."""
        for block in reversed(blocks):  # the tail of a chain first, so that it is evicted first
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._key_of:
                    self._idle[block] = None
                else:
                    self._free.append(block)

    def _hold(self, block: int) -> None:
        if self._holders[block] == 0:
            del self._idle[block]
        self._holders[block] += 1

    def _evict(self) -> None:
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._key_of.pop(block)], self._node_of[block]
        self._free.append(block)
