"""A deployment under load. Reported, not judged: only a batch-invariant engine can promise the same greedy answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from openk2.evals.verify.check import Figure
from openk2.evals.verify.deployment import Deployment
from openk2.evals.verify.generator import MAX_TOKENS
from openk2.evals.verify.reply import Reply
from openk2.evals.verify.runner import gathered
from openk2.evals.verify.validity import call_faults

QUESTIONS = 8
LOADS = (8, 32)
"""Requests at the same time."""
ABANDONED_TOKENS = 1024
"""Enough that an answer which is not stopped is still being made when the next question comes."""


def loads_within(most: int | None) -> tuple[int, ...]:
    """The loads that a user who allows `most` requests at a time has agreed to; None is all."""
    return tuple(load for load in LOADS if most is None or load <= most)


async def load_figures(
    loaded: Deployment,
    lines: Sequence[dict[str, Any]],
    loads: Sequence[int],
    *,
    on_done: Callable[[], None] = lambda: None,
) -> list[Figure]:
    """Greedy answers to the first lines: as streams, and under load, against each asked alone; and after hanging up.

    `loaded` lets as many requests through as the largest load has. `on_done` is called 2 + len(loads) times.
    """
    bodies = []
    for line in lines[:QUESTIONS]:
        body = {key: value for key, value in line.items() if key not in ("stream", "stream_options")}
        bodies.append(
            {**body, "temperature": 0, "seed": 1, "max_tokens": min(64, body.get("max_tokens") or MAX_TOKENS)}
        )
    alone = [await loaded.ask(body) for body in bodies]
    streamed = [
        await loaded.ask({**body, "stream": True, "stream_options": {"include_usage": True}}) for body in bodies
    ]
    on_done()
    figures = [
        _equal("stream parity", "greedy streams that equal the answer not streamed", alone, streamed),
        _valid("schema accuracy alone", bodies, alone),
    ]
    for load in loads:
        chosen = [number % len(bodies) for number in range(load)]
        replies = await gathered([loaded.ask(bodies[number]) for number in chosen])
        meaning = "greedy answers that equal the one of a request alone"
        figures.append(_equal(f"same at {load} at once", meaning, [alone[number] for number in chosen], replies))
        figures.append(_valid(f"schema accuracy at {load}", [bodies[number] for number in chosen], replies))
        on_done()
    figures.append(await _abort_latency(loaded))
    on_done()
    return figures


async def _abort_latency(loaded: Deployment) -> Figure:
    """What a short question waits longer for when as many long answers were just hung up on as may run at a time."""
    question = {"messages": [{"role": "user", "content": "Count to a thousand."}], "temperature": 0, "max_tokens": 1}
    long = {**question, "max_tokens": ABANDONED_TOKENS, "ignore_eos": True}
    idle = [await _seconds(loaded, question) for _ in range(3)]
    begun = await gathered([loaded.abandon(long) for _ in range(loaded.concurrency)])
    after = await _seconds(loaded, question)
    known = None not in idle and after is not None and all(begun)
    value = after - sorted(s for s in idle if s is not None)[1] if known and after is not None else None
    meaning = f"seconds that a question waits longer after {loaded.concurrency} streams were hung up on"
    return Figure("abort latency", value, meaning, sum(begun), percent=False)


async def _seconds(deployment: Deployment, body: Mapping[str, Any]) -> float | None:
    started = time.perf_counter()
    reply = await deployment.ask(body)
    return None if reply.error is not None else time.perf_counter() - started


def _equal(name: str, meaning: str, expected: Sequence[Reply], found: Sequence[Reply]) -> Figure:
    """A request that failed alone says nothing; one that fails only now was not answered the same."""
    pairs = [(one, other) for one, other in zip(expected, found, strict=True) if one.error is None]
    same = sum(other.error is None and _said(one) == _said(other) for one, other in pairs)
    return Figure(name, same / len(pairs) if pairs else None, meaning, len(pairs))


def _valid(name: str, bodies: Sequence[Mapping[str, Any]], replies: Sequence[Reply]) -> Figure:
    calling = [(b, r) for b, r in zip(bodies, replies, strict=True) if r.error is None and r.calls]
    calling = [(b, r) for b, r in calling if r.finish_reason == "tool_calls"]
    valid = sum(not call_faults(r.calls, b.get("tools") or ()) for b, r in calling)
    meaning = "greedy calling answers whose calls are all valid"
    return Figure(name, valid / len(calling) if calling else None, meaning, len(calling))


def _said(reply: Reply) -> str:
    """Everything but ids, which some servers draw at random."""
    calls = [(call.name, call.arguments) for call in reply.calls]
    return json.dumps([reply.text, calls, reply.finish_reason])
