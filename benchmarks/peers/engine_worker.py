"""openk2's engine over a checkpoint folder: what `side_by_side.py` starts. Scheduler, paged cache and greedy sampling
are timed with it."""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import torch
from figures import LONGEST, MOST_TOGETHER, WARM_UP, WARM_UP_STEPS, Figure, Sample, answer, prompts

from openk2.checkpoint import Quantization
from openk2.config import SamplingParams
from openk2.engine import Engine, EngineConfig, EngineRequest
from openk2.llm.source import Source, load_engine


class OwnSide:
    engine: Engine

    def __init__(self, folder: Path, quantization: str) -> None:
        # No drafts: how many tokens they save depends on the text, and that of random weights repeats itself.
        sizes = EngineConfig(max_model_len=LONGEST, max_num_seqs=MOST_TOGETHER, num_speculative_tokens=0)
        self.engine = load_engine(Source.find(folder), sizes, quantization=Quantization.parse(quantization))
        self._names = itertools.count()

    def prepare(self, figure: Figure, threads: int) -> None:
        """Prompts of decode figures go into the prefix cache."""
        torch.set_num_threads(threads)
        if figure.kind == "prefill":
            self._time(WARM_UP, f"warm-up of {figure.name}, {threads} threads", 1)
        else:
            self._time(figure, "", WARM_UP_STEPS)

    def run(self, figure: Figure, seed: str) -> Sample:
        if figure.kind == "decode":
            return self._time(figure, seed, figure.steps + 1)
        cached = self.engine.stats().cached_tokens
        sample = self._time(figure, seed, 1)
        assert self.engine.stats().cached_tokens == cached, "a prompt that was there before"
        return sample

    def _time(self, figure: Figure, seed: str, answer_tokens: int) -> Sample:
        """Until the first token for prefill; for decode from the step after which every sequence has one."""
        engine, sampling = self.engine, SamplingParams(temperature=0.0, max_tokens=answer_tokens, ignore_eos=True)
        given: dict[str, list[int]] = {}
        for prompt in prompts(figure, engine.model_config.vocab_size, seed):
            name = str(next(self._names))
            given[name] = []
            engine.add_request(EngineRequest(name, prompt, sampling))
        wall, cpu, counted_from = time.perf_counter(), time.process_time(), 0
        while engine.has_work:
            for output in engine.step():
                given[output.request_id] += output.token_ids
            if answer_tokens > 1 and not counted_from and all(given.values()):
                wall, cpu = time.perf_counter(), time.process_time()
                counted_from = sum(map(len, given.values()))
        share = figure.tokens / (sum(map(len, given.values())) - counted_from) if counted_from else 1.0
        return Sample(
            (time.perf_counter() - wall) * share,
            (time.process_time() - cpu) * share,
            [tokens[0] for tokens in given.values()],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("quantization", help="as openk2's --quantization")
    arguments = parser.parse_args()
    answer(lambda: OwnSide(arguments.folder, arguments.quantization))


if __name__ == "__main__":
    main()
