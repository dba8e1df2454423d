"""The whole verification of a deployment: request lines, single questions, schemas, and what is only reported."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from openk2.client import RemoteProvider
from openk2.evals.verify.deployment import Deployment
from openk2.evals.verify.figures import figures_of
from openk2.evals.verify.loads import load_figures, loads_within
from openk2.evals.verify.records import RecordLog, summarize
from openk2.evals.verify.report import Report
from openk2.evals.verify.requests import Overrides, fingerprint, prepare
from openk2.evals.verify.rules import judge_records
from openk2.evals.verify.runner import now, run_lines
from openk2.evals.verify.scenarios import SCENARIOS, check_scenarios
from openk2.evals.verify.schema_checks import SchemaCase, check_schemas

DEFAULT_CONCURRENCY = 8


@dataclass(frozen=True)
class Plan:
    """What is asked."""

    bodies: Sequence[dict[str, Any]]
    """Prepared request lines."""
    overrides: Overrides
    schema_cases: Sequence[SchemaCase]
    window: int | None
    """Tokens, where the endpoint tells."""
    concurrency: int | None
    """Requests at a time, at most; None: 8, and more where a figure is about more."""

    @classmethod
    def of(
        cls,
        lines: Sequence[dict[str, Any]],
        overrides: Overrides,
        schema_cases: Sequence[SchemaCase],
        *,
        window: int | None,
        concurrency: int | None,
    ) -> Plan:
        return cls([prepare(line, overrides) for line in lines], overrides, schema_cases, window, concurrency)

    @property
    def hashes(self) -> list[str]:
        return [fingerprint({**body, **self.overrides.extra_body}) for body in self.bodies]

    @property
    def steps(self) -> int:
        """How often `on_done` is called."""
        return len(self.bodies) + len(SCENARIOS) + len(self.schema_cases) + 2 + len(loads_within(self.concurrency))


async def verify(
    provider: RemoteProvider,
    plan: Plan,
    *,
    log: RecordLog | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> Report:
    """Ask everything and judge it.

    Raises ProviderError when the endpoint cannot be reached, RequestError when it is none or refuses the key. A
    connection that breaks later is a fault of the answer that it broke.
    """
    deployment = Deployment(provider, plan.concurrency or DEFAULT_CONCURRENCY)
    await deployment.check_reachable()
    started_at, started = now(), time.perf_counter()
    records = await run_lines(deployment, plan.bodies, plan.overrides.extra_body, log=log, on_done=on_done)
    finished_at, ms = now(), (time.perf_counter() - started) * 1000
    checks = [
        *judge_records(records),
        *await check_scenarios(deployment, plan.window, on_done=on_done),
        *await check_schemas(deployment, plan.schema_cases, on_done=on_done),
    ]
    figures = figures_of(records)
    loads = loads_within(plan.concurrency)
    loaded = Deployment(provider, max(loads, default=plan.concurrency or DEFAULT_CONCURRENCY))
    figures += await load_figures(loaded, plan.bodies, loads, on_done=on_done)
    return Report(
        url=deployment.base_url,
        model=deployment.model,
        summary=summarize(records, deployment.model, started_at, finished_at, ms),
        checks=tuple(checks),
        figures=tuple(figures),
    )
