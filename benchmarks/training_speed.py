"""Training tokens/s beside transformers in the same run, and where a step's time goes.

    python benchmarks/training_speed.py [--preset nano] [--dtype float32] [--threads N] [--steps N] [--json FILE]

One step is eight sequences of 512 random tokens through forward and backward and an optimizer: MuonClip, as in
`openk2 train`, and torch's AdamW, which transformers' DeepseekV3 gets too, with the same weights, tokens and dtype
(weights, gradients and states). The sides take turns; each figure is the median. The machine's limit beside them is the
rate that the same number of threads reaches on products of 1024 x 1024 float32 matrices.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

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


@dataclass
class Side:
    """A model, its optimizer, and its loss of a batch."""

    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor, Tensor], Tensor]

    def step(self, ids: Tensor, supervised: Tensor) -> tuple[StepTimes, float]:
        """ids: (rows, length); supervised: places in the flattened ids. The step's times and its loss."""
        t0 = time.perf_counter()
        loss = self.loss(ids, supervised)
        t1 = time.perf_counter()
        loss.backward()
        t2 = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return StepTimes(t1 - t0, t2 - t1, time.perf_counter() - t2), float(loss.detach())


def ours(model: K2Model, optimizer: torch.optim.Optimizer) -> Side:
    def loss(ids: Tensor, supervised: Tensor) -> Tensor:
        flat = ids.flatten()
        hidden = model(flat, ForwardBatch.packed([ids.shape[1]] * ids.shape[0]))
        return F.cross_entropy(model.compute_logits(hidden[supervised]).float(), flat[supervised])

    return Side(optimizer, loss)


def theirs(model: K2Model) -> Side:
    """transformers' model with copies of our weights, all of them trained."""
    import transformers

    raw = model.config.to_hf() | {"model_type": "deepseek_v3"}  # transformers does not know kimi_k2
    with torch.device("meta"):
        twin = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**raw))
    copies = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = twin.load_state_dict(copies, strict=False, assign=True)
    assert not result.missing_keys and not result.unexpected_keys, result
    twin.model.rotary_emb = type(twin.model.rotary_emb)(twin.config)  # no parameters: made again, off the meta device
    twin.train()
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())

    def loss(ids: Tensor, supervised: Tensor) -> Tensor:
        hidden = twin.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        return F.cross_entropy(twin.lm_head(hidden[supervised]).float(), ids.flatten()[supervised])

    return Side(torch.optim.AdamW(twin.parameters(), lr=1e-4), loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=7, help="measured steps of each side; one more warms up")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config, dtype = preset(arguments.preset), getattr(torch, arguments.dtype)

    def made() -> K2Model:
        model = K2Model(config)
        structured_init_(model, 0)
        return model.to(dtype)

    muon, adamw = made(), made()
    sides = {
        "openk2, MuonClip": ours(muon, MuonClip(muon, lr=1e-3, newton_schulz_dtype=torch.float32)),
        "openk2, AdamW": ours(adamw, torch.optim.AdamW(adamw.parameters(), lr=1e-4)),
        "transformers, AdamW": theirs(adamw),
    }
    rows, length = 8, 512
    supervised = torch.arange(0, rows * length, 5)  # a fifth of the tokens, as in the data
    times: dict[str, list[StepTimes]] = {name: [] for name in sides}
    first_loss: dict[str, float] = {}
    for step in range(arguments.steps + 1):
        ids = torch.randint(0, config.vocab_size, (rows, length))
        for name in sorted(sides, reverse=bool(step % 2)):
            taken, loss = sides[name].step(ids, supervised)
            first_loss.setdefault(name, loss)
            if step:
                times[name].append(taken)
    seconds = {name: statistics.median(t.total for t in taken) for name, taken in times.items()}
    flops, limit = matrix_flops(config, [length] * rows, len(supervised)), matmul_gflops()
    result = {
        "command": " ".join(["python", "benchmarks/training_speed.py", *sys.argv[1:]]),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "machine": {"cpu": processor_name(), "threads": arguments.threads, "torch": torch.__version__},
        "preset": arguments.preset,
        "dtype": arguments.dtype,
        "sides": {
            name: {
                "tokens_per_second": round(rows * length / seconds[name]),
                "spread": [round(rows * length / t.total) for t in sorted(taken, key=lambda t: -t.total)][
                    :: len(taken) - 1 or 1
                ],
                "milliseconds": {
                    part: round(1000 * statistics.median(getattr(t, part) for t in taken), 1)
                    for part in ("forward", "backward", "optimizer")
                },
                "gflops": round(flops / seconds[name] / 1e9, 1),
                "first_loss": round(first_loss[name], 5),
            }
            for name, taken in times.items()
        },
        "ratio": round(seconds["transformers, AdamW"] / seconds["openk2, AdamW"], 2),
        "matmul_gflops": round(limit, 1),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
