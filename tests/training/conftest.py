"""A byte-level tokenizer and a model small enough to train in a test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from openk2.chat.messages import Message, ToolCall, ToolSpec
from openk2.chat.template import ChatTemplate
from openk2.config import ModelConfig, preset
from openk2.tokenizer import Tokenizer
from openk2.training.bpe import byte_order
from openk2.training.data import Conversation
from openk2.training.recipe import Recipe, StageConfig
from openk2.training.schedule import WarmupStableDecay


@pytest.fixture(scope="session")
def template() -> ChatTemplate:
    return ChatTemplate(Tokenizer({token: rank for rank, token in enumerate(byte_order())}))


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    return replace(
        preset("nano"),
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        q_lora_rank=64,
        kv_lora_rank=96,
    )


def numbered(seed: int, stage: int) -> Iterator[Conversation]:
    """Conversations that depend on nothing but the seed."""
    tool = ToolSpec.function("add", "Add.", {"type": "object", "properties": {"n": {"type": "integer"}}})
    for index in range(seed, seed + 1000):
        call = ToolCall("functions.add:0", "add", f'{{"n": {index}}}')
        messages = (
            Message("system", "S"),
            Message("user", f"add {index}"),
            Message("assistant", None, tool_calls=(call,)),
            Message("tool", "ok", tool_call_id=call.id),
            Message("assistant", f"Done {index}."),
        )
        yield Conversation("single", (tool,), messages)


@pytest.fixture
def recipe(tiny_config: ModelConfig) -> Recipe:
    return Recipe(
        model=tiny_config,
        schedule=WarmupStableDecay(warmup_tokens=1000, stable_tokens=3000, decay_tokens=2000),
        stages=(StageConfig(until_tokens=2500, data_stage=0, batch_tokens=700, prompt_weight=0.1),
                StageConfig(until_tokens=10**9, data_stage=1, batch_tokens=1000)),
        save_every_tokens=10**9,
        validate_every_tokens=2000,
    )  # fmt: skip
