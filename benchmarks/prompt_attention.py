"""Prefill tokens/s of the engine with the compiled attention of prompts, and with torch's products in its place.

    python benchmarks/prompt_attention.py [--models k2-nano random:mini] [--lengths 128 512 2048] [--threads N]
                                          [--rounds N] [--json FILE]

The two take turns, round by round, on one engine with one set of weights; each figure is the median of the rounds.
`--clock process` counts the process's own processor time, which other processes on the machine lengthen less than they
do the clock on the wall. k2-nano runs as it is served, in packed bfloat16; other models in `--quantization`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from openk2.bench.limits import processor_name
from openk2.checkpoint import Quantization
from openk2.config import SamplingParams
from openk2.engine import Engine, EngineConfig, EngineRequest
from openk2.llm.source import Source, load_engine
from openk2.ops import row_attention

CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def prefill_seconds(engine: Engine, prompt: list[int], clock: str) -> float:
    engine.add_request(EngineRequest("0", prompt, SamplingParams(temperature=0.0, max_tokens=1)))
    started = CLOCKS[clock]()
    while engine.has_work:
        engine.step()
    return CLOCKS[clock]() - started


def measure(name: str, quantization: str, lengths: list[int], rounds: int, clock: str) -> dict[str, Any]:
    source = Source.find(name)
    formats = Quantization.parse("bf16" if name == "k2-nano" else quantization)
    config = EngineConfig(max_model_len=max(lengths) + 1, max_num_seqs=1, enable_prefix_caching=False)
    engine = load_engine(source, config, quantization=formats)
    generator = torch.Generator().manual_seed(0)
    result: dict[str, Any] = {"formats": formats.code, "chunk": config.max_num_batched_tokens, "prefill": {}}
    for length in lengths:
        rates: dict[str, list[float]] = {"torch": [], "kernel": []}
        for round_number in range(rounds + 1):  # the first warms up
            prompt = torch.randint(3, source.config.vocab_size, (length,), generator=generator).tolist()
            for side in sorted(rates, reverse=bool(round_number % 2)):
                taken = patch.object(row_attention, "_has_kernel", lambda cache, side=side: side == "kernel")
                with taken:
                    seconds = prefill_seconds(engine, prompt, clock)
                if round_number:
                    rates[side].append(length / seconds)
        medians = {side: statistics.median(values) for side, values in rates.items()}
        result["prefill"][str(length)] = {
            **{side: round(rate, 1) for side, rate in medians.items()},
            "ratio": round(medians["kernel"] / medians["torch"], 2),
            "spread": {side: [round(min(v), 1), round(max(v), 1)] for side, v in rates.items()},
        }
        print(f"{name} {formats.code}, {length} tokens: {result['prefill'][str(length)]}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["k2-nano", "random:mini"])
    parser.add_argument("--quantization", default="int4")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    results: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/prompt_attention.py", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "machine": {"cpu": processor_name(), "threads": arguments.threads},
        "note": arguments.note,
        "unit": f"prompt tokens per second, {arguments.clock} clock",
        "models": {},
    }
    for name in arguments.models:
        results["models"][name] = measure(
            name, arguments.quantization, arguments.lengths, arguments.rounds, arguments.clock
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
