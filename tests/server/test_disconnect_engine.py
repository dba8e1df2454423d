"""A client that goes away frees place and cache in the engine within one step, whatever its request was at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.tiny_model import save_tiny_model

from openk2.engine import Engine, EngineConfig
from openk2.llm import LLM

from .conftest import eventually, metric, running
from .test_disconnect import open_request

CONFIG = EngineConfig(max_num_seqs=4, max_num_batched_tokens=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-k2")


class Steps:
    """Stops the engine before every step until the test lets it take one; counts what goes to the engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine: Engine | None = None
        self.is_at_gate = False
        self.taken = 0
        self.submitted = 0
        self.aborted = 0
        self._permits = threading.Semaphore(0)
        self._is_open = False
        step = Engine.step

        def gated(engine: Engine) -> object:
            self.engine = engine
            if not self._is_open:
                self.is_at_gate = True
                self._permits.acquire()
                self.is_at_gate = False
            outputs = step(engine)
            self.taken += 1
            return outputs

        monkeypatch.setattr(Engine, "step", gated)

    def watch(self, llm: LLM) -> None:
        engine = llm._engine
        submit, abort = engine.submit, engine.abort

        def counting_submit(*args: object) -> None:
            submit(*args)
            self.submitted += 1

        def counting_abort(request_id: str) -> None:
            abort(request_id)
            self.aborted += 1

        engine.submit, engine.abort = counting_submit, counting_abort

    def take(self) -> None:
        assert eventually(lambda: self.is_at_gate)
        before = self.taken
        self._permits.release()
        assert eventually(lambda: self.taken > before)

    def take_until(self, condition: Callable[[Engine], bool]) -> None:
        for _ in range(100):
            self.take()
            assert self.engine is not None
            if condition(self.engine):
                return
        raise AssertionError("the state was not reached")

    def open(self) -> None:
        self._is_open = True
        self._permits.release()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    steps = Steps(monkeypatch)
    yield steps
    steps.open()


def is_prefilling(engine: Engine) -> bool:
    return any(request.is_prefilling for request in engine.scheduler.running)


def is_decoding(n: int) -> Callable[[Engine], bool]:
    return lambda engine: sum(request.num_answer_tokens > 1 for request in engine.scheduler.running) == n


def body(n: int, stream: bool, words: int) -> dict[str, object]:
    text = " ".join(f"word{i}" for i in range(words))
    return {
        "messages": [{"role": "user", "content": text}],
        "n": n,
        "stream": stream,
        "ignore_eos": True,
        "max_tokens": 200,
    }


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("state", ["queued", "prefilling", "decoding"])
def test_within_one_step(folder: Path, steps: Steps, state: str, stream: bool, n: int) -> None:
    with ExitStack() as stack:
        llm = stack.enter_context(LLM(folder, engine_config=CONFIG))
        stack.callback(steps.open)  # before the engine is closed
        steps.watch(llm)
        url = stack.enter_context(running(llm)).url
        others = 4 if state == "queued" else 0
        if others:
            company = open_request(url, body(others, True, words=4))
            assert eventually(lambda: steps.submitted == others)
            steps.take_until(is_decoding(others))
        connection = open_request(url, body(n, stream, words=30))
        assert eventually(lambda: steps.submitted == others + n)
        steps.take_until(
            {
                "queued": lambda engine: len(engine.scheduler.waiting) == n,
                "prefilling": is_prefilling,
                "decoding": is_decoding(n),
            }[state]
        )
        engine = steps.engine
        assert engine is not None and eventually(lambda: steps.is_at_gate)

        connection.close()
        assert eventually(lambda: steps.aborted == n)
        before = steps.taken
        steps.take()  # the one that the engine was about to take when the client went away
        assert eventually(lambda: engine.stats().running == others and engine.stats().waiting == 0)
        if others:
            company.close()
            assert eventually(lambda: steps.aborted == n + others)
            steps.take()
        else:
            assert steps.taken == before + 1
        assert eventually(lambda: engine.stats().free_blocks == engine.stats().total_blocks)
        assert eventually(lambda: metric(url, "openk2:requests_aborted_total") == 1 + bool(others))
        assert metric(url, "vllm:num_requests_running") == metric(url, "vllm:num_requests_waiting") == 0
        assert metric(url, "vllm:kv_cache_usage_perc") == 0
