"""The planner's predictions for this machine beside what its engine does: bias and error of each figure.

    python benchmarks/plan_vs_measured.py [--models k2-nano random:mini random:moonlight] [--threads N] [--json FILE]

Every model is measured as `openk2 bench` does, and predicted in two ways: as `openk2 plan --here` does, from a few
layers with random weights that are timed here before the model (`bench/probe.py`), and by the roofline with the losses
that `planner.hardware` states for openk2's engine. `random:moonlight` takes 9 GB in int4 and some minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from openk2.bench import Case, make_cases, measure_limits, run
from openk2.bench.limits import MachineLimits
from openk2.bench.probe import ProbedSpeed, probe
from openk2.bench.run import SCHEMES
from openk2.checkpoint import Quantization
from openk2.config import ModelConfig
from openk2.llm.source import Source
from openk2.planner import ModelShape, Parallelism, scheme
from openk2.planner.hardware import OPENK2_CPU_EFFICIENCY
from openk2.planner.parallel import device_weights_bytes_by_kind

FORMATS = {"k2-nano": ("bf16", "int4"), "random:mini": ("bf16", "int4"), "random:moonlight": ("int4",)}


def probed(config: ModelConfig, formats: str, weights_bytes: int, cases: list[Case]) -> dict[Case, float]:
    """Seconds of each case (a prompt, or one decode step), from slices timed for its batch and length of prompt."""
    quantization = Quantization.parse(formats)

    @cache
    def sliced(chunk_tokens: int, batch: int) -> ProbedSpeed:
        return probe(config, quantization, weights_bytes=weights_bytes, chunk_tokens=chunk_tokens, batch=batch)

    seconds = {}
    for case in cases:
        if case.kind == "prefill":
            seconds[case] = sliced(case.context, 1).prompt_s(case.context)
        else:
            seconds[case] = sliced(512, case.batch).decode_s(case.context)
    return seconds


def compare(name: str, formats: str, limits: MachineLimits, cases: list[Case], rounds: int) -> list[dict[str, Any]]:
    source = Source.find(name)
    shape, stored, device = ModelShape.from_config(name, source.config), scheme(SCHEMES[formats]), limits.as_device()
    weights_bytes = sum(device_weights_bytes_by_kind(shape, stored, Parallelism()).values())
    before = probed(source.config, formats, weights_bytes, cases)
    done = run(source, cases, limits, quantization=formats, rounds=rounds)
    found = []
    for one in done.results:
        predicted = one.tokens / before[one.case]
        roofline = one.tokens / one.case.limit(shape, stored, "f32", device, OPENK2_CPU_EFFICIENCY).total_s
        found.append(
            {
                "model": name,
                "formats": formats,
                "case": one.case.name,
                "measured": round(one.tokens_per_s, 2),
                "predicted": round(predicted, 2),
                "error": round(predicted / one.tokens_per_s - 1, 3),
                "roofline": round(roofline, 2),
                "roofline error": round(roofline / one.tokens_per_s - 1, 3),
            }
        )
        print(
            "{model} {formats} {case}: measured {measured}, predicted {predicted}, {error:+.0%}; roofline {roofline}, "
            "{roofline error:+.0%}".format(**found[-1]),
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    limits = measure_limits()
    found: list[dict[str, Any]] = []
    for name in arguments.models:
        cases = make_cases([128, 512], [16, 1024], [8], window=Source.find(name).config.max_position_embeddings)
        for formats in FORMATS[name]:
            found += compare(name, formats, limits, cases, arguments.rounds)
    summary = {}
    for key in ("error", "roofline error"):
        errors = [one[key] for one in found]
        within = sum(abs(error) <= 0.25 for error in errors) / len(errors)
        summary[key] = {"bias": round(statistics.mean(errors), 3), "within 25%": round(within, 2)}
    result = {
        "command": " ".join(["python", "benchmarks/plan_vs_measured.py", *sys.argv[1:]]),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "machine": {"cpu": limits.processor, "threads": limits.threads},
        "read GB/s": round(limits.read_bytes_per_s / 1e9, 1),
        "GFLOP/s": round(limits.f32_flops_per_s / 1e9, 1),
        **summary,
        "cases": found,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "cases"}, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
