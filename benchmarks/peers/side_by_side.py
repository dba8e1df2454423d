"""openk2's engine and llama.cpp in alternating runs: the same weights, prompts, threads and machine.

    python benchmarks/peers/build_models.py FOLDER
    python benchmarks/peers/side_by_side.py FOLDER --json FILE [--models mini] [--bits 4] [--threads 1] [--minutes 8]

4 bits: openk2's int4 (groups of 32) against llama.cpp's Q4_0 and Q4_K_M, each with the options of `PEERS`; 16 bits:
bfloat16 on both sides. A round times each side once, one after the other, in turned order; the others sleep meanwhile.
FILE is also what a later call goes on from: only rounds that it lacks are run, so `--minutes` and the selections cut
the work into pieces. Counted is the median of the rounds; the ratio is openk2's to the peer that is fastest in that
figure, first by wall clock and then by the processes' own time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from build_models import SHAPES
from figures import FIGURES
from read_rate import read_bytes_per_s

from openk2.planner import ModelShape
from openk2.planner.machine import processor_name

HERE = Path(__file__).parent
OWN = "openk2"
FORMATS = {4: "int4", 16: "bf16"}
PEERS = {
    (4, "prefill"): ("q4_0", "q4_0 fa=0", "q4_k_m", "q4_k_m repack=0 fa=0"),
    (4, "decode"): ("q4_0", "q4_k_m", "q4_k_m repack=0"),
    (16, "prefill"): ("bf16", "bf16 fa=0"),
    (16, "decode"): ("bf16",),
}
"""llama.cpp's formats with the options that may be its best: without flash attention, without repacked weights."""
STORED_BITS = {4: 4.5, 16: 16.0}
"""Of a weight in openk2's packed layout, scales included."""

Cell = tuple[str, int, int, str]
"""Model, bits, threads, figure."""


class Worker:
    """A process that holds one model and times what it is asked for."""

    def __init__(self, folder: Path, bits: int, side: str) -> None:
        if side == OWN:
            words = ["engine_worker.py", str(folder / "hf"), FORMATS[bits]]
        else:
            name, *options = side.split()
            words = ["llama_worker.py", str(folder / f"{name}.gguf"), *options]
        command = [sys.executable, str(HERE / words[0]), *words[1:]]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.load_s = self._read()["load_s"]

    def time(self, cell: Cell, round_number: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        _, _, threads, figure = cell
        asked = {"figure": figure, "threads": threads, "seed": f"{threads} threads, round {round_number}"}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args[1:]))}: ended with code {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Record:
    """What was measured, in a file that is whole after every sample."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.facts: dict[str, Any] = {"machine": {"processor": processor_name()}, "calls": [], "samples": []}
        if path is not None and path.is_file():
            self.facts = json.loads(path.read_text())
            if self.facts["machine"]["processor"] != processor_name():
                raise SystemExit(f"{path}: measured on {self.facts['machine']['processor']}, give another file")

    def begin(self, words: Sequence[str], note: str) -> None:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        self.facts["calls"].append(
            {
                "command": shlex.join(["python", "benchmarks/peers/side_by_side.py", *words]),
                "commit": commit.stdout.strip(),
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "cores": sorted(os.sched_getaffinity(0)),
                "load_before": [round(value, 2) for value in os.getloadavg()],
                "note": note,
            }
        )

    def rates(self, threads: int) -> None:
        """Memory bandwidth, once in each call: what else runs differs."""
        known = self.facts["calls"][-1].setdefault("read_gb_per_s", {})
        if str(threads) not in known:
            known[str(threads)] = {
                pages: round(read_bytes_per_s(threads, huge=pages == "huge") / 1e9, 1) for pages in ("small", "huge")
            }
            self.save()

    def add(self, cell: Cell, side: str, round_number: int, sample: dict[str, Any]) -> None:
        model, bits, threads, figure = cell
        where = {"model": model, "bits": bits, "threads": threads, "figure": figure, "side": side}
        call = len(self.facts["calls"]) - 1
        taken = {name: round(value, 4) if isinstance(value, float) else value for name, value in sample.items()}
        self.facts["samples"].append({**where, "round": round_number, "call": call, **taken})
        self.save()

    def save(self) -> None:
        if self.path is not None:
            aside = self.path.with_name(f"{self.path.name}.writing")
            parts = [f"{json.dumps(key)}: {item_a_line(value)}" for key, value in self.facts.items()]
            aside.write_text("{\n" + ",\n".join(parts) + "\n}\n")
            aside.rename(self.path)

    def of(self, cell: Cell) -> dict[str, list[dict[str, Any]]]:
        """Samples of each side, by round."""
        sides: dict[str, list[dict[str, Any]]] = {}
        for sample in self.facts["samples"]:
            if cell == (sample["model"], sample["bits"], sample["threads"], sample["figure"]):
                sides.setdefault(sample["side"], []).append(sample)
        return sides

    def cells(self) -> list[Cell]:
        found = [(s["model"], s["bits"], s["threads"], s["figure"]) for s in self.facts["samples"]]
        return list(dict.fromkeys(found))


def item_a_line(value: Any) -> str:
    return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]" if isinstance(value, list) else json.dumps(value)


def summary(record: Record) -> list[dict[str, Any]]:
    """One row for each cell that has both sides."""
    rows = []
    for cell in record.cells():
        sides = record.of(cell)
        tokens = FIGURES[cell[3]].tokens
        rates = {
            clock: {side: tokens / statistics.median(s[clock] for s in samples) for side, samples in sides.items()}
            for clock in ("seconds", "cpu_seconds")
        }
        peers = rates["seconds"].keys() - {OWN}
        if not peers or OWN not in sides:
            continue
        best = max(peers, key=rates["seconds"].__getitem__)
        rows.append(
            {
                "model": cell[0],
                "bits": cell[1],
                "threads": cell[2],
                "figure": cell[3],
                "rounds": len(sides[OWN]),
                "tokens_per_s": {side: round(rate, 1) for side, rate in rates["seconds"].items()},
                "spread": {
                    side: [round(tokens / clock(s["seconds"] for s in samples), 1) for clock in (max, min)]
                    for side, samples in sides.items()
                },
                "best_peer": best,
                "ratio": round(rates["seconds"][OWN] / rates["seconds"][best], 2),
                # Times threads: what the threads would have reached had they never waited.
                "cpu_ratio": round(rates["cpu_seconds"][OWN] / max(rates["cpu_seconds"][peer] for peer in peers), 2),
                "bandwidth_share": bandwidth_share(record, cell, rates["seconds"][OWN]),
                "same_last_token": agreement(sides),
            }
        )
    return rows


def bandwidth_share(record: Record, cell: Cell, tokens_per_s: float) -> float | None:
    """Of decode without context: bytes of the weights that a token reads, over what huge pages give."""
    model, bits, threads, figure = cell
    if figure != "decode-0":
        return None
    calls = {sample["call"] for sample in record.of(cell)[OWN]}
    measured = [record.facts["calls"][call]["read_gb_per_s"][str(threads)]["huge"] for call in sorted(calls)]
    read = ModelShape.from_config(model, SHAPES[model]).active_parameters_without_embedding * STORED_BITS[bits] / 8
    return round(tokens_per_s * read / (statistics.median(measured) * 1e9), 2)


def agreement(sides: dict[str, list[dict[str, Any]]]) -> float | None:
    """Share of prompts after which the peers that know have openk2's likeliest token."""
    own = {sample["round"]: sample["last_tokens"] for sample in sides[OWN]}
    pairs = [
        (mine, theirs)
        for side, samples in sides.items()
        for sample in samples
        if side != OWN and sample["round"] in own
        for mine, theirs in zip(own[sample["round"]], sample["last_tokens"], strict=True)
        if theirs >= 0
    ]
    return round(statistics.mean(mine == theirs for mine, theirs in pairs), 2) if pairs else None


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | bits | threads | figure | openk2 tok/s | llama.cpp tok/s | its options | ratio | by CPU time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rates, best = row["tokens_per_s"], row["best_peer"]
        lines.append(
            f"| {row['model']} | {row['bits']} | {row['threads']} | {row['figure']} | {rates[OWN]:,} | "
            f"{rates[best]:,} | {best} | {row['ratio']} | {row['cpu_ratio']} |"
        )
    return "\n".join(lines)


def measure(arguments: argparse.Namespace, record: Record) -> bool:
    """Every round that is missing, until the minutes are over; whether all are there."""
    end = time.monotonic() + 60 * arguments.minutes
    for model in arguments.models:
        for bits in arguments.bits:
            with contextlib.ExitStack() as stack:
                workers: dict[str, Worker] = {}
                for threads in arguments.threads:
                    for figure in arguments.figures:
                        cell = (model, bits, threads, figure)
                        sides = [OWN, *(arguments.peers or PEERS[bits, FIGURES[figure].kind])]
                        done = {side: {s["round"] for s in samples} for side, samples in record.of(cell).items()}
                        for number in range(arguments.rounds):
                            for side in turned(sides, number):
                                if number in done.get(side, ()):
                                    continue
                                if time.monotonic() > end:
                                    return False
                                record.rates(threads)
                                if side not in workers:
                                    workers[side] = Worker(arguments.folder / model, bits, side)
                                    stack.callback(workers[side].close)
                                record.add(cell, side, number, workers[side].time(cell, number))
    return True


def turned(sides: list[str], number: int) -> list[str]:
    first = number % len(sides)
    return sides[first:] + sides[:first]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of build_models.py")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["mini"])
    parser.add_argument("--bits", nargs="+", type=int, choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--peers", nargs="+", help="such as q4_0 'q4_k_m repack=0 fa=0'; default: see PEERS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after so many")
    parser.add_argument("--note", default="", help="what else runs on the machine")
    parser.add_argument("--json", type=Path, help="results, which a later call goes on from")
    arguments = parser.parse_args()
    record = Record(arguments.json)
    places = {str(arguments.folder): "FOLDER", str(arguments.json): "FILE", arguments.note: "NOTE"}
    record.begin([places.get(word, word) for word in sys.argv[1:]], arguments.note)
    complete = measure(arguments, record)
    record.facts["summary"] = summary(record)
    record.save()
    print(table(record.facts["summary"]))
    if not complete:
        print("Not complete: the same command goes on.")


if __name__ == "__main__":
    main()
