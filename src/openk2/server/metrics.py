"""What a server has done, in the Prometheus text format.

The names are vLLM's, as are the labels, so that the dashboards which exist for it show this server; what vLLM does not
count begins with `openk2:`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from openk2.chat.events import CallDelta, ChatEvent, Finished, ReasoningDelta, TextDelta
from openk2.chat.messages import Usage
from openk2.chat.provider import ProviderFigure, ProviderLoad
from openk2.server.request_record import RequestRecord

NamedLoad = tuple[str, ProviderLoad]
"""The model's name, and what it has to do."""

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_GAP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_TOKENS = tuple(base * 10**power for power in range(6) for base in (1, 2, 5))


class Metrics:
    """Each application has its own registry, so that two in one process do not add up."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(
        self, load: Callable[[], NamedLoad | None], figures: Callable[[], Iterable[ProviderFigure]] = tuple
    ) -> None:
        registry = CollectorRegistry()

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(name, help_text, labels, registry=registry)

        def histogram(name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, help_text, ("model_name",), buckets=buckets, registry=registry)

        self._registry = registry
        registry.register(_LoadCollector(load))
        registry.register(_FigureCollector(figures))
        self.success = counter(
            "vllm:request_success", "Answers finished (each of n counts).", "model_name", "finished_reason"
        )
        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of finished answers.", "model_name")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens of finished answers.", "model_name")
        self.first = histogram(
            "vllm:time_to_first_token_seconds", "From the request to the first of its answer.", _SECONDS
        )
        self.gap = histogram(
            "vllm:inter_token_latency_seconds", "From one piece of an answer to the next.", _GAP_SECONDS
        )
        self.per_token = histogram(
            "vllm:request_time_per_output_token_seconds", "Of an answer, after its first token.", _GAP_SECONDS
        )
        self.e2e = histogram("vllm:e2e_request_latency_seconds", "From the request to the answer's end.", _SECONDS)
        self.request_prompt_tokens = histogram("vllm:request_prompt_tokens", "Prompt tokens of an answer.", _TOKENS)
        self.request_generation_tokens = histogram("vllm:request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self.failed = counter("openk2:requests_failed", "Requests whose answer ended in an error.", "model_name")
        self.aborted = counter("openk2:requests_aborted", "Requests whose client went away.", "model_name")
        self.empty = counter("openk2:empty_turns", "Answers that ended by themselves with nothing said.", "model_name")
        self._refused = counter("openk2:requests_refused", "Requests refused because too many waited.")

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def refused(self) -> None:
        self._refused.inc()

    def meter(self, record: RequestRecord) -> RequestMeter:
        return RequestMeter(self, record)


class RequestMeter:
    """Follows the events of one request, for the metrics and for the request's record."""

    def __init__(self, metrics: Metrics, record: RequestRecord) -> None:
        self._metrics = metrics
        self._record = record
        self._model = record.model or ""
        self._gap = metrics.gap.labels(self._model)
        self._first_s: dict[int, float] = {}
        self._last_s: dict[int, float] = {}
        """Of each choice, when its first and its last piece came."""

    def saw(self, choice: int, event: ChatEvent) -> None:
        now = self._record.elapsed_s
        if self._record.first_event_s is None:
            self._record.first_event_s = now
            self._metrics.first.labels(self._model).observe(now)
        match event:
            case ReasoningDelta() | TextDelta() | CallDelta():
                if choice in self._last_s:
                    self._gap.observe(now - self._last_s[choice])
                self._first_s.setdefault(choice, now)
                self._last_s[choice] = now
            case Finished(reason, usage):
                self._finished(choice, reason, usage, now)

    def end(self) -> None:
        """No event comes any more, for the reason that the record tells."""
        self._metrics.e2e.labels(self._model).observe(self._record.elapsed_s)
        if self._record.was_aborted:
            self._metrics.aborted.labels(self._model).inc()
        elif self._record.error is not None:
            self._metrics.failed.labels(self._model).inc()

    def _finished(self, choice: int, reason: str, usage: Usage, now: float) -> None:
        metrics, model = self._metrics, self._model
        self._record.finish_reasons.append(reason)
        self._record.add_usage(usage)
        metrics.success.labels(model, reason).inc()
        metrics.prompt_tokens.labels(model).inc(usage.prompt_tokens)
        metrics.generation_tokens.labels(model).inc(usage.completion_tokens)
        metrics.request_prompt_tokens.labels(model).observe(usage.prompt_tokens)
        metrics.request_generation_tokens.labels(model).observe(usage.completion_tokens)
        if choice in self._first_s and usage.completion_tokens > 1:
            metrics.per_token.labels(model).observe((now - self._first_s[choice]) / (usage.completion_tokens - 1))
        if choice not in self._first_s and reason == "stop":
            metrics.empty.labels(model).inc()


class _LoadCollector(Collector):
    """What the provider tells of itself, asked whenever the metrics are."""

    def __init__(self, load: Callable[[], NamedLoad | None]) -> None:
        self._load = load

    def collect(self) -> Iterator[Metric]:
        named = self._load()
        if named is None:
            return
        model, load = named
        for kind, name, help_text, value in (
            ("gauge", "num_requests_running", "Answers that are being made.", load.running),
            ("gauge", "num_requests_waiting", "Answers that wait for their turn.", load.waiting),
            ("gauge", "kv_cache_usage_perc", "Share of the cache in use; 1 is all.", load.cache_usage),
            ("counter", "prefix_cache_queries", "Prompt tokens looked for in the prefix cache.", load.cache_queries),
            ("counter", "prefix_cache_hits", "Prompt tokens found in the prefix cache.", load.cache_hits),
            ("counter", "num_preemptions", "Answers that gave up their place for want of cache.", load.preemptions),
        ):
            metric = Metric(f"vllm:{name}", help_text, kind)
            sample = f"{metric.name}_total" if kind == "counter" else metric.name
            metric.add_sample(sample, {"model_name": model}, value)
            yield metric


class _FigureCollector(Collector):
    """What else the provider tells."""

    def __init__(self, figures: Callable[[], Iterable[ProviderFigure]]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        metrics: dict[str, Metric] = {}
        for figure in self._figures():
            metric = metrics.setdefault(figure.name, Metric(figure.name, figure.help_text, figure.kind))
            sample = f"{figure.name}_total" if figure.kind == "counter" else figure.name
            metric.add_sample(sample, dict(figure.labels), figure.value)
        yield from metrics.values()
