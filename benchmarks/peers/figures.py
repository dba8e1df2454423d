"""What is timed, and the line of JSON in which a worker is asked for it and answers."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

BATCH_CONTEXT = 128
"""Tokens before each of the sequences that decode together."""
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Figure:
    """prefill: one prompt of `context` tokens, until its last logits. decode: `steps` tokens of each of `batch`
    sequences that have `context` tokens before them."""

    kind: str
    context: int
    batch: int = 1
    steps: int = 32

    @property
    def name(self) -> str:
        return f"batch-{self.batch}" if self.batch > 1 else f"{self.kind}-{self.context}"

    @property
    def tokens(self) -> int:
        return self.context if self.kind == "prefill" else self.batch * self.steps


FIGURES = {
    figure.name: figure
    for figure in (
        *(Figure("prefill", context) for context in (128, 512, 2048)),
        Figure("decode", 0),
        Figure("decode", 1024),
        Figure("decode", 4096, steps=16),
        *(Figure("decode", BATCH_CONTEXT, batch, steps=16) for batch in (4, 8)),
    )
}
WARM_UP = FIGURES["prefill-128"]
LONGEST = max(figure.context + figure.steps for figure in FIGURES.values()) + WARM_UP_STEPS + 1
MOST_TOGETHER = max(figure.batch for figure in FIGURES.values())


def prompts(figure: Figure, vocab_size: int, seed: str) -> list[list[int]]:
    """Equal for all sides. Those of decode figures are the same for every seed, so that a side may keep what it has
    cached of them; at least one token, which stands for "no context"."""
    rng = random.Random(f"{figure.name} {seed if figure.kind == 'prefill' else ''}")
    length = max(figure.context, 1)
    return [[rng.randrange(3, vocab_size) for _ in range(length)] for _ in range(figure.batch)]


@dataclass(frozen=True)
class Sample:
    seconds: float
    cpu_seconds: float
    """Of the worker's process, all threads: what other work on the machine does not touch so much."""
    last_tokens: list[int]
    """The likeliest token after each prompt."""


class Side(Protocol):
    """One engine with one model in memory."""

    def prepare(self, figure: Figure, threads: int) -> None:
        """What is not timed: fill the cache, touch the memory."""
        ...

    def run(self, figure: Figure, seed: str) -> Sample: ...


class Clock:
    """`with Clock() as clock: ...`, then `seconds` and `cpu_seconds`."""

    def __enter__(self) -> Clock:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.cpu_seconds = time.perf_counter() - self._wall, time.process_time() - self._cpu


def answer(load: Callable[[], Side]) -> None:
    """A worker's life: load, then one answer for each line of stdin. What a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with Clock() as clock:
        side = load()
    print(json.dumps({"load_s": clock.seconds}), file=answers)
    prepared = None
    for line in sys.stdin:
        asked = json.loads(line)
        figure, threads = FIGURES[asked["figure"]], asked["threads"]
        if prepared != (figure, threads):
            side.prepare(figure, threads)
            prepared = (figure, threads)
        print(json.dumps(asdict(side.run(figure, asked["seed"])) | {"resident_mb": resident_mb()}), file=answers)


def resident_mb() -> int:
    with open("/proc/self/status") as status:  # noqa: PTH123 - not a file on a disk
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) // 1024
