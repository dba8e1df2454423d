"""How fast a whole model will be here, from a few of its layers with random weights.

Layers of one shape take the same time, so what two more of them add tells the rest; and the time of a step is linear in
the tokens before it, so two depths tell all. What does not repeat (embedding, head, sampling, scheduling) is in the
smaller of the two slices. Nothing of the model needs to be here but its config.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from openk2.bench.prefix import pretend_cached
from openk2.checkpoint import Quantization
from openk2.config import ModelConfig, SamplingParams
from openk2.engine import Engine, EngineConfig, EngineRequest
from openk2.llm.source import Source, load_engine

DEPTH = 2048
"""Tokens before the deeper of the two measurements."""
STEPS = 12
"""Decode steps that a round times."""
SLICE_BYTES = 4 << 30
"""Of packed weights, that the larger slice takes at most, unless one layer more than the smaller is above it."""
_MORE_LAYERS = 6
_ROUNDS = 3
NUM_ROUNDS = 4 * (_ROUNDS + 1)
"""Of two slices at two depths, the ones to warm up among them."""
_SWEEP_BYTES = 1 << 29
_BLOCK = 16
_CACHE_SIZE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


@dataclass(frozen=True)
class StepLine:
    """Seconds of a step with `depth` tokens before it: `start_s + per_token_s * depth`."""

    start_s: float
    per_token_s: float

    def at(self, depth: float) -> float:
        return self.start_s + self.per_token_s * depth


@dataclass(frozen=True)
class ProbedSpeed:
    """Of the whole model, scaled up from slices of `layers` layers."""

    layers: tuple[int, int]
    chunk_tokens: int
    """Of a prompt, that go through the model in one step."""
    chunk: StepLine
    batch: int
    decode: StepLine
    """One step of `batch` requests."""

    def prompt_s(self, tokens: int, cached_tokens: int = 0) -> float:
        """Seconds of `tokens` of a prompt after `cached_tokens` that are in the cache."""
        chunks = tokens / self.chunk_tokens
        return chunks * self.chunk.at(cached_tokens + max(0.0, tokens - self.chunk_tokens) / 2)

    def decode_s(self, context_tokens: float) -> float:
        return self.decode.at(context_tokens)


def slice_layers(config: ModelConfig, weights_bytes: int) -> tuple[int, int]:
    """Of the two slices of a model of `weights_bytes`: one MoE layer after the dense ones, and up to six more."""
    whole = config.num_hidden_layers
    first = min(config.first_k_dense_replace + 1, whole)
    more = max(1, min(_MORE_LAYERS, SLICE_BYTES * whole // max(1, weights_bytes) - first))
    return first, min(first + more, whole)


def probe(
    config: ModelConfig,
    quantization: Quantization | None,
    *,
    weights_bytes: int,
    chunk_tokens: int = 512,
    batch: int = 1,
    on_round: Callable[[], None] = lambda: None,
) -> ProbedSpeed:
    """Time the slices with torch's number of threads; `on_round` is called NUM_ROUNDS times, or half as often for a
    model that is one slice.

    `weights_bytes`: of the whole model. Where no cache of the processor holds them, each step finds the caches swept,
    as it would after the layers that a slice lacks. Raises ConfigError for what memory cannot hold.
    """
    layers = slice_layers(config, weights_bytes)
    sweep = torch.ones(_SWEEP_BYTES // 4) if weights_bytes > _cache_bytes() else None
    lines = []
    for count in sorted(set(layers)):
        part = replace(config, num_hidden_layers=count, max_position_embeddings=DEPTH + chunk_tokens + 4 * STEPS)
        engine = load_engine(
            Source(f"{count} layers", part, None),
            EngineConfig(
                max_num_seqs=batch, num_blocks=2 + batch * -(-part.max_position_embeddings // _BLOCK), block_size=_BLOCK
            ),
            quantization=quantization,
        )
        generator = torch.Generator().manual_seed(count)
        for layer in engine.runner.cache.layers:
            layer.normal_(generator=generator)  # memory that nobody wrote is one page of zeros
        timed = [_time(engine, depth, chunk_tokens, batch, sweep, generator, on_round) for depth in (0, DEPTH)]
        lines.append([_line(*seconds) for seconds in zip(*timed, strict=True)])
    chunk, decode = (_scale(config, layers, [line[kind] for line in lines]) for kind in (0, 1))
    return ProbedSpeed(layers, chunk_tokens, chunk, batch, decode)


def _line(shallow_s: float, deep_s: float) -> StepLine:
    return StepLine(shallow_s, max(0.0, deep_s - shallow_s) / DEPTH)


def _scale(config: ModelConfig, layers: tuple[int, int], lines: list[StepLine]) -> StepLine:
    """From the slices' lines to the whole model's."""
    if len(lines) == 1:
        return lines[0]
    more = (config.num_hidden_layers - layers[0]) / (layers[1] - layers[0])
    small, large = lines
    return StepLine(
        small.start_s + more * max(0.0, large.start_s - small.start_s),
        small.per_token_s + more * max(0.0, large.per_token_s - small.per_token_s),
    )


def _time(
    engine: Engine,
    depth: int,
    chunk_tokens: int,
    batch: int,
    sweep: torch.Tensor | None,
    generator: torch.Generator,
    on_round: Callable[[], None],
) -> tuple[float, float]:
    """Median seconds of a chunk of a prompt after `depth` tokens, and of a decode step of `batch` requests there."""
    chunks, steps = [], []
    for number in range(_ROUNDS + 1):
        chunks.append(_step_seconds(engine, depth, chunk_tokens, 1, 1, sweep, generator)[0])
        taken = _step_seconds(engine, depth, 1, batch, STEPS, sweep, generator)[-STEPS + 1 :]
        steps += taken if number else []  # the first round warms up
        on_round()
    return statistics.median(chunks[1:]), statistics.median(steps)


def _step_seconds(
    engine: Engine,
    depth: int,
    tokens: int,
    batch: int,
    answer: int,
    sweep: torch.Tensor | None,
    generator: torch.Generator,
) -> list[float]:
    """Seconds of each step of `batch` requests with `tokens` after `depth` cached ones, and `answer` of an answer."""
    vocab_size = engine.model_config.vocab_size
    for number in range(batch):
        prompt = torch.randint(0, vocab_size, (depth + tokens,), generator=generator).tolist()
        pretend_cached(engine, prompt[:depth])
        sampling = SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True)
        engine.add_request(EngineRequest(str(number), prompt, sampling))
    seconds = []
    while engine.has_work:
        if sweep is not None:
            sweep.sum()
        started = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - started)
    return seconds


def _cache_bytes() -> int:
    """Of the processor's last cache, 32 MiB where the system does not tell."""
    try:
        text = _CACHE_SIZE.read_text().strip()
    except OSError:
        return 32 << 20
    return int(text[:-1]) << 10 if text.endswith("K") else 32 << 20
