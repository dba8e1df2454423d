"""Run the cases on an engine of this process, and hold each beside the machine's limit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from openk2.bench.cases import Case
from openk2.bench.limits import MachineLimits
from openk2.checkpoint import Checkpoint, Quantization
from openk2.config import Mode, SamplingParams
from openk2.engine import Engine, EngineConfig, EngineRequest
from openk2.engine.memory_plan import resident_bytes
from openk2.llm.source import Source, load_engine, serving_quantization
from openk2.models.packed_stored import ExpertCacheStats
from openk2.planner import ModelShape, TimeTerms, scheme

SCHEMES = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}
"""The planner's scheme of the same bits a weight as a packed format."""


@dataclass(frozen=True)
class CaseResult:
    case: Case
    tokens_per_s: float
    """Median of the rounds, over all requests together."""
    slowest: float
    fastest: float
    seconds: float
    """The median's: of the whole prompt (the time to the first token), or of one decode step."""
    experts_per_token: float | None
    """In each layer, on the mean: of a decode case in a mode with fewer than the trained number."""
    limit: TimeTerms
    """By roofline, at the machine's measured bandwidth and float32 arithmetic."""

    @property
    def tokens(self) -> int:
        """What `seconds` are for."""
        return self.case.context if self.case.kind == "prefill" else self.case.batch

    @property
    def limit_tokens_per_s(self) -> float:
        return self.tokens / self.limit.total_s

    @property
    def share(self) -> float:
        """Of the limit. Above 1 where kernels multiply in narrower numbers than float32."""
        return self.tokens_per_s / self.limit_tokens_per_s


@dataclass(frozen=True)
class Bench:
    model: str
    formats: str
    """Of the weights: f32 or bf16 through torch, or what is packed."""
    parameters: int
    active_parameters: int
    load_s: float
    resident_bytes: int
    """Of the process after the last case: weights, cache, torch."""
    limits: MachineLimits
    rounds: int
    results: tuple[CaseResult, ...]
    experts: ExpertCacheStats | None
    """Over all cases and rounds, where the routed experts are on disk."""


def run(
    source: Source,
    cases: Sequence[Case],
    limits: MachineLimits,
    *,
    quantization: str | None = None,
    packed_folder: Path | None = None,
    memory: int | None = None,
    mode: Mode | None = None,
    rounds: int = 3,
    on_round: Callable[[], None] = lambda: None,
) -> Bench:
    """Every case `rounds` times after a round to warm up; `on_round` is called after each of them.

    `packed_folder` and `memory` as in `LLM`; `mode`: of the decoded tokens. Raises as loading does, and ConfigError for
    a cache that memory cannot hold.
    """
    started = time.perf_counter()
    formats = _formats(source, quantization)
    longest = max(case.context + case.answer_tokens for case in cases)
    sizes = EngineConfig(max_model_len=longest, max_num_seqs=max(case.batch for case in cases))
    engine = load_engine(source, sizes, quantization=formats, packed_folder=packed_folder, memory=memory)
    load_s = time.perf_counter() - started
    shape = ModelShape.from_config(source.name, source.config)
    cache_format = "bf16" if engine.runner.model.model.embed_tokens.weight.dtype == torch.bfloat16 else "f32"
    stored = scheme(cache_format if formats is None else SCHEMES[formats.experts])
    generator = torch.Generator().manual_seed(0)
    results = []
    for case in cases:
        prompts = _prompts(case, source.config.vocab_size, generator)
        seconds = []
        before = engine.stats().experts_taken
        for number in range(rounds + 1):
            if case.kind == "prefill":  # one that the prefix cache does not hold
                prompts = _prompts(case, source.config.vocab_size, generator)
            spent = _time(engine, prompts, case, mode)
            if number:
                seconds.append(spent)
            on_round()
        tokens = case.context if case.kind == "prefill" else case.batch
        median = statistics.median(seconds)
        experts = _mean_experts(before, engine.stats().experts_taken)
        read = shape
        if experts is not None:  # the roofline knows whole experts only
            read = replace(shape, num_experts_per_token=round(experts))
        results.append(
            CaseResult(
                case,
                tokens / median,
                tokens / max(seconds),
                tokens / min(seconds),
                median,
                experts if mode is not None else None,
                case.limit(read, stored, cache_format, limits.as_device()),
            )
        )
    return Bench(
        source.name,
        f"{formats.code} packed" if formats else cache_format,
        shape.parameters,
        shape.active_parameters_without_embedding,
        load_s,
        resident_bytes(),
        limits,
        rounds,
        tuple(results),
        engine.stats().experts,
    )


def _formats(source: Source, quantization: str | None) -> Quantization | None:
    """What is packed, as `LLM` does it."""
    if quantization is not None:
        return Quantization.parse(quantization)
    return None if source.folder is None else serving_quantization(Checkpoint.open(source.folder), "cpu")


def _prompts(case: Case, vocab_size: int, generator: torch.Generator) -> list[list[int]]:
    return torch.randint(0, vocab_size, (case.batch, case.context), generator=generator).tolist()


def _mean_experts(before: Sequence[int], after: Sequence[int]) -> float | None:
    """Of the choices between two `EngineStats.experts_taken`; None where there are none."""
    choices = [late - early for early, late in zip(before, after, strict=True)]
    taken = sum(number * times for number, times in enumerate(choices))
    return taken / sum(choices) if sum(choices) else None


def _time(engine: Engine, prompts: Sequence[list[int]], case: Case, mode: Mode | None) -> float:
    """Seconds until the prompt's first token is there, or of one step in which every request got a token."""
    answer = case.answer_tokens
    sampling = SamplingParams(temperature=0.0, max_tokens=answer, mode=mode)
    given = {str(i): 0 for i in range(len(prompts))}
    for name, prompt in zip(given, prompts, strict=True):
        engine.add_request(EngineRequest(name, prompt, sampling))
    started, counted_from = time.perf_counter(), 0
    while engine.has_work:
        for output in engine.step():
            given[output.request_id] += len(output.token_ids)
        if answer > 1 and not counted_from and min(given.values()) > 0:
            started, counted_from = time.perf_counter(), min(given.values())  # every prompt is through
    spent = time.perf_counter() - started
    return spent if answer == 1 else spent / (answer - counted_from)
