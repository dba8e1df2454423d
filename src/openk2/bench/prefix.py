"""Depth without its cost: a prompt that the prefix cache is told it holds, over whatever its blocks contain."""

from __future__ import annotations

from collections.abc import Sequence

from openk2.engine import Engine
from openk2.engine.block_manager import ROOT
from openk2.errors import ConfigError


def pretend_cached(engine: Engine, prompt: Sequence[int]) -> int:
    """Put the full blocks of `prompt` into the prefix cache without computing them; returns how many tokens these are.

    Raises ConfigError where the cache has no room for them.
    """
    blocks, node = engine.blocks, ROOT
    held = blocks.allocate(len(prompt) // blocks.block_size)
    if held is None:
        raise ConfigError(f"the cache has no room for {len(prompt):,} tokens", param="num_blocks")
    for number, block in enumerate(held):
        start = number * blocks.block_size
        node = blocks.register(node, prompt[start : start + blocks.block_size], block)
    blocks.release(held)
    return len(held) * blocks.block_size
