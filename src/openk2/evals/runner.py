"""Puts cases to a ChatProvider and scores what comes back.

report = evaluate(provider, written_cases("builtin"), grammar=True, concurrency=8)
report.figures("builtin", grammar=True)["whole call"]      # Share(right=74, n=78)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from openk2.chat.events import collect_async
from openk2.chat.messages import Completion
from openk2.chat.provider import ChatProvider, ChatRequest
from openk2.config.sampling import SamplingParams
from openk2.errors import OverloadedError, RequestError
from openk2.evals.cases import Case
from openk2.evals.records import Record, RecordFile
from openk2.evals.report import Report

MAX_ANSWER_TOKENS = 512
OVERLOAD_RETRIES = 5
OVERLOAD_WAIT_S = 0.5
"""Before the first retry; doubled before each further one."""


@dataclass(frozen=True)
class Job:
    """One case, asked with or without the tool grammar."""

    case: Case
    grammar: bool


def evaluate(
    provider: ChatProvider,
    cases: Iterable[Case],
    *,
    grammar: bool | Sequence[bool] = True,
    concurrency: int = 8,
    sampling: SamplingParams | None = None,
    records: RecordFile | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> Report:
    """Run `evaluate_async` to its end; for callers without a running event loop, such as a trainer."""
    return asyncio.run(
        evaluate_async(
            provider,
            cases,
            grammar=grammar,
            concurrency=concurrency,
            sampling=sampling,
            records=records,
            on_record=on_record,
        )
    )


async def evaluate_async(
    provider: ChatProvider,
    cases: Iterable[Case],
    *,
    grammar: bool | Sequence[bool] = True,
    concurrency: int = 8,
    sampling: SamplingParams | None = None,
    records: RecordFile | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> Report:
    """Ask `provider` every case, at most `concurrency` at a time, and score the answers.

    `grammar` may be several settings: each case is then asked once with each. The sampling is greedy with at most
    `MAX_ANSWER_TOKENS` tokens unless given. Replies in `records` are not asked again, and new ones are added to it;
    `on_record` sees each new one. A refused request counts as failed; an overloaded provider is asked again.

    Raises ProviderError when the provider fails: what was answered until then is in `records`.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")
    sampling = sampling or SamplingParams(temperature=0.0, max_tokens=MAX_ANSWER_TOKENS)
    cases = tuple(cases)
    settings = (grammar,) if isinstance(grammar, bool) else tuple(dict.fromkeys(grammar))
    jobs = [Job(case, setting) for setting in settings for case in cases]
    replies: list[Completion | None] = [None] * len(jobs)
    waiting = []
    for number, job in enumerate(jobs):
        known = records.find(job.case, job.grammar) if records is not None else None
        if known is None:
            waiting.append(number)
        else:
            replies[number] = known.completion()
    queue = iter(waiting)

    async def work() -> None:
        for number in queue:
            job = jobs[number]
            reply, error = await _ask(provider, job, sampling)
            replies[number] = reply
            record = Record.of(job.case, job.grammar, reply, error)
            if records is not None:
                records.add(record)
            if on_record is not None:
                on_record(record)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(waiting))):
                group.create_task(work())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return Report(
        provider.model, tuple((job.case, job.grammar, reply) for job, reply in zip(jobs, replies, strict=True))
    )


async def _ask(provider: ChatProvider, job: Job, sampling: SamplingParams) -> tuple[Completion | None, str | None]:
    """The answer, or None and why the request was refused."""
    request = ChatRequest(job.case.messages, job.case.tools, sampling=sampling, grammar=job.grammar)
    wait_s = OVERLOAD_WAIT_S
    for attempt in range(OVERLOAD_RETRIES + 1):
        try:
            return await collect_async(provider.stream(request)), None
        except RequestError as error:
            return None, str(error)
        except OverloadedError:
            if attempt == OVERLOAD_RETRIES:
                raise
            await asyncio.sleep(wait_s)
            wait_s *= 2
    raise AssertionError("the last attempt returns or raises")
