"""Answer tokens/s through the server, beside the library on the same weights in the same run.

    python benchmarks/server_speed.py [--models k2-nano mini] [--streams 1 8 64] [--rounds N] [--json FILE]

`mini` (random weights, see `engine_speed`) is written to a temporary folder and served with k2-nano's tokenizer. Both
sides answer the same chat requests, streamed, greedy, at the same concurrency, in turns; each figure is the median of
the rounds, a ratio the server's to the library's. A gap is the time between two pieces of text of one answer. The
server runs as users start it, HTTP and JSON included; its processor time is that of the process before the engine's,
and on Linux tells what a token costs there on a busy machine, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import torch

from openk2 import LLM
from openk2.bench.limits import processor_name
from openk2.chat.events import Finished, TextDelta
from openk2.chat.messages import Message
from openk2.chat.provider import ChatRequest
from openk2.checkpoint import random_model, save_model
from openk2.config import SamplingParams, preset
from server_process import cpu_seconds, server_process

QUESTIONS = ("Hello, who are you?", "What can you do?", "Tell me about yourself.", "Thanks a lot!")


@dataclass(frozen=True)
class Answer:
    seconds_to_text: float
    tokens: int
    gaps: list[float]
    """Seconds between one piece of text and the next."""


class Stopwatch:
    """Of one streamed answer: call `text` when a piece of it has come."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.times: list[float] = []

    def text(self) -> None:
        self.times.append(time.perf_counter())

    def answer(self, tokens: int) -> Answer:
        first = self.times[0] - self.started if self.times else time.perf_counter() - self.started
        return Answer(first, tokens, [b - a for a, b in pairwise(self.times)])


@contextlib.contextmanager
def serving(model: str, tokenizer: str | None) -> Iterator[tuple[str, int]]:
    """Base URL and process id of `openk2 serve MODEL`, once it is healthy."""
    arguments = ["-m", "openk2", "serve", model, *(["--tokenizer", tokenizer] if tokenizer else [])]
    with server_process(arguments) as (url, server):
        yield url, server.pid


async def ask_server(client: httpx2.AsyncClient, model: str, question: str, max_tokens: int) -> Answer:
    watch, tokens = Stopwatch(), 0
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                watch.text()
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    return watch.answer(tokens)


async def ask_library(llm: LLM, question: str, max_tokens: int) -> Answer:
    watch, tokens = Stopwatch(), 0
    request = ChatRequest((Message("user", question),), sampling=SamplingParams(temperature=0.0, max_tokens=max_tokens))
    async for event in llm.stream(request):
        if isinstance(event, TextDelta):
            watch.text()
        if isinstance(event, Finished):
            tokens = event.usage.completion_tokens
    return watch.answer(tokens)


@dataclass(frozen=True)
class Load:
    """What a round of requests came to."""

    rate: float
    """Answer tokens/s over all."""
    seconds_to_text: float
    """Median."""
    gap_p99: float
    """Seconds between two pieces of text of one answer that 99% of the gaps stay below."""
    tokens: int


async def load(ask: Callable[[str], Awaitable[Answer]], streams: int, requests: int) -> Load:
    """`requests` requests, `streams` at a time."""
    answers: list[Answer] = []
    questions: Iterator[str] = (QUESTIONS[i % len(QUESTIONS)] for i in range(requests))

    async def worker() -> None:
        answers.extend([await ask(question) for question in questions])

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(streams)))
    seconds, tokens = time.perf_counter() - started, sum(a.tokens for a in answers)
    gaps = sorted(gap for a in answers for gap in a.gaps)
    p99 = gaps[int(0.99 * (len(gaps) - 1))] if gaps else math.nan
    return Load(tokens / seconds, statistics.median(a.seconds_to_text for a in answers), p99, tokens)


@contextlib.asynccontextmanager
async def sides(model: str, tokenizer: str | None, max_tokens: int) -> AsyncIterator[tuple[dict[str, Any], int]]:
    """How to ask each side, and the server's process."""
    with serving(model, tokenizer) as (base, pid), LLM(model, tokenizer=tokenizer, engine_process=True) as llm:
        async with httpx2.AsyncClient(base_url=base, timeout=600) as client:
            served = (await client.get("/v1/models")).json()["data"][0]["id"]
            asks = {
                "server": lambda question: ask_server(client, served, question, max_tokens),
                "library": lambda question: ask_library(llm, question, max_tokens),
            }
            yield asks, pid


async def measure(model: str, tokenizer: str | None, arguments: argparse.Namespace) -> dict[str, Any]:
    cases: dict[str, Any] = {}
    async with sides(model, tokenizer, arguments.max_tokens) as (asks, pid):
        for streams in arguments.streams:
            figures: dict[str, list[Load]] = {side: [] for side in asks}
            cpu_per_token: list[float] = []
            for round_number in range(arguments.rounds + 1):  # the first warms up
                for side in sorted(asks, reverse=bool(round_number % 2)):
                    cpu = cpu_seconds(pid)
                    figure = await load(asks[side], streams, max(arguments.requests, streams))
                    if round_number:
                        figures[side].append(figure)
                        if side == "server":
                            cpu_per_token.append((cpu_seconds(pid) - cpu) / figure.tokens)
            rates = {side: statistics.median(f.rate for f in values) for side, values in figures.items()}
            gaps = {side: statistics.median(f.gap_p99 for f in values) for side, values in figures.items()}
            cases[f"{streams} at a time"] = {
                **{f"{side} tok/s": round(rate, 1) for side, rate in rates.items()},
                "ratio": round(rates["server"] / rates["library"], 2),
                **{
                    f"{side} first text ms": round(1000 * statistics.median(f.seconds_to_text for f in values), 1)
                    for side, values in figures.items()
                },
                **{f"{side} p99 gap ms": round(1000 * gap, 1) for side, gap in gaps.items()},
                "gap ratio": round(gaps["server"] / gaps["library"], 2),
                "server CPU us/token": round(1e6 * statistics.median(cpu_per_token), 1),
                "same tokens": figures["server"][0].tokens == figures["library"][0].tokens,
            }
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["k2-nano", "mini"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--requests", type=int, default=8, help="of each case and round")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    results: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/server_speed.py", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "machine": {"cpu": processor_name(), "threads": torch.get_num_threads()},
        "versions": {"torch": torch.__version__},
        "models": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            path, tokenizer = name, None
            if name == "mini":
                path, tokenizer = str(Path(folder) / "mini"), "k2-nano"
                save_model(random_model(preset("mini")), path, dtype=torch.bfloat16)
            results["models"][name] = asyncio.run(measure(path, tokenizer, arguments))
    print(json.dumps(results, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
