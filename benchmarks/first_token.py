"""Time to the first token through the server: a prompt seen for the first time, and one whose beginning is cached.

    python benchmarks/first_token.py [--model mini] [--shared 2048] [--new 64] [--rounds 20] [--json FILE]

Every round has a beginning of its own of `--shared` tokens (a system message), asked about twice with at most `--new`
further tokens: cold, then warm. HTTP, JSON and rendering are included; the server runs as users start it and does
nothing else. The figures are medians of the rounds. Hits are the cached tokens that the server reports, of the shared
ones. `mini` has random weights (see `engine_speed`) and k2-nano's tokenizer.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
import torch

from openk2.bench.limits import processor_name
from openk2.checkpoint import random_model, save_model
from openk2.config import preset
from server_process import server_process

WORDS = "the printer on floor two is stuck again so please clear its queue and tell Anna when that is done".split()


def count(client: httpx2.Client, messages: list[dict[str, str]]) -> int:
    answer = client.post("/tokenize", json={"messages": messages})
    answer.raise_for_status()
    return int(answer.json()["count"])


def beginning(client: httpx2.Client, size: int, rng: random.Random) -> dict[str, str]:
    """A system message whose turn is as near `size` tokens as whole words allow, not above it."""
    words: list[str] = []
    step = 256
    while step:
        more = words + [rng.choice(WORDS) for _ in range(step)]
        if count(client, [{"role": "system", "content": " ".join(more)}]) <= size:
            words = more
        else:
            step //= 2
    return {"role": "system", "content": " ".join(words)}


def first_token(client: httpx2.Client, messages: list[dict[str, str]]) -> tuple[float, int]:
    """Seconds to the first chunk that holds a token, and the prompt's cached tokens."""
    body = {
        "messages": messages,
        "temperature": 0,
        "max_tokens": 1,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first, cached = 0.0, 0
    started = time.perf_counter()
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit(response.read().decode())
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if not first and chunk["choices"] and not chunk["choices"][0]["delta"].get("role"):
                first = time.perf_counter() - started
            if chunk.get("usage"):
                cached = chunk["usage"]["prompt_tokens_details"]["cached_tokens"]
    return first, cached


def measure(client: httpx2.Client, shared: int, new: int, rounds: int) -> dict[str, Any]:
    rng = random.Random(0)
    cold, warm, hits = [], [], []
    for _ in range(rounds):
        start = beginning(client, shared, rng)
        questions = [{"role": "user", "content": " ".join(rng.choice(WORDS) for _ in range(new // 4))} for _ in "ab"]
        length = count(client, [start])
        extra = max(count(client, [start, question]) for question in questions) - length
        if extra > new:
            raise SystemExit(f"the question takes {extra} tokens, more than {new}")
        cold.append(first_token(client, [start, questions[0]])[0])
        seconds, cached = first_token(client, [start, questions[1]])
        warm.append(seconds)
        hits.append(cached / length)
        print(
            f"{length} + {extra} tokens: cold {cold[-1]:.2f} s, warm {seconds:.3f} s, {cached} cached", file=sys.stderr
        )
    medians = statistics.median(cold), statistics.median(warm)
    return {
        "cold s": round(medians[0], 3),
        "warm s": round(medians[1], 3),
        "ratio": round(medians[0] / medians[1], 1),
        "spread": {"cold": [round(f(cold), 3) for f in (min, max)], "warm": [round(f(warm), 3) for f in (min, max)]},
        "hits": round(statistics.median(hits), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--shared", type=int, default=2048)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    with tempfile.TemporaryDirectory() as folder:
        served = [arguments.model]
        if arguments.model == "mini":
            served = [str(Path(folder) / "mini"), "--tokenizer", "k2-nano"]
            save_model(random_model(preset("mini")), served[0], dtype=torch.bfloat16)
        with (
            server_process(["-m", "openk2", "serve", *served]) as (url, _),
            httpx2.Client(base_url=url, timeout=600) as client,
        ):
            first_token(client, [{"role": "user", "content": "Hello"}])  # warms up
            figures = measure(client, arguments.shared, arguments.new, arguments.rounds)
    result = {
        "command": " ".join(["python", "benchmarks/first_token.py", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "machine": {"cpu": processor_name(), "threads": torch.get_num_threads()},
        "model": arguments.model,
        **figures,
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
