"""A model 2.5 times larger than its memory: speed, memory kept, and the cache beside the best one that there can be.

    python benchmarks/expert_store.py --model moonlight --quantization int4 --folder /tmp/packed --out FILE.json

Random weights. `uniform` is the routing that they give; `skewed` adds to every layer's correction bias -0.12 log(rank),
in an order of its own, so that some experts are chosen much oftener. Each routing begins with an empty cache, and runs
one prompt and one answer. Its trace of lookups is then given to caches of as many slots: Belady's (which knows the
future and gives up what is used last), least recently used, and the store's own rule with other half-lives.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from openk2.bench import measure_limits
from openk2.checkpoint import Quantization, expert_store
from openk2.checkpoint.expert_store import ExpertStore
from openk2.config import SamplingParams, read_bytes
from openk2.engine import Engine, EngineConfig, EngineRequest
from openk2.engine.memory_plan import plan_memory
from openk2.llm.source import Source, load_engine
from openk2.models import K2Model
from openk2.models.packed_decode import PackedDecode
from openk2.models.packed_stored import give_slots, stored_experts

Lookup = tuple[int, tuple[int, ...]]
"""A layer, and experts of it."""
HALF_LIVES = (1, 4, 16, 64, 256, 4096)


class NoReads:
    """In place of a file: a cache over it moves no bytes."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape

    def read(self, *_: object) -> None:
        pass


def belady(trace: Sequence[Lookup], slots: int) -> float:
    """Share of hits of the offline optimum (L. A. Belady, IBM Systems Journal 5(2), 1966)."""
    keys = [(layer, expert) for layer, experts in trace for expert in experts]
    uses: dict[tuple[int, int], list[int]] = defaultdict(list)
    for at, key in enumerate(keys):
        uses[key].append(at)
    held: set[tuple[int, int]] = set()
    order: list[tuple[int, tuple[int, int]]] = []  # by next use, ascending
    hits = 0
    for at, key in enumerate(keys):
        if key in held:
            hits += 1
            order.pop(bisect.bisect_left(order, (at, key)))
        elif len(held) == slots:
            held.discard(order.pop()[1])
        held.add(key)
        following = uses[key]
        place = bisect.bisect_right(following, at)
        bisect.insort(order, (following[place] if place < len(following) else len(keys) + at, key))
    return hits / len(keys)


def least_recently_used(trace: Sequence[Lookup], slots: int) -> float:
    held: OrderedDict[tuple[int, int], None] = OrderedDict()
    hits = count = 0
    for layer, experts in trace:
        for expert in experts:
            count += 1
            hits += (layer, expert) in held
            held[layer, expert] = None
            held.move_to_end((layer, expert))
            if len(held) > slots:
                held.popitem(last=False)
    return hits / count


def own_rule(trace: Sequence[Lookup], store: ExpertStore, topk: int, half_life: int) -> float:
    """The store's rule, without fetching ahead."""
    kept, expert_store.HALF_LIFE = expert_store.HALF_LIFE, half_life
    cache = ExpertStore(NoReads(store.shape), store.slots * store.shape.expert_bytes, topk)  # type: ignore[arg-type]
    expert_store.HALF_LIFE = kept
    for layer, experts in trace:
        cache.hold(layer, experts)
    return cache.stats.hits / cache.stats.lookups


def empty_cache(model: K2Model) -> tuple[ExpertStore, list[Lookup]]:
    """The model with a new store over the same file, and the trace that it writes."""
    before = stored_experts(model)[0].slots
    assert isinstance(before, ExpertStore)
    file, cache_bytes = before.file, before.slots * before.shape.expert_bytes
    del before
    give_slots(model, None)  # type: ignore[arg-type]  # its memory goes first
    model.model.decode = None
    store, trace = ExpertStore(file, cache_bytes, model.config.num_experts_per_tok), []
    hold = store.hold

    def recorded(layer: int, experts: Sequence[int]) -> list[int]:
        trace.append((layer, tuple(experts)))
        return hold(layer, experts)

    store.hold = recorded  # type: ignore[method-assign]
    give_slots(model, store)
    model.model.decode = PackedDecode(model)
    return store, trace


def answer(engine: Engine, name: str, prompt: list[int], tokens: int) -> tuple[float, list[float]]:
    """Seconds to the first token, and of each step after it."""
    engine.add_request(EngineRequest(name, prompt, SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)))
    started, first, steps = time.perf_counter(), 0.0, []
    while engine.has_work:
        outputs = engine.step()
        now = time.perf_counter()
        if outputs:
            if first:
                steps.append(now - started)
            else:
                first = now - started
            started = now
    return first, steps


def measure(model: K2Model, engine: Engine, routing: str, prompt_tokens: int, tokens: int) -> dict[str, Any]:
    config, rng = model.config, random.Random(0)
    for layer in model.decoder_layers:
        bias = getattr(getattr(layer.mlp, "gate", None), "e_score_correction_bias", None)
        if bias is not None:
            ranks = torch.tensor(rng.sample(range(1, len(bias) + 1), len(bias)))
            bias.data.copy_(-0.12 * ranks.log() if routing == "skewed" else torch.zeros(len(bias)))
    store, trace = empty_cache(model)
    prompt = [rng.randrange(config.vocab_size) for _ in range(prompt_tokens)]
    first, steps = answer(engine, routing, prompt, tokens)
    del store.hold  # with what records, which holds the store
    stats, topk = store.stats, config.num_experts_per_tok
    return {
        "routing": routing,
        "prefill_tokens_per_s": prompt_tokens / first,
        "decode_tokens_per_s": 1 / statistics.median(steps),
        "slots": stats.slots,
        "experts": stats.experts,
        "lookups": stats.lookups,
        "hit": stats.hits / stats.lookups,
        "fetched_ahead": stats.hits_ahead / stats.lookups,
        "ahead_in_vain": stats.reads_ahead - stats.hits_ahead,
        "bytes_read": stats.bytes_read,
        "belady": belady(trace, store.slots),
        "lru": least_recently_used(trace, store.slots),
        "own_rule_by_half_life": {str(life): own_rule(trace, store, topk, life) for life in HALF_LIVES},
    }


def peak_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="moonlight", help="a preset")
    parser.add_argument("--quantization", default="int4")
    parser.add_argument("--memory", help="default: the model's packed bytes over 2.5")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--folder", type=Path, required=True, help="for the packed experts")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    source, formats = Source.find(f"random:{args.model}"), Quantization.parse(args.quantization)
    sizes = EngineConfig(max_model_len=args.prompt + args.tokens + 1, max_num_seqs=1, enable_prefix_caching=False)
    whole = plan_memory(source.config, 1 << 50, quantization=formats, dtype=torch.float32, engine=sizes)
    model_bytes = whole.weights + whole.experts
    memory = int(model_bytes / 2.5) if args.memory is None else read_bytes(args.memory, param="memory")
    limits = measure_limits() if args.memory is None else None
    engine = load_engine(source, sizes, quantization=formats, packed_folder=args.folder, memory=memory)
    model = engine.runner.model
    results = [measure(model, engine, routing, args.prompt, args.tokens) for routing in ("uniform", "skewed")]
    store = stored_experts(model)[0].slots
    assert isinstance(store, ExpertStore)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    facts = {
        "command": "python " + " ".join(sys.argv),
        "commit": commit.stdout.strip(),
        "machine": None if limits is None else limits.processor,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "model_bytes": model_bytes,
        "memory_bytes": memory,
        "peak_resident_bytes": peak_bytes(),
        "reads_past_the_page_cache": store.file.is_direct,
        "results": results,
    }
    print(json.dumps(facts, indent=2))
    if args.out is not None:
        args.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
