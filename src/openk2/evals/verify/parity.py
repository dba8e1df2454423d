"""Is a greedy answer the same however it is asked for? Reported: only a batch-invariant engine can promise it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from openk2.evals.verify.check import Figure
from openk2.evals.verify.deployment import Deployment
from openk2.evals.verify.generator import MAX_TOKENS
from openk2.evals.verify.reply import Reply
from openk2.evals.verify.runner import gathered

QUESTIONS = 8
LOADS = (8, 32)
"""Requests at the same time."""


async def parity_figures(
    loaded: Deployment, lines: Sequence[dict[str, Any]], *, on_done: Callable[[], None] = lambda: None
) -> list[Figure]:
    """Greedy answers to the first lines: as streams, and under load, against each asked alone.

    `loaded` lets as many requests through as the largest load has.
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
    meaning = "greedy answers that equal the one of a request alone"
    figures = [_equal("stream parity", "greedy streams that equal the answer not streamed", alone, streamed)]
    for load in LOADS:
        chosen = [number % len(bodies) for number in range(load)]
        replies = await gathered([loaded.ask(bodies[number]) for number in chosen])
        figures.append(_equal(f"same at {load} at once", meaning, [alone[number] for number in chosen], replies))
        on_done()
    return figures


def _equal(name: str, meaning: str, expected: Sequence[Reply], found: Sequence[Reply]) -> Figure:
    """A request that failed alone says nothing; one that fails only now was not answered the same."""
    pairs = [(one, other) for one, other in zip(expected, found, strict=True) if one.error is None]
    same = sum(other.error is None and _said(one) == _said(other) for one, other in pairs)
    return Figure(name, same / len(pairs) if pairs else None, meaning, len(pairs))


def _said(reply: Reply) -> str:
    """Everything but ids, which some servers draw at random."""
    calls = [(call.name, call.arguments) for call in reply.calls]
    return json.dumps([reply.text, calls, reply.finish_reason])
