"""The local provider's engine in a process of its own: as in a thread, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny_model import save_tiny_model, tiny_config, tiny_ranks

from openk2.chat.events import collect_async
from openk2.chat.messages import Message, ToolChoice, ToolSpec
from openk2.chat.provider import ChatRequest
from openk2.checkpoint import random_model, save_model
from openk2.config import SamplingParams
from openk2.engine import EngineConfig, StepOutput
from openk2.engine.process import Outcome, Submission
from openk2.errors import CheckpointError, ContextLengthError, EngineDeadError, SchemaError
from openk2.llm import LLM

SEARCH = ToolSpec.function(
    "search",
    "Search.",
    {"type": "object", "properties": {"q": {"type": "string", "enum": ["x", "y"]}}, "required": ["q"]},
)
HELLO = (Message("user", "hello there"),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint with a tokenizer; greedy by its generation_config."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-k2")


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder) as llm:
        yield llm


@pytest.fixture(scope="module")
def remote(folder: Path) -> Iterator[LLM]:
    with LLM(folder, engine_process=True, engine_config=EngineConfig(max_num_seqs=4)) as llm:
        yield llm


async def test_the_process_answers_like_the_thread(llm: LLM, remote: LLM) -> None:
    assert remote.max_model_len == llm.max_model_len
    sampling = SamplingParams(max_tokens=10, temperature=1.0, seed=3)
    assert remote.generate([9, 8, 7], sampling).token_ids == llm.generate([9, 8, 7], sampling).token_ids
    request = ChatRequest(HELLO, (SEARCH,), ToolChoice("required", parallel=False))
    there, here = await collect_async(remote.stream(request)), await collect_async(llm.stream(request))
    assert there.message == here.message and there.finish_reason == here.finish_reason == "tool_calls"


async def test_the_load_crosses_the_pipe(remote: LLM) -> None:
    before = remote.load.cache_queries
    stream = remote.stream(ChatRequest(HELLO, sampling=SamplingParams(max_tokens=400, ignore_eos=True)))
    await anext(stream)
    assert remote.load.running == 1 and 0 < remote.load.cache_usage < 1
    assert remote.load.cache_queries > before
    await stream.aclose()
    await collect_async(remote.stream(ChatRequest(HELLO, sampling=SamplingParams(max_tokens=1))))
    assert remote.load.running == remote.load.waiting == 0 and remote.load.cache_usage == 0


async def test_refusals_cross_the_pipe_as_they_are(remote: LLM) -> None:
    bad = ToolSpec.function("bad", "", {"type": "object", "properties": {"a": {"type": "nonsense"}}})
    with pytest.raises(SchemaError, match="bad") as caught:
        await anext(remote.stream(ChatRequest(HELLO, (bad,))))
    assert caught.value.param == "tools"
    outcomes: list[Outcome] = []
    remote._engine.submit(Submission("long", [1] * 600, SamplingParams(), frozenset()), outcomes.append)
    for _ in range(200):
        if outcomes:
            break
        await asyncio.sleep(0.05)
    assert isinstance(outcomes[0], ContextLengthError) and outcomes[0].prompt_tokens == 600
    assert remote.is_alive


@pytest.mark.slow
def test_what_the_builder_raises_is_raised_here(tmp_path: Path, folder: Path) -> None:
    broken = tmp_path / "broken"
    save_model(random_model(tiny_config(len(tiny_ranks()))), broken, copy_from=folder)
    (broken / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        LLM(broken, engine_process=True)


async def test_a_killed_engine_is_reported_to_everybody(remote: LLM) -> None:
    """The last test of this engine."""
    engine: Any = remote._engine
    stream = remote.stream(ChatRequest(HELLO, sampling=SamplingParams(temperature=1.0, ignore_eos=True)))
    await anext(stream)
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineDeadError, match="killed"):
        async for _ in stream:
            pass
    assert not remote.is_alive
    with pytest.raises(EngineDeadError):
        remote.generate([1])


def test_closing_ends_what_still_runs(folder: Path) -> None:
    llm = LLM(folder)
    outcomes: list[Outcome] = []
    endless = SamplingParams(temperature=1.0, ignore_eos=True)
    llm._engine.submit(Submission("endless", [1], endless, frozenset()), outcomes.append)
    llm.close()
    assert isinstance(outcomes[-1], (EngineDeadError, StepOutput))
    with pytest.raises(EngineDeadError):
        llm.chat(HELLO)


PARENT = """
import os, sys, time
from openk2.llm import LLM

if __name__ == "__main__":
    llm = LLM(sys.argv[1], engine_process=True)
    print(llm._engine.pid, flush=True)
    time.sleep(60)
"""


def test_no_engine_outlives_a_killed_parent(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(400):
        if not Path(f"/proc/{child}").exists():
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the engine process went on without its parent")
