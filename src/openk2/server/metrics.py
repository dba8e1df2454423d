"""Counters of one server, in the Prometheus text format, named as vLLM names them (with our prefix)."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from openk2.chat.events import Finished
from openk2.server.streams import ChoiceEvent

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Each application has its own registry, so that two in one process do not add up."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = CollectorRegistry()

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"openk2:{name}", help_text, labels, registry=registry)

        def histogram(name: str, help_text: str) -> Histogram:
            return Histogram(f"openk2:{name}", help_text, buckets=_SECONDS, registry=registry)

        self._registry = registry
        self._running = Gauge("openk2:num_requests_running", "Requests being answered.", registry=registry)
        self._success = counter("request_success", "Answers finished (each of n counts).", "finished_reason")
        self._failed = counter("requests_failed", "Requests that ended in an error.")
        self._aborted = counter("requests_aborted", "Requests whose client went away.")
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of finished answers.")
        self._cached_tokens = counter("prompt_tokens_cached", "Of those, found in the prefix cache.")
        self._generation_tokens = counter("generation_tokens", "Tokens of finished answers.")
        self._ttft = histogram("time_to_first_token_seconds", "Until the first event of a request.")
        self._e2e = histogram("e2e_request_latency_seconds", "Until the end of a request.")

    def render(self) -> bytes:
        return generate_latest(self._registry)

    async def watch(self, events: AsyncGenerator[ChoiceEvent]) -> AsyncGenerator[ChoiceEvent]:
        """The same events; how the request went is counted when they end, fail or are closed early."""
        started = time.perf_counter()
        is_first = True
        outcome: Counter | None = self._aborted
        self._running.inc()
        try:
            async for choice, event in events:
                if is_first:
                    self._ttft.observe(time.perf_counter() - started)
                    is_first = False
                if isinstance(event, Finished):
                    self._count(event)
                yield choice, event
            outcome = None
        except Exception:
            outcome = self._failed
            raise
        finally:
            self._running.dec()
            self._e2e.observe(time.perf_counter() - started)
            if outcome is not None:
                outcome.inc()
            await events.aclose()

    def _count(self, finished: Finished) -> None:
        self._success.labels(finished.finish_reason).inc()
        self._prompt_tokens.inc(finished.usage.prompt_tokens)
        self._cached_tokens.inc(finished.usage.cached_tokens)
        self._generation_tokens.inc(finished.usage.completion_tokens)
