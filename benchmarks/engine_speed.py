"""Prefill and decode tokens/s of the engine, beside transformers on the same weights in the same run.

    python benchmarks/engine_speed.py [--models k2-nano mini] [--threads N] [--rounds N] [--json FILE]

Models: a preset with random weights, or `k2-nano` with its own. transformers' DeepseekV3 is the other side,
its parameters being the engine's, so both hold the same numbers and one copy of them. The two take turns, round by
round; each figure is the median of the rounds, and the ratio is ours to theirs. Greedy, prefix cache off.
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
from typing import Any

import torch
from torch import Tensor

from openk2 import assets
from openk2.bench.limits import processor_name
from openk2.checkpoint import load_model, random_model
from openk2.config import SamplingParams, preset
from openk2.engine import Engine, EngineConfig, EngineRequest
from openk2.models import K2Model, num_parameters


def build(name: str, dtype: torch.dtype) -> K2Model:
    if name == "k2-nano":
        return load_model(assets.path("k2-nano"), dtype=dtype)
    return random_model(preset(name), dtype=dtype)


def transformers_twin(model: K2Model) -> Any:
    """transformers' model whose parameters are ours."""
    import transformers

    raw = model.config.to_hf() | {"model_type": "deepseek_v3"}  # transformers does not know kimi_k2
    with torch.device("meta"):
        twin = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**raw))
    result = twin.load_state_dict(dict(model.named_parameters()), strict=False, assign=True)
    assert not result.missing_keys and not result.unexpected_keys, result
    # The rotary frequencies are no parameters: made again, off the meta device.
    twin.model.rotary_emb = type(twin.model.rotary_emb)(twin.config)
    return twin.eval()


@dataclass(frozen=True)
class Case:
    """Prompts of `context` tokens for `batch` requests, each answered by `answer` tokens."""

    context: int
    batch: int
    answer: int

    @property
    def name(self) -> str:
        if self.answer == 1:
            return f"prefill {self.context}"
        return f"decode @{self.context}" + (f", batch {self.batch}" if self.batch > 1 else "")

    @property
    def counted(self) -> int:
        """Tokens whose time is taken: the prompt's, or those after the answer's first."""
        return self.batch * (self.context if self.answer == 1 else self.answer - 1)


Result = tuple[float, list[list[int]]]
"""Seconds, and the answers."""


def time_engine(engine: Engine, prompts: Tensor, case: Case) -> Result:
    answers: dict[str, list[int]] = {}
    sampling = SamplingParams(temperature=0.0, max_tokens=case.answer)
    for i, prompt in enumerate(prompts.tolist()):
        answers[str(i)] = []
        engine.add_request(EngineRequest(str(i), prompt, sampling))
    started = time.perf_counter()
    while engine.has_work:
        for output in engine.step():
            answers[output.request_id] += output.token_ids
        if case.answer > 1 and engine.stats().running and max(map(len, answers.values())) <= 1:
            started = time.perf_counter()  # still prefilling
    return time.perf_counter() - started, list(answers.values())


@torch.inference_mode()
def time_transformers(model: Any, prompts: Tensor, case: Case) -> Result:
    started = time.perf_counter()
    out = model(prompts, use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1:].argmax(-1)
    answers = [token]
    if case.answer > 1:
        started = time.perf_counter()
    for _ in range(case.answer - 1):
        out = model(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        answers.append(token)
    return time.perf_counter() - started, torch.cat(answers, 1).tolist()


def agreement(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Share of the answers' tokens before the two part, over all requests."""
    same = total = 0
    for a, b in zip(ours, theirs, strict=True):
        total += len(b)
        same += next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(b))
    return same / total


def measure(name: str, cases: list[Case], rounds: int, dtype: torch.dtype) -> dict[str, Any]:
    model = build(name, dtype)
    twin = transformers_twin(model)
    longest = max(case.context + case.answer for case in cases)
    batch = max(case.batch for case in cases)
    engine = Engine(model, EngineConfig(max_model_len=longest, max_num_seqs=batch, enable_prefix_caching=False))
    generator = torch.Generator().manual_seed(0)
    result = {"parameters": num_parameters(model.config), "dtype": str(dtype).removeprefix("torch."), "cases": {}}
    for case in cases:
        sides: dict[str, Callable[[Tensor], Result]] = {
            "openk2": lambda prompts, case=case: time_engine(engine, prompts, case),
            "transformers": lambda prompts, case=case: time_transformers(twin, prompts, case),
        }
        rates: dict[str, list[float]] = {side: [] for side in sides}
        agreed = []
        for round_number in range(rounds + 1):  # the first warms up
            prompts = torch.randint(3, model.config.vocab_size, (case.batch, case.context), generator=generator)
            answers = {}
            for side in sorted(sides, reverse=bool(round_number % 2)):
                seconds, answers[side] = sides[side](prompts)
                if round_number:
                    rates[side].append(case.counted / seconds)
            agreed.append(agreement(answers["openk2"], answers["transformers"]))
        medians = {side: statistics.median(values) for side, values in rates.items()}
        result["cases"][case.name] = {
            **{side: round(rate, 1) for side, rate in medians.items()},
            "ratio": round(medians["openk2"] / medians["transformers"], 2),
            "spread": {side: [round(min(v), 1), round(max(v), 1)] for side, v in rates.items()},
            "same_tokens": round(statistics.mean(agreed), 3),
        }
    return result


def table(results: dict[str, Any]) -> str:
    lines = ["| model | case | openk2 tok/s | transformers tok/s | ratio | same tokens |", "|---|---|---|---|---|---|"]
    for name, result in results["models"].items():
        for case, r in result["cases"].items():
            lines.append(
                f"| {name} {result['dtype']} | {case} | {r['openk2']} | {r['transformers']} | {r['ratio']} | "
                f"{r['same_tokens']:.0%} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["k2-nano", "mini"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--prefill", type=int, nargs="*", default=[128, 512], help="prompt lengths")
    parser.add_argument("--context", type=int, nargs="*", default=[16, 1024], help="prompt lengths before decoding")
    parser.add_argument("--answer", type=int, default=33, help="tokens decoded, the first of them uncounted")
    parser.add_argument("--batch", type=int, default=8, help="requests of the batched case; 1 leaves it out")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = [Case(length, 1, 1) for length in arguments.prefill]
    cases += [Case(length, 1, arguments.answer) for length in arguments.context]
    if arguments.batch > 1:
        cases.append(Case(16, arguments.batch, arguments.answer))
    import transformers

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    results: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/engine_speed.py", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "machine": {"cpu": processor_name(), "threads": arguments.threads},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "unit": "tokens per second",
        "models": {},
    }
    for name in arguments.models:
        results["models"][name] = measure(name, cases, arguments.rounds, getattr(torch, arguments.dtype))
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
