"""Reflex, auto and every budget of experts: what they cost in quality, and what they give in speed.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/expert_budgets.py [--parts kl calls speed answers] [--json FILE]

kl: KL(P || Q) in nats a token on held-out conversations of k2-nano, P with the trained number of experts, Q with the
budget, prompts at the trained number, in float32, after every token of the answer but its last. Each budget with each
rule for the weights of the experts that stay: truncated (as they are), renormalised (to the sum of the full list),
rescaled (to the root of its squared sum). By mass: the fewest experts, at least 3, whose weights have that share of the
full list's.
calls: tool calls of k2-nano right in name and whole arguments, on `--cases` generated cases, greedy, grammar on.
speed: decoded tokens/s of k2-nano and of random:mini in int4, alone and 8 together; budgets take turns in each round.
answers: k2-nano from a question to the end of a short answer, with and without a prefix cache, and questions a second.

Seconds are of processor time, of one thread for all: with a core of one's own they are those of the clock, and beside
other work they still tell budgets apart. Medians of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openk2 import assets
from openk2.bench.limits import processor_name
from openk2.chat.messages import Message
from openk2.chat.provider import ChatRequest
from openk2.checkpoint import Quantization, load_model
from openk2.config import ExpertBudget, SamplingParams, expert_budget
from openk2.engine import Engine, EngineConfig, EngineRequest
from openk2.evals import evaluate, generated_cases
from openk2.evals.scoring import score_reply
from openk2.llm import LLM
from openk2.llm.source import Source, load_engine
from openk2.models import ForwardBatch, K2Model, PagedBatch
from openk2.ops import ExpertBudgets, reference
from openk2.training.data import held_cases
from quantization_kl import KINDS, sequences

BUDGETS = (3, 4, 5, 6, 7)
"""Beside the trained 8."""
REFLEX_BUDGETS = (3, 4, 5)
MASSES = (0.5, 0.6, 0.7, 0.8, 0.9)
RULES = ("truncated", "renormalised", "rescaled")
ASKED: dict[str, SamplingParams] = {
    "8 (deliberative)": SamplingParams(),
    **{str(k): SamplingParams(topk=k) for k in reversed(BUDGETS)},
    "reflex": SamplingParams(mode="reflex"),
    "auto": SamplingParams(mode="auto"),
}
BLOCK = 16
"""Tokens of a cache block."""
QUESTION = "Hello! Who are you?"
ANSWER_TOKENS = 16


@contextmanager
def ruled(rule: str) -> Iterator[None]:
    """Budgets by another rule, in the definition and whatever is computed by it."""
    ours: Callable[..., tuple[Tensor, Tensor]] = reference.route

    def route(*logits: Tensor, budgets: ExpertBudgets | None = None, **settings: Any) -> tuple[Tensor, Tensor]:
        ids, weights = ours(*logits, budgets=None, **settings)
        if budgets is None:
            return ids, weights
        kept = weights * (torch.arange(weights.shape[1]) < budgets.counts(weights)[:, None])
        gain = weights.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True) if rule == "renormalised" else 1.0
        return ids, kept * gain

    if rule != "rescaled":
        reference.route = route
    try:
        yield
    finally:
        reference.route = ours


class Answer:
    """A known answer after its prompt, which is in the cache."""

    @torch.inference_mode()
    def __init__(self, model: K2Model, ids: list[int], prompt: int) -> None:
        self.model, self.prompt, self.tokens = model, prompt, torch.tensor(ids[prompt:-1])
        self.blocks = -(-len(ids) // BLOCK)
        layers, latent = model.config.num_hidden_layers, model.config.latent_dim
        self.cache = [torch.zeros(self.blocks, BLOCK, latent) for _ in range(layers)]
        self._hidden(torch.tensor(ids[:prompt]), 0, None, None)

    @torch.inference_mode()
    def log_probabilities(self, budget: ExpertBudget) -> tuple[Tensor, Tensor]:
        """Of what follows each of its tokens, (tokens, vocab); and the experts that each took, (tokens, MoE layers)."""
        c, T = self.model.config, len(self.tokens)
        budgets = ExpertBudgets(
            torch.full((T,), budget.least),
            torch.full((T,), budget.most),
            torch.full((T,), budget.mass, dtype=torch.float64),
        )
        taken = torch.zeros(c.num_hidden_layers, T, dtype=torch.int64)
        hidden = self._hidden(self.tokens, self.prompt, budgets, taken)
        return self.model.compute_logits(hidden).log_softmax(-1), taken[c.first_k_dense_replace :].T

    def _hidden(self, ids: Tensor, start: int, budgets: ExpertBudgets | None, taken: Tensor | None) -> Tensor:
        positions = torch.arange(start, start + len(ids))
        paged = PagedBatch(
            slot_mapping=positions,
            block_tables=torch.arange(self.blocks)[None],
            query_starts=(0, len(ids)),
            context_lens=(start + len(ids),),
            generated=torch.full((len(ids),), start > 0),
        )
        return self.model(ids, ForwardBatch(positions, paged=paged, budgets=budgets, taken=taken), self.cache)


def measure_kl(n: int) -> dict[str, Any]:
    folder = assets.path("k2-nano")
    model = load_model(folder, dtype=torch.float32)
    trained = model.config.num_experts_per_tok
    asked = [(str(k), rule, ExpertBudget(k, k)) for k in BUDGETS for rule in RULES]
    asked += [(f"mass {mass}", "rescaled", ExpertBudget(3, trained, mass)) for mass in MASSES]
    reflex, auto = expert_budget("reflex", None, trained), expert_budget("auto", None, trained)
    assert reflex is not None and auto is not None
    asked += [("reflex", "rescaled", reflex), ("auto", "rescaled", auto)]
    found: dict[tuple[str, str], list[tuple[Tensor, Tensor, Tensor]]] = {(name, rule): [] for name, rule, _ in asked}
    for ids, prompt in sequences(folder, n):
        answer = Answer(model, ids, prompt)
        p, _ = answer.log_probabilities(ExpertBudget(trained, trained))
        for name, rule, budget in asked:
            with ruled(rule):
                q, taken = answer.log_probabilities(budget)
            found[name, rule].append(((p.exp() * (p - q)).sum(-1), p.argmax(-1) == q.argmax(-1), taken))
    rows = []
    for (name, rule), parts in found.items():
        kl, same, taken = (torch.cat(column) for column in zip(*parts, strict=True))
        rows.append(
            {
                "budget": name, "rule": rule, "tokens": kl.numel(), "experts_per_token": taken.float().mean().item(),
                "kl": kl.mean().item(), "kl_p99": kl.quantile(0.99).item(),
                "same_likeliest": same.float().mean().item(),
            }
        )  # fmt: skip
    chosen = {mode: [part[2] for part in found[mode, "rescaled"]] for mode in ("reflex", "auto")}
    return {"rows": rows, "choices": {mode: choices(parts, n, trained) for mode, parts in chosen.items()}}


def choices(parts: Sequence[Tensor], n: int, trained: int) -> dict[str, Any]:
    """How often each number of experts was taken, and the mean by layer, by kind of conversation and over tokens."""
    taken = torch.cat(list(parts)).float()
    by_kind = {kind: torch.cat(list(parts[i * n : (i + 1) * n])).float().mean().item() for i, kind in enumerate(KINDS)}
    of_tokens, of_requests = taken.mean(1), torch.stack([part.float().mean() for part in parts])
    return {
        "histogram": torch.bincount(taken.long().flatten(), minlength=trained + 1).tolist(),
        "mean_by_layer": taken.mean(0).tolist(),
        "mean_by_kind": by_kind,
        "mean_of_tokens": [of_tokens.min().item(), of_tokens.median().item(), of_tokens.max().item()],
        "mean_of_requests": [of_requests.min().item(), of_requests.median().item(), of_requests.max().item()],
    }


def measure_calls(n: int) -> list[dict[str, Any]]:
    """With our rule through the native kernels as served, with the others through torch in float32, which is slow: they
    have reflex's budgets only."""
    cases = generated_cases(held_cases, n, 0)
    rows = []
    for rule in reversed(RULES):
        served = {} if rule == "rescaled" else {"dtype": torch.float32}
        with ruled(rule), LLM("k2-nano", **served) as llm:
            for name, asked in ASKED.items():
                if rule != "rescaled" and asked.topk not in REFLEX_BUDGETS:
                    continue
                greedy = replace(asked, temperature=0.0, max_tokens=512)
                report = evaluate(llm, cases, sampling=greedy)
                calling = [(case, reply) for case, _, reply in report.replies if case.calls]
                right = sum(score_reply(case, reply).right_calls for case, reply in calling)
                rows.append({"budget": name, "rule": rule, "right": right, "cases": len(calling)})
                print(f"calls: {name}, {rule}: {right} of {len(calling)}", flush=True)
    return rows


def decode_rate(engine: Engine, sampling: SamplingParams, batch: int, tokens: int) -> float:
    """Decoded tokens/s, from the step in which the last prompt ends."""
    vocab, generator = engine.model_config.vocab_size, torch.Generator().manual_seed(0)
    prompts = torch.randint(0, vocab, (batch, 16), generator=generator).tolist()
    sampling = replace(sampling, temperature=0.0, max_tokens=tokens)
    given = {str(i): 0 for i in range(batch)}
    for name, prompt in zip(given, prompts, strict=True):
        engine.add_request(EngineRequest(name, prompt, sampling))
    started = counted = 0.0
    while engine.has_work:
        for output in engine.step():
            given[output.request_id] += len(output.token_ids)
        if not started and min(given.values()):
            started, counted = time.process_time(), sum(given.values())
    return (sum(given.values()) - counted) / (time.process_time() - started)


def measure_speed(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for model, formats in (("k2-nano", "bf16"), ("random:mini", "int4")):
        sizes = EngineConfig(max_model_len=128, max_num_seqs=8)
        engine = load_engine(Source.find(model), sizes, quantization=Quantization.parse(formats))
        for batch in (1, 8):
            rates: dict[str, list[float]] = {name: [] for name in ASKED}
            tokens = 96 if model == "k2-nano" else 32
            for number in range(rounds + 1):
                for name, asked in ASKED.items():
                    rate = decode_rate(engine, asked, batch, tokens)
                    if number:
                        rates[name].append(rate)
            full = statistics.median(rates["8 (deliberative)"])
            for name, seen in rates.items():
                median = statistics.median(seen)
                rows.append(
                    {
                        "model": f"{model} {formats}", "batch": batch, "budget": name, "tokens_per_s": median,
                        "slowest": min(seen), "fastest": max(seen), "gain": median / full,
                    }
                )  # fmt: skip
                print(f"speed: {model}, {batch}: {name} {median:.0f} tokens/s, {median / full:.2f}x", flush=True)
    return rows


def measure_answers(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for caching in (True, False):
        with LLM("k2-nano", engine_config=EngineConfig(enable_prefix_caching=caching)) as llm:
            seen: dict[str, tuple[list[float], list[float], list[int]]] = {
                mode: ([], [], []) for mode in ("deliberative", "reflex", "auto")
            }
            for number in range(rounds + 1):
                for mode, (alone, together, lengths) in seen.items():
                    sampling = SamplingParams(temperature=0.0, max_tokens=ANSWER_TOKENS, mode=mode)
                    started = time.process_time()
                    answer = llm.chat([Message("user", QUESTION)], sampling=sampling)
                    spent = time.process_time() - started
                    rate = asyncio.run(questions_per_s(llm, sampling))
                    if number:
                        alone.append(1000 * spent)
                        together.append(rate)
                        lengths.append(answer.usage.completion_tokens)
            for mode, (alone, together, lengths) in seen.items():
                rows.append(
                    {
                        "mode": mode, "prefix_cache": caching, "answer_tokens": lengths[-1],
                        "ms": statistics.median(alone), "ms_slowest": max(alone),
                        "questions_per_s_8_together": statistics.median(together),
                    }
                )  # fmt: skip
                print(f"answers: {rows[-1]}", flush=True)
    return rows


async def questions_per_s(llm: LLM, sampling: SamplingParams, count: int = 16, together: int = 8) -> float:
    left = iter(range(count))

    async def ask() -> None:
        for _ in left:
            async for _ in llm.stream(ChatRequest((Message("user", QUESTION),), sampling=sampling)):
                pass

    started = time.process_time()
    await asyncio.gather(*(ask() for _ in range(together)))
    return count / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["speed", "answers", "kl", "calls"])
    parser.add_argument("--n", type=int, default=5, help=f"conversations of each of {len(KINDS)} kinds, for the KL")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    arguments = parser.parse_args()
    measures: dict[str, Callable[[], Any]] = {
        "kl": lambda: measure_kl(arguments.n),
        "calls": lambda: measure_calls(arguments.cases),
        "speed": lambda: measure_speed(arguments.rounds),
        "answers": lambda: measure_answers(arguments.rounds),
    }
    results: dict[str, Any] = {
        "command": f"python benchmarks/expert_budgets.py --n {arguments.n} --cases {arguments.cases} "
        f"--rounds {arguments.rounds}",
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "machine": {"cpu": processor_name(), "threads": torch.get_num_threads(), "note": arguments.note},
    }
    for part in arguments.parts:
        results[part] = measures[part]()
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    for row in results.get("kl", {}).get("rows", ()):
        print(
            f"| {row['budget']} | {row['rule']} | {row['experts_per_token']:.2f} | {row['kl']:.4f} "
            f"| {row['kl_p99']:.3f} | {row['same_likeliest']:.2%} |"
        )
    print(json.dumps(results.get("kl", {}).get("choices", {})))


if __name__ == "__main__":
    main()
