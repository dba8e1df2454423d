"""GB/s and Gop/s of the packed kernels, beside what this machine can do, in one run.

    python benchmarks/kernel_speed.py [--threads N] [--rounds N] [--json FILE]

The limits are measured here too, between the kernels, by the same number of threads: a sum over a large array (memory)
and a float32 product of torch's library (arithmetic). Weights are of a size that no cache holds, and each round takes
the next of several copies. One multiplication with its addition is two operations.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from openk2 import ops
from openk2.ops import cpu
from openk2.ops.packed import FORMATS
from openk2.quant import PackedLayout, empty_stack, random_stack

ROWS, COLS, COPIES = 4096, 4096, 8
EXPERTS, WIDTH, HIDDEN, TOPK = 64, 512, 1024, 8
TOKENS = (1, 4, 16, 64, 512)
LIMIT_BYTES = 256 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)

    large = torch.ones(LIMIT_BYTES // 4)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    cases: dict[str, tuple[Callable[[int], object], float, float]] = {
        "limit: memory": (lambda i: large.sum(), LIMIT_BYTES, 0.0),
        "limit: float32 product": (lambda i: a @ b, 0.0, 2.0 * 1024**3),
    }
    for format in FORMATS:
        linear = empty_stack(PackedLayout(format, COPIES, ROWS, COLS))
        gate_up = empty_stack(PackedLayout(format, 2 * EXPERTS, WIDTH, HIDDEN))
        down = empty_stack(PackedLayout(format, EXPERTS, HIDDEN, WIDTH))
        for stack in (linear, gate_up, down):
            random_stack(stack, 0.02, generator)
        copies = [type(linear)(PackedLayout(format, 1, ROWS, COLS), part) for part in linear.data.split(1)]
        for tokens in TOKENS:
            x, hidden = torch.randn(tokens, COLS), torch.randn(tokens, HIDDEN)
            ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOPK] for _ in range(tokens)])
            weights = torch.rand(tokens, TOPK)
            used = ids.unique().numel() * (2 * gate_up.layout.matrix_bytes + down.layout.matrix_bytes)
            cases[f"linear {format} M={tokens}"] = (
                lambda i, x=x, copies=copies: ops.packed_linear(x, copies[i % COPIES]),
                copies[0].layout.matrix_bytes,
                2.0 * tokens * ROWS * COLS,
            )
            cases[f"experts {format} M={tokens}"] = (
                lambda i, h=hidden, t=ids, w=weights, g=gate_up, d=down: ops.packed_experts(h, t, w, g, d),
                used,
                6.0 * tokens * TOPK * WIDTH * HIDDEN,
            )

    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for i in range(arguments.rounds + 1):  # the first warms up
        for name, (run, _, _) in cases.items():
            started = time.perf_counter()
            run(i)
            if i:
                seconds[name].append(time.perf_counter() - started)
    results = {}
    print(f"{cpu.isa()}, {arguments.threads} threads\n| kernel | us | GB/s | Gop/s |\n|---|---|---|---|")
    for name, (_, size, operations) in cases.items():
        median = statistics.median(seconds[name])
        row = {"us": median * 1e6, "GB/s": size / median / 1e9, "Gop/s": operations / median / 1e9}
        results[name] = {key: round(value, 1) for key, value in row.items()}
        print(f"| {name} | {row['us']:.0f} | {row['GB/s']:.1f} | {row['Gop/s']:.1f} |")
    if arguments.json:
        header = {"isa": cpu.isa(), "threads": arguments.threads, "rounds": arguments.rounds, "kernels": results}
        arguments.json.write_text(json.dumps(header, indent=2) + "\n")


if __name__ == "__main__":
    main()
