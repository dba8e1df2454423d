"""Training tokens/s of k2-nano's shape, and where a step's time goes.

    python benchmarks/training_speed.py [--threads N] [--steps N] [--json FILE]

One step is a packed batch of random tokens through forward, backward and MuonClip, as in `openk2 train`. The machine's
limit beside it is the float32 matrix-product rate that the same number of threads reaches on 1024 x 1024 matrices.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from openk2.config import ModelConfig, preset
from openk2.models import ForwardBatch, K2Model
from openk2.planner.machine import processor_name
from openk2.training.init import structured_init_
from openk2.training.muon import MuonClip


@dataclass
class StepTimes:
    """Seconds of one step."""

    forward: float
    backward: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.optimizer


def matmul_gflops() -> float:
    """Median rate of ten float32 products of 1024 x 1024 matrices."""
    a = torch.randn(1024, 1024)
    rates = []
    for _ in range(10):
        started = time.perf_counter()
        a @ a
        rates.append(2 * 1024**3 / (time.perf_counter() - started) / 1e9)
    return statistics.median(rates)


def matrix_flops(config: ModelConfig, lengths: list[int], supervised: int) -> float:
    """Multiply-adds x 2 of a step's matrix products, forward and backward (3 x forward)."""
    c, tokens = config, sum(lengths)
    heads = c.num_attention_heads
    attention = c.hidden_size * ((c.q_lora_rank or 0) + c.latent_dim) + heads * c.v_head_dim * c.hidden_size
    attention += (c.q_lora_rank or c.hidden_size) * heads * c.qk_head_dim
    attention += c.kv_lora_rank * heads * (c.qk_nope_head_dim + c.v_head_dim)
    moe = 3 * c.hidden_size * c.moe_intermediate_size * (c.num_experts_per_tok + (c.n_shared_experts or 0))
    moe_layers = sum(c.is_moe_layer(i) for i in range(c.num_hidden_layers))
    dense = 3 * c.hidden_size * c.intermediate_size * (c.num_hidden_layers - moe_layers)
    scores = sum(n * n / 2 for n in lengths) * heads * (c.qk_head_dim + c.v_head_dim) * c.num_hidden_layers
    per_token = c.num_hidden_layers * attention + moe_layers * (moe + c.hidden_size * (c.n_routed_experts or 0)) + dense
    return 6 * (tokens * per_token + scores + supervised * c.hidden_size * c.vocab_size)


def time_step(model: K2Model, optimizer: MuonClip, lengths: list[int], supervised: torch.Tensor) -> StepTimes:
    tokens = sum(lengths)
    ids = torch.randint(0, model.config.vocab_size, (tokens,))
    t0 = time.perf_counter()
    hidden = model(ids, ForwardBatch.packed(lengths))
    loss = F.cross_entropy(model.compute_logits(hidden[supervised]), ids[supervised])
    t1 = time.perf_counter()
    loss.backward()
    t2 = time.perf_counter()
    optimizer.step()
    optimizer.zero_grad()
    return StepTimes(t1 - t0, t2 - t1, time.perf_counter() - t2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=7, help="measured steps; one more warms up")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = preset("nano")
    model = K2Model(config)
    structured_init_(model, 0)
    optimizer = MuonClip(model, lr=1e-3, newton_schulz_dtype=torch.float32)
    lengths = [512] * 8
    supervised = torch.arange(0, sum(lengths), 5)  # a fifth of the tokens, as in the data
    time_step(model, optimizer, lengths, supervised)
    steps = [time_step(model, optimizer, lengths, supervised) for _ in range(arguments.steps)]
    seconds = statistics.median(s.total for s in steps)
    achieved, limit = matrix_flops(config, lengths, len(supervised)) / seconds / 1e9, matmul_gflops()
    result = {
        "command": " ".join(["python", "benchmarks/training_speed.py", *sys.argv[1:]]),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "machine": {"cpu": processor_name(), "threads": arguments.threads, "torch": torch.__version__},
        "tokens_per_second": round(sum(lengths) / seconds),
        "milliseconds": {
            part: round(1000 * statistics.median(getattr(s, part) for s in steps), 1)
            for part in ("forward", "backward", "optimizer")
        },
        "gflops": round(achieved, 1),
        "matmul_gflops": round(limit, 1),
        "share_of_matmul_rate": round(achieved / limit, 3),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
