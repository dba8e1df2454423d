"""Puts request lines to a deployment and keeps a record of each answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from openk2.evals.verify.deployment import Deployment
from openk2.evals.verify.records import Record, RecordLog
from openk2.evals.verify.requests import fingerprint

T = TypeVar("T")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


async def run_lines(
    deployment: Deployment,
    bodies: Sequence[Mapping[str, Any]],
    extra_body: Mapping[str, Any],
    *,
    log: RecordLog | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> list[Record]:
    """One record for each prepared body, in order. Answers that `log` has are not asked again; new ones are added."""

    async def run(index: int, body: Mapping[str, Any]) -> Record:
        known = log.find(index) if log is not None else None
        if known is None:
            sent = {**body, **extra_body}
            reply = await deployment.ask(sent)
            known = Record.of(index, body, extra_body, reply, at=now(), digest=fingerprint(sent))
            if log is not None:
                log.add(known)
        on_done()
        return known

    return await gathered([run(index, body) for index, body in enumerate(bodies, start=1)])


async def gathered(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order; the first failure ends the others and is raised alone."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
