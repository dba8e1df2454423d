"""Figures of a run that are reported and not judged: what is right for them, only a reference run knows."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from openk2.evals.verify.check import Figure
from openk2.evals.verify.records import Record
from openk2.evals.verify.rules import foreign_id, is_too_long, leaked_marker
from openk2.evals.verify.validity import call_faults

LOOP_REPEATS = 4
"""So many times the same end of a text in a row is a loop."""
LOOP_CHARS = 8
"""The shortest piece that is looked for."""


def figures_of(records: Sequence[Record]) -> list[Figure]:
    """Rates over the answers of a run, and its speed."""
    answered = [record for record in records if record.status == "success"]
    calling = [record for record in answered if record.calls]
    said = [record for record in answered if record.finish_reason == "tool_calls"]
    streamed = [record for record in answered if record.request.get("stream")]

    def rate(name: str, meaning: str, counted: Sequence[Record], hit: Callable[[Record], bool]) -> Figure:
        return Figure(name, sum(map(hit, counted)) / len(counted) if counted else None, meaning, len(counted))

    return [
        rate("called", "answers with finish_reason tool_calls", answered, lambda r: r.finish_reason == "tool_calls"),
        rate("schema accuracy", "of these, all calls are valid", said, lambda r: r.tool_calls_valid is True),
        rate("undeclared tools", "calling answers that name another tool", calling, _names_another_tool),
        rate("canonical ids", "calling answers with the model's own ids", calling, lambda r: not foreign_id(r.calls)),
        rate("marker leaks", "answers with control tokens as text", answered, _leaks),
        rate("cut off", "answers that ended at the token limit", answered, lambda r: r.finish_reason == "length"),
        rate("cut calls", "of calling answers, those cut at the limit", calling, lambda r: r.finish_reason == "length"),
        rate(
            "empty turns", "answers with neither text nor calls", answered, lambda r: not r.calls and not r.text.strip()
        ),
        rate("loops", "answers that repeat themselves or a call", answered, _loops),
        rate("too long", "requests that did not fit the window", records, is_too_long),
        _seconds("time to first", "median seconds to a stream's first event", [r.first_ms for r in streamed]),
        _seconds("time to answer", "median seconds to the whole answer", [r.duration_ms for r in answered]),
    ]


def is_loop(text: str) -> bool:
    """Whether the text ends in one piece, repeated."""
    end = f" {' '.join(text.split())}"[-4000:]  # each piece then begins alike, the first one too
    return any(end.endswith(end[-size:] * LOOP_REPEATS) for size in range(LOOP_CHARS, len(end) // LOOP_REPEATS + 1))


def _loops(record: Record) -> bool:
    repeated = Counter((call.name, call.arguments) for call in record.calls)
    return is_loop(record.text) or any(count >= LOOP_REPEATS for count in repeated.values())


def _names_another_tool(record: Record) -> bool:
    return any(fault.kind == "undeclared" for fault in call_faults(record.calls, record.request.get("tools") or ()))


def _leaks(record: Record) -> bool:
    return leaked_marker(record.request, record.text, record.calls) is not None


def _seconds(name: str, meaning: str, ms: Sequence[float]) -> Figure:
    return Figure(name, statistics.median(ms) / 1000 if ms else None, meaning, len(ms), percent=False)
