"""What a token costs deep in a context: one chunk of a prompt and 32 decode steps at each depth, up to the 256k of K2.

    python benchmarks/depth.py [--model nano] [--depths 1k 8k 32k 128k 256k] [--quantization int4] [--threads N]
                               [--rounds N] [--json FILE]

The model has random weights of a preset's shape, with a window wide enough. What lies before the chunk is not computed:
the cache is filled with random latents and the prefix cache told that they are a prompt's. With each depth goes what a
token costs beyond the shallowest, per 1,024 tokens of context: constant, where only attention grows. `attention` is
the arithmetic that this is, over its time: scores and sums of the expanded form for a prompt, whose keys and values are
made anew for each chunk, and of the absorbed form for a decoded token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from openk2.bench.limits import processor_name
from openk2.bench.prefix import pretend_cached
from openk2.checkpoint import Quantization
from openk2.config import ModelConfig, SamplingParams, preset
from openk2.engine import Engine, EngineConfig, EngineRequest
from openk2.engine.memory_plan import resident_bytes
from openk2.llm.source import Source, load_engine

CHUNK, STEPS = 512, 32


def tokens(text: str) -> int:
    return int(text[:-1]) * 1024 if text.endswith("k") else int(text)


def measure(engine: Engine, prompt: list[int], generator: torch.Generator) -> tuple[float, float]:
    """Seconds of a chunk after `prompt`, and of a decode step after that."""
    chunk = torch.randint(3, engine.model_config.vocab_size, (CHUNK,), generator=generator).tolist()
    sampling = SamplingParams(temperature=0.0, max_tokens=STEPS + 1, ignore_eos=True)
    engine.add_request(EngineRequest("0", prompt + chunk, sampling))
    started, given, first = time.perf_counter(), 0, 0.0
    while engine.has_work:
        for output in engine.step():
            assert output.cached_tokens == len(prompt), "the prefix is found"
            given += len(output.token_ids)
            first = first or time.perf_counter()
    return first - started, (time.perf_counter() - first) / (given - 1)


def attention_flops(config: ModelConfig, kind: str) -> float:
    """Of one token and one token of its context, over all layers."""
    heads, key, value = config.num_attention_heads, config.qk_head_dim, config.v_head_dim
    if kind == "decode":
        return 2.0 * config.num_hidden_layers * heads * (config.latent_dim + config.kv_lora_rank)
    expansion = 2.0 * config.kv_lora_rank * (config.qk_nope_head_dim + value) / CHUNK
    return config.num_hidden_layers * heads * (2.0 * (key + value) + expansion)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="a preset, whose shape the model has")
    parser.add_argument("--depths", nargs="+", default=["1k", "8k", "32k", "128k", "256k"])
    parser.add_argument("--quantization", default="int4")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    depths = sorted(tokens(depth) for depth in arguments.depths)
    window = depths[-1] + CHUNK + STEPS + 2
    config = replace(preset(arguments.model), max_position_embeddings=window)
    engine = load_engine(
        Source(f"random:{arguments.model}", config, None),
        EngineConfig(max_model_len=window, max_num_seqs=1),
        quantization=Quantization.parse(arguments.quantization),
    )
    generator = torch.Generator().manual_seed(0)
    for layer in engine.runner.cache.layers:
        layer.normal_(generator=generator)
    rows: list[dict[str, Any]] = []
    for depth in depths:
        prompt = torch.randint(3, config.vocab_size, (depth,), generator=generator).tolist()
        pretend_cached(engine, prompt)
        rounds = [measure(engine, prompt, generator) for _ in range(arguments.rounds + 1)][1:]  # the first warms up
        seconds = {
            "prompt": statistics.median(r[0] for r in rounds) / CHUNK,
            "decode": statistics.median(r[1] for r in rounds),
        }
        row: dict[str, Any] = {"depth": depth, "resident MiB": resident_bytes() >> 20}
        for kind, spent in seconds.items():
            row[f"{kind} us/token"] = round(1e6 * spent, 1)
            if rows:
                more = spent - 1e-6 * rows[0][f"{kind} us/token"]
                deeper = depth - rows[0]["depth"]
                row[f"{kind} us per 1k deeper"] = round(1e6 * more / deeper * 1024, 2)
                row[f"{kind} attention Gflop/s"] = round(attention_flops(config, kind) * deeper / more / 1e9, 1)
        rows.append(row)
        print(row, flush=True)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "machine": {"cpu": processor_name(), "threads": arguments.threads, "note": arguments.note},
        "model": f"random:{arguments.model}",
        "quantization": arguments.quantization,
        "chunk": CHUNK,
        "steps": STEPS,
        "depths": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
