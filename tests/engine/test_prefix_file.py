"""The prefix cache over a restart: the same hits, the same bits, and nothing from a file that does not fit."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openk2.checkpoint import random_model
from openk2.config import ModelConfig, SamplingParams, preset
from openk2.engine import Engine, EngineConfig, EngineRequest
from openk2.engine.block_manager import ROOT, BlockManager
from openk2.engine.prefix_file import load_prefixes, save_prefixes

CONFIG = replace(preset("nano"), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=300)


def make(config: ModelConfig = CONFIG, **sizes: int) -> Engine:
    return Engine(random_model(config), EngineConfig(**{"num_blocks": 40, "block_size": 4, **sizes}))


def ask(engine: Engine, prompt: list[int], name: str = "0") -> tuple[list[int], int, list[float]]:
    """Answer, cached tokens, and the log-probabilities to the last bit."""
    engine.add_request(EngineRequest(name, prompt, SamplingParams(temperature=0.0, max_tokens=6, logprobs=3)))
    tokens, cached, told = [], 0, []
    while engine.has_work:
        for output in engine.step():
            tokens += output.token_ids
            cached = output.cached_tokens
            told += [entry.logprob for entry in output.logprobs]
    return tokens, cached, told


@pytest.fixture
def prompts() -> list[list[int]]:
    torch.manual_seed(0)
    first = torch.randint(0, 300, (30,)).tolist()
    return [first, first[:13] + torch.randint(0, 300, (20,)).tolist(), torch.randint(0, 300, (9,)).tolist()]


def test_a_new_engine_finds_what_the_old_one_had(prompts: list[list[int]], tmp_path: Path) -> None:
    old, file = make(), tmp_path / "prefixes"
    for number, prompt in enumerate(prompts):
        ask(old, prompt, str(number))
    expected = [ask(old, prompt, f"again {number}") for number, prompt in enumerate(prompts)]
    assert [cached for _, cached, _ in expected] == [28, 32, 8]
    count = old.blocks.num_cached
    assert save_prefixes(old, file, "m") == 4 * count
    new = make()
    assert load_prefixes(new, file, "m") == 4 * count
    assert new.blocks.num_available == old.blocks.num_available, "nobody holds them"
    assert [ask(new, prompt) for prompt in prompts] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["prefixes"]


def test_what_was_used_last_is_kept_where_room_is_short(prompts: list[list[int]], tmp_path: Path) -> None:
    old, file = make(), tmp_path / "prefixes"
    for number, prompt in enumerate(prompts):
        ask(old, prompt, str(number))
    ask(old, prompts[0], "again")
    save_prefixes(old, file, "m")
    small = make(num_blocks=10)
    assert load_prefixes(small, file, "m") == 36, "nine blocks"
    assert ask(small, prompts[0])[1] == 28


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("none", ""),
        ("fingerprint", "from another model"),
        ("block size", "from another cache layout"),
        ("layers", "from another cache layout"),
        ("truncated", "damaged, or no file of a prefix cache"),
        ("text", "damaged, or no file of a prefix cache"),
        ("a bit", "it is damaged"),
        ("folder", "damaged, or no file of a prefix cache"),
    ],
)
def test_only_what_fits_is_read(
    prompts: list[list[int]], tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str, said: str
) -> None:
    old, file = make(), tmp_path / "prefixes"
    ask(old, prompts[0])
    save_prefixes(old, file, "m")
    data = bytearray(file.read_bytes())
    if change == "truncated":
        file.write_bytes(data[:-100])
    elif change == "text":
        file.write_text("not a cache")
    elif change == "a bit":
        data[-40] ^= 1
        file.write_bytes(data)
    elif change == "folder":
        file.unlink()
        file.mkdir()
    config = replace(CONFIG, num_hidden_layers=3) if change == "layers" else CONFIG
    new = make(config, block_size=8 if change == "block size" else 4)
    with caplog.at_level(logging.WARNING):
        tokens = load_prefixes(new, file, "another" if change == "fingerprint" else "m")
    assert (tokens > 0) is (change == "none")
    assert (new.blocks.num_cached > 0) is (change == "none")
    assert said in caplog.text and (str(file) in caplog.text) is (change != "none")
    assert ask(new, prompts[2])[0], "it answers"


def test_a_file_that_is_not_there_is_a_first_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_prefixes(make(), tmp_path / "none", "m") == 0
    assert not caplog.text


def test_an_empty_cache_is_written_too(tmp_path: Path) -> None:
    assert save_prefixes(make(), tmp_path / "prefixes", "m") == 0
    assert load_prefixes(make(), tmp_path / "prefixes", "m") == 0


def test_blocks_come_after_those_they_follow() -> None:
    blocks = BlockManager(20, 2)
    chain = blocks.allocate(3)
    other = blocks.allocate(1)
    assert chain is not None and other is not None
    node = ROOT
    for number, block in enumerate(chain):
        node = blocks.register(node, (number, number), block)
    blocks.register(ROOT, (9, 9), other[0])
    blocks.release(chain)  # idle; the other one is held
    found = blocks.cached()
    assert [entry.block for entry in found] == [other[0], *chain]
    assert [entry.parent for entry in found] == [None, None, *chain[:2]]
