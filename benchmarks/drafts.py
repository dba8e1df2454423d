"""Tool turns of k2-nano: token by token, with the grammar's forced tokens as one chunk, and with drafts as well.

    OMP_NUM_THREADS=1 python benchmarks/drafts.py [--cases 40] [--rounds 5] [--drafts 8] [--json FILE]

Turns that call tools, out of the training data's held-out part, greedy, grammar on, one at a time. The kinds of engine
take turns case by case. Seconds are processor time of the engine's thread, which with one thread is that of the clock
on a machine of one's own; the drafts' costs are learned by the same clock, in a round that is not counted. `decode` is
of steps without prompts, `turn` of all (prompts are in the prefix cache from the first round on). Ratios are medians
over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openk2.bench.limits import processor_name
from openk2.chat.constraints import ToolConstraint
from openk2.config import SamplingParams
from openk2.engine import Engine, EngineConfig, StepOutput, engine
from openk2.evals import evaluate, generated_cases
from openk2.llm import LLM
from openk2.training.data import held_cases

PLAIN, FORCED, DRAFTED = "token by token", "forced tokens", "forced tokens and drafts"
SAMPLING = SamplingParams(temperature=0.0, max_tokens=512)


@dataclass
class Seen:
    decode: list[float] = field(default_factory=list)
    turn: list[float] = field(default_factory=list)
    """Seconds, by round."""
    steps: int = 0
    tokens: int = 0
    """Of the last round, in steps without prompts."""


class Clock:
    """Reads every engine's steps."""

    def __init__(self) -> None:
        self.decode = self.turn = 0.0
        self.steps = self.tokens = 0
        step = Engine.step

        def timed(engine: Engine) -> list[StepOutput]:
            has_prompt = bool(engine.scheduler.waiting) or any(r.is_prefilling for r in engine.scheduler.running)
            started = time.thread_time()
            outputs = step(engine)
            spent = time.thread_time() - started
            self.turn += spent
            if not has_prompt:
                self.decode += spent
                self.steps += 1
                self.tokens += sum(len(output.token_ids) for output in outputs)
            return outputs

        Engine.step = timed  # type: ignore[method-assign]

    def take(self) -> tuple[float, float, int, int]:
        taken = self.decode, self.turn, self.steps, self.tokens
        self.decode = self.turn = 0.0
        self.steps = self.tokens = 0
        return taken


@contextmanager
def nothing_forced() -> Iterator[None]:
    forced = ToolConstraint.forced_tokens
    ToolConstraint.forced_tokens = lambda self: []  # type: ignore[method-assign]
    try:
        yield
    finally:
        ToolConstraint.forced_tokens = forced  # type: ignore[method-assign]


@contextmanager
def as_it_is() -> Iterator[None]:
    yield


def measure(cases: int, rounds: int, drafts: int) -> dict[str, Any]:
    asked = [case for case in generated_cases(held_cases, 2 * cases, 0) if case.calls][:cases]
    engine.time = SimpleNamespace(perf_counter=time.thread_time)  # type: ignore[attr-defined]
    clock, seen = Clock(), {kind: Seen() for kind in (PLAIN, FORCED, DRAFTED)}
    llms = {
        kind: LLM("k2-nano", num_speculative_tokens=drafts if kind == DRAFTED else 0, engine_config=EngineConfig())
        for kind in seen
    }
    differing = 0
    for number in range(rounds + 1):
        total = {kind: [0.0, 0.0, 0, 0] for kind in seen}
        for case in asked:
            replies = {}
            for kind, llm in llms.items():
                with nothing_forced() if kind == PLAIN else as_it_is():
                    replies[kind] = evaluate(llm, [case], sampling=SAMPLING).replies[0][2]
                total[kind] = [a + b for a, b in zip(total[kind], clock.take(), strict=True)]
            assert replies[DRAFTED] == replies[FORCED], case.id
            differing += replies[PLAIN] != replies[FORCED]
        if number:
            for kind, (decode, turn, steps, tokens) in total.items():
                seen[kind].decode.append(decode)
                seen[kind].turn.append(turn)
                seen[kind].steps, seen[kind].tokens = int(steps), int(tokens)
    figures = {figure.name.removeprefix("vllm:spec_decode_num_"): figure.value for figure in llms[DRAFTED].figures}
    rows = []
    for kind, of_kind in seen.items():
        ratios = {
            f"{part}_against_{name}": statistics.median(
                a / b for a, b in zip(getattr(seen[other], part), getattr(of_kind, part), strict=True)
            )
            for part in ("decode", "turn")
            for name, other in (("plain", PLAIN), ("forced", FORCED))
        }
        rows.append(
            {
                "kind": kind, "steps": of_kind.steps, "tokens": of_kind.tokens,
                "decode_s": statistics.median(of_kind.decode), "turn_s": statistics.median(of_kind.turn), **ratios,
            }
        )  # fmt: skip
    for llm in llms.values():
        llm.close()
    names = ("drafts", "draft_tokens", "accepted_tokens")
    return {"rows": rows, "turns": len(asked), "answers_that_differ_from_plain": differing // (rounds + 1)} | {
        name: figures[name] for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--drafts", type=int, default=8)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    given = parser.parse_args()
    result: dict[str, Any] = {
        "command": f"OMP_NUM_THREADS=1 python benchmarks/drafts.py --cases {given.cases} --rounds {given.rounds} "
        f"--drafts {given.drafts}",
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "machine": {"cpu": processor_name(), "load": os.getloadavg(), "note": given.note},
    }
    result |= measure(given.cases, given.rounds, given.drafts)
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")
    for row in result["rows"]:
        print(
            f"| {row['kind']} | {row['steps']} | {row['tokens']} | {1000 * row['decode_s']:.0f} ms "
            f"| {row['decode_against_plain']:.2f} | {row['decode_against_forced']:.2f} "
            f"| {row['turn_against_plain']:.2f} |"
        )
    print({name: value for name, value in result.items() if name not in ("rows", "machine")})


if __name__ == "__main__":
    main()
