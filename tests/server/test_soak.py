"""A small crowd of clients, well-behaved and not, for some seconds; `benchmarks/soak.py` is the large one."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

from benchmarks.soak import ACTIONS, added_up, grown, soak, told
from tests.support.tiny_model import save_tiny_model

from openk2.engine import EngineConfig
from openk2.llm import LLM

from .conftest import running


def test_a_crowd_leaves_the_server_as_it_was(tmp_path: Path) -> None:
    config = EngineConfig(max_num_seqs=8, max_num_batched_tokens=64)
    with LLM(save_tiny_model(tmp_path / "tiny-k2"), engine_config=config) as llm, running(llm) as server:
        threads = threading.active_count()
        report = asyncio.run(soak(server.url, None, minutes=0.1, clients=16, seed=0))
        pool = min(32, (os.cpu_count() or 1) + 4)  # the event loop's own, for what may block
        assert threading.active_count() <= threads + pool
    assert report["faults"] == []
    assert report["requests"].keys() == {action.__name__.strip("_") for action in ACTIONS}
    assert report["metrics"] and not any(report["metrics"].values())


def test_what_differs_is_seen() -> None:
    def stream(*fragments: str) -> list[dict[str, object]]:
        return [
            {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in fragments
        ] + [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]

    path = "/v1/chat/completions"
    whole = {"choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}]}
    assert told(path, added_up(path, stream("Hel", "lo"))) == told(path, whole)
    assert told(path, added_up(path, stream("Hel", "l"))) != told(path, whole)
    before = {"threads": 5, "files": 9, "memory_mib": 100}
    assert grown(before, before) == []
    assert grown(before, {"threads": 6, "files": 9, "memory_mib": 100}) == ["threads grew from 5 to 6"]
