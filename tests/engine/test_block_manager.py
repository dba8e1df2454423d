"""Reference counts and the prefix cache, without a model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openk2.engine.block_manager import NULL_BLOCK, ROOT, BlockManager


def chain(manager: BlockManager, tokens: list[int]) -> list[int]:
    """Allocate, register and keep the full blocks of `tokens`, as a prefill would."""
    blocks, node = manager.match(tokens)
    size = manager.block_size
    for start in range(len(blocks) * size, len(tokens) - size + 1, size):
        fresh = manager.allocate(1)
        assert fresh is not None
        node = manager.register(node, tokens[start : start + size], fresh[0])
        blocks += fresh
    return blocks


def test_allocation_is_all_or_nothing() -> None:
    manager = BlockManager(4, 2)
    assert manager.capacity == 6
    assert manager.allocate(4) is None
    blocks = manager.allocate(3)
    assert blocks is not None
    assert sorted([NULL_BLOCK, *blocks]) == [0, 1, 2, 3]
    assert manager.allocate(1) is None
    manager.release(blocks[:1])
    assert manager.allocate(1) == blocks[:1]


def test_shared_prefix_outlives_one_holder() -> None:
    manager = BlockManager(5, 2)
    first = chain(manager, [1, 2, 3, 4])
    second = chain(manager, [1, 2, 3, 4, 5, 6])
    assert second[:2] == first
    manager.release(first)
    assert manager.num_available == 1, "the second still holds them"
    manager.release(second)
    assert manager.num_available == 4
    assert manager.num_cached == 3
    assert manager.match([1, 2, 3, 4, 9, 9])[0] == first


def test_equal_blocks_after_different_prefixes_are_different() -> None:
    manager = BlockManager(8, 2)
    one, two = chain(manager, [1, 1, 7, 7]), chain(manager, [2, 2, 7, 7])
    assert not set(one) & set(two)
    assert manager.match([2, 2, 7, 7])[0] == two
    assert manager.match([7, 7])[0] == []


def test_eviction_takes_the_oldest_chain_from_its_tail() -> None:
    manager = BlockManager(7, 1)
    old, new = chain(manager, [1, 2, 3]), chain(manager, [4, 5, 6])
    manager.release(old)
    manager.release(new)
    manager.allocate(1)
    assert manager.match([1, 2, 3])[0] == old[:2]
    manager.release(old[:2])  # used again: now the other chain is the oldest
    manager.allocate(1)
    assert manager.match([4, 5, 6])[0] == new[:2]
    assert manager.match([1, 2])[0] == old[:2]


def test_registering_the_same_twice_keeps_the_first() -> None:
    manager = BlockManager(4, 1)
    blocks = manager.allocate(2)
    assert blocks is not None
    node = manager.register(ROOT, [5], blocks[0])
    assert manager.register(ROOT, [5], blocks[1]) == node
    manager.release(blocks)
    assert manager.num_cached == 1
    assert manager.match([5]) == (blocks[:1], node)


def test_without_prefix_caching_nothing_is_kept() -> None:
    manager = BlockManager(4, 1, enable_prefix_caching=False)
    blocks = chain(manager, [1, 2])
    manager.release(blocks)
    assert manager.num_cached == 0
    assert manager.match([1, 2]) == ([], ROOT)


@given(st.lists(st.tuples(st.lists(st.integers(0, 1), max_size=6), st.integers(0, 3)), max_size=40))
def test_every_block_is_accounted_for(script: list[tuple[list[int], int]]) -> None:
    """Random prompts come and go: a match is always what was registered, and at the end all blocks are available."""
    manager = BlockManager(9, 1)
    content: dict[int, list[int]] = {}
    held: list[list[int]] = []
    for tokens, drop in script:
        if held and drop:
            manager.release(held.pop(drop % len(held)))
        matched, node = manager.match(tokens)
        assert [content[block] for block in matched] == [tokens[: i + 1] for i in range(len(matched))]
        fresh = manager.allocate(len(tokens) - len(matched))
        if fresh is None:
            manager.release(matched)
            continue
        for i, block in enumerate(fresh, len(matched)):
            content[block] = tokens[: i + 1]
            node = manager.register(node, tokens[i : i + 1], block)
        held.append(matched + fresh)
    for blocks in held:
        manager.release(blocks)
    assert manager.num_available == 8
