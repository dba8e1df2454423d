"""MuonClip beside AdamW: held-out loss after the same tokens, and MuonClip's after two thirds of them.

    python benchmarks/muon_vs_adamw.py FOLDER [--size small] [--data tools --data text] [--max-minutes N] [--json FILE]

Both optimizers train one architecture from the same random weights, on the same batches, and get the same seven trials
on a seed of their own: five learning rates, then beta2, then weight decay, each the better kept. With its best setting
each trains on three further seeds to the end of its schedule; MuonClip also on a schedule that ends at two thirds of
the tokens. Last, one seed at a rate at which attention logits grow, with QK-Clip and without. Sizes, budgets and
trials are those of `SIZES`, fixed before the first run.

Data: `tools`, generated tool conversations; `text`, documents and code that this machine has installed (Python's
standard library and the packages' descriptions), kept in FOLDER as the first call finds them.

Every run is one of a sweep (`openk2/training/sweep.py`): cut anywhere and started again, it goes on. What has ended so
far is printed each time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from openk2.config import ModelConfig, preset
from openk2.config.whole_file import whole_file
from openk2.models import K2Model
from openk2.planner.machine import processor_name
from openk2.training.recipe import DataConfig, OptimizerConfig, Recipe, StageConfig, TokenizerConfig
from openk2.training.schedule import WarmupStableDecay
from openk2.training.sweep import Outcome, run_sweep

KINDS = ("adamw", "muonclip")
DATA = ("tools", "text")
TRIAL_SEED, SEEDS = 0, (1, 2, 3)
BETA2, WEIGHT_DECAY = 0.99, 0.01
"""The values tried beside the first ones, 0.95 and 0.1."""
SHORTER = 2 / 3
DOCUMENT_BYTES = 65_536


@dataclass(frozen=True, kw_only=True)
class Size:
    """Everything that is fixed beforehand."""

    model: ModelConfig
    trial_tokens: int
    tokens: int
    batch_tokens: int
    rates: tuple[float, ...]
    clip_rate: float
    """A rate at which logits pass 100 within `clip_tokens`, without weight decay."""
    clip_tokens: int
    held: int
    """Conversations or documents validated on."""
    vocabulary_samples: int


_SMALL = replace(
    preset("nano"),
    vocab_size=1024,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    q_lora_rank=64,
    kv_lora_rank=64,
    n_routed_experts=16,
    num_experts_per_tok=4,
    max_position_embeddings=1024,
)
SIZES = {
    "tiny": Size(
        model=replace(_SMALL, vocab_size=560, hidden_size=32, num_hidden_layers=2, n_routed_experts=8),
        trial_tokens=1_500,
        tokens=3_000,
        batch_tokens=600,
        rates=(1e-3, 4e-3),
        clip_rate=3e-2,
        clip_tokens=3_000,
        held=4,
        vocabulary_samples=20,
    ),
    "small": Size(
        model=_SMALL,
        trial_tokens=60_000,
        tokens=180_000,
        batch_tokens=1_200,
        rates=(2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
        clip_rate=6e-2,
        clip_tokens=60_000,
        held=40,
        vocabulary_samples=1_000,
    ),
    "nano": Size(
        model=replace(preset("nano"), max_position_embeddings=2048),
        trial_tokens=1_000_000,
        tokens=3_000_000,
        batch_tokens=4_000,
        rates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
        clip_rate=3e-2,
        clip_tokens=500_000,
        held=160,
        vocabulary_samples=5_000,
    ),
}


def base_recipe(size: Size, data: str, texts: Path) -> Recipe:
    """What all runs on one data set share."""
    files = DataConfig(kind="text", files=(str(texts),), held_out=0.05) if data == "text" else DataConfig()
    return Recipe(
        name="muon-vs-adamw",
        model=size.model,
        schedule=schedule(size.tokens),
        stages=(StageConfig(batch_tokens=size.batch_tokens, data_stage=1),),
        data=files,
        tokenizer=TokenizerConfig(samples=size.vocabulary_samples, merges="any"),
        init="random",
        save_every_tokens=max(size.tokens // 4, 1),
        validate_every_tokens=sys.maxsize,
        validation_conversations=size.held,
    )


def schedule(tokens: int) -> WarmupStableDecay:
    """5% warmup, 30% decay."""
    warmup, decay = tokens // 20, tokens * 3 // 10
    return WarmupStableDecay(warmup_tokens=warmup, stable_tokens=tokens - warmup - decay, decay_tokens=decay)


def optimizer(kind: str, rate: float, *, beta2: float = 0.95, weight_decay: float = 0.1) -> OptimizerConfig:
    """One rate for every parameter: Muon's updates have the RMS of AdamW's."""
    return OptimizerConfig(
        kind=kind,
        lr=rate,
        embedding_lr=rate,
        head_lr=rate,
        betas=(0.9, beta2),
        weight_decay=weight_decay,
        qk_clip_threshold=100.0 if kind == "muonclip" else float("inf"),
    )


def label(name: str, settings: OptimizerConfig, seed: int) -> str:
    beta2, decay = settings.betas[1], settings.weight_decay
    return f"{name}-{settings.kind}-lr{settings.lr:g}-beta2_{beta2:g}-wd{decay:g}-seed{seed}"


class Comparison:
    """The runs of one data set, for as long as there is time."""

    def __init__(self, size: Size, data: str, folder: Path, texts: Path, ends: float) -> None:
        """`ends`: by time.monotonic."""
        self.size, self.folder, self.ends = size, folder, ends
        self.base = base_recipe(size, data, texts)
        self.trials: dict[str, list[Outcome]] = {kind: [] for kind in KINDS}
        self.finals: dict[str, list[Outcome]] = {}
        self.clips: dict[str, Outcome] = {}
        self.best: dict[str, OptimizerConfig] = {}

    def run(self) -> bool:
        """False: time was up first."""
        for kind in KINDS:
            if not self._search(kind):
                return False
        for seed in SEEDS:
            for name, kind, tokens in (
                ("adamw", "adamw", self.size.tokens),
                ("muonclip", "muonclip", self.size.tokens),
                ("muonclip, 2/3 of the tokens", "muonclip", round(self.size.tokens * SHORTER)),
            ):
                settings = self.best[kind]
                run = label(f"final{tokens}", settings, seed)
                outcome = self._train(run, replace(self.base, optimizer=settings, schedule=schedule(tokens), seed=seed))
                if outcome is None:
                    return False
                self.finals.setdefault(name, []).append(outcome)
        for name, threshold in (("on", 100.0), ("off", float("inf"))):
            settings = replace(
                optimizer("muonclip", self.size.clip_rate, weight_decay=0.0), qk_clip_threshold=threshold
            )
            recipe = replace(self.base, optimizer=settings, schedule=schedule(self.size.clip_tokens), seed=SEEDS[0])
            outcome = self._train(label(f"clip_{name}", settings, SEEDS[0]), recipe)
            if outcome is None:
                return False
            self.clips[name] = outcome
        return True

    def _search(self, kind: str) -> bool:
        """Coordinate-wise: the rates, then beta2, then weight decay. False: time was up."""
        losses: dict[OptimizerConfig, float] = {}

        def tried(settings: OptimizerConfig) -> bool:
            recipe = replace(self.base, optimizer=settings, schedule=schedule(self.size.trial_tokens), seed=TRIAL_SEED)
            outcome = self._train(label("trial", settings, TRIAL_SEED), recipe)
            if outcome is not None:
                self.trials[kind].append(outcome)
                diverged = outcome.status == "diverged" or outcome.held_loss is None
                losses[settings] = float("inf") if diverged else float(outcome.held_loss or 0.0)
            return outcome is not None

        def best() -> OptimizerConfig:
            return min(losses, key=lambda settings: losses[settings])

        if not all(tried(optimizer(kind, rate)) for rate in self.size.rates):
            return False
        if not tried(replace(best(), betas=(0.9, BETA2))) or not tried(replace(best(), weight_decay=WEIGHT_DECAY)):
            return False
        self.best[kind] = best()
        return True

    def _train(self, run: str, recipe: Recipe) -> Outcome | None:
        left = self.ends - time.monotonic()
        if left <= 0:
            return None
        found = run_sweep({run: recipe}, self.folder, max_seconds=left)
        if found:
            print(f"{run}: held-out {found[0].held_loss}, {found[0].status}, {found[0].seconds:.0f} s", flush=True)
        return found[0] if found else None

    def summary(self) -> dict[str, Any]:
        """What has ended so far."""
        parameters = sum(p.numel() for p in K2Model(self.size.model).parameters())
        finals = {name: _final(outcomes) for name, outcomes in self.finals.items()}
        return {
            "parameters": parameters,
            "best": {kind: asdict(settings) for kind, settings in self.best.items()},
            "finals": finals,
            "muonclip_less_adamw": {
                name: paired(self.finals[name], self.finals["adamw"]) for name in self.finals if name != "adamw"
            },
            "optimizer_bytes_per_parameter": {
                name: round(outcomes[0].optimizer_bytes / parameters, 2) for name, outcomes in self.finals.items()
            },
            "qk_clip": {
                name: {"max_logit": o.max_logit, "held_loss": o.held_loss, "status": o.status}
                for name, o in self.clips.items()
            },
            "trials": {
                kind: [{"run": o.run, "held_loss": o.held_loss, "status": o.status} for o in outcomes]
                for kind, outcomes in self.trials.items()
            },
        }


def _final(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    losses = [o.held_loss for o in outcomes if o.held_loss is not None]
    return {
        "tokens": outcomes[0].tokens,
        "held_loss": [round(loss, 4) for loss in losses],
        "mean": round(statistics.fmean(losses), 4) if losses else None,
        "deviation": round(statistics.stdev(losses), 4) if len(losses) > 1 else None,
        "seconds": [o.seconds for o in outcomes],
        "max_logit": max((o.max_logit for o in outcomes if o.max_logit is not None), default=None),
    }


def paired(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> dict[str, Any]:
    """Differences of held-out loss, seed by seed: below 0, ours is lower."""
    pairs = zip(ours, theirs, strict=False)
    gaps = [a.held_loss - b.held_loss for a, b in pairs if a.held_loss is not None and b.held_loss is not None]
    return {
        "each": [round(gap, 4) for gap in gaps],
        "mean": round(statistics.fmean(gaps), 4) if gaps else None,
        "deviation": round(statistics.stdev(gaps), 4) if len(gaps) > 1 else None,
    }


def gather_texts(path: Path) -> None:
    """The standard library's modules and the installed packages' descriptions, a line of JSON each; once."""
    if path.exists():
        return
    places = {name: Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")}
    files = sorted(places["stdlib"].glob("*.py")) + sorted((places["stdlib"] / "pydoc_data").glob("*.py"))
    for package in ("asyncio", "email", "http", "json", "logging", "multiprocessing", "unittest", "xml/dom"):
        files += sorted((places["stdlib"] / package).glob("*.py"))
    files += sorted(places["purelib"].glob("*.dist-info/METADATA"))
    with whole_file(path) as aside, aside.open("w", encoding="utf-8") as out:
        for file in files:
            text = file.read_bytes()[:DOCUMENT_BYTES].decode("utf-8", errors="ignore")
            if text.strip():
                out.write(json.dumps({"text": text}) + "\n")


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """In markdown."""
    lines = [
        "| data | run | tokens | held-out loss by seed | mean | deviation | less AdamW's, paired | optimizer bytes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data, found in results.items():
        for name, final in found["finals"].items():
            gap = found["muonclip_less_adamw"].get(name, {})
            apart = "" if gap.get("mean") is None else f"{gap['mean']:+.4f} ± {gap['deviation'] or 0:.4f}"
            losses = " ".join(f"{loss:.4f}" for loss in final["held_loss"])
            stored = f"{found['optimizer_bytes_per_parameter'][name]} a parameter"
            cells = [data, name, f"{final['tokens']:,}", losses, final["mean"], final["deviation"], apart, stored]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="of all runs; outside git")
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--data", choices=DATA, action="append", help="default both")
    parser.add_argument("--max-minutes", type=float, default=float("inf"), help="then stop, to go on when called again")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write what has ended to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    texts = folder / "texts.jsonl"
    size = SIZES[arguments.size]
    ends = time.monotonic() + 60 * arguments.max_minutes
    results: dict[str, dict[str, Any]] = {}
    complete = True
    for data in arguments.data or DATA:
        if data == "text":
            gather_texts(texts)
        comparison = Comparison(size, data, folder / arguments.size / data, texts, ends)
        complete = comparison.run() and complete
        results[data] = comparison.summary()
    report = {
        "command": " ".join(["python", "benchmarks/muon_vs_adamw.py", *sys.argv[1:]]),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "machine": {"cpu": processor_name(), "threads": arguments.threads, "torch": torch.__version__},
        "size": {"name": arguments.size, **{k: v for k, v in asdict(size).items() if k != "model"}},
        "model": size.model.to_hf(),
        "seeds": {"trials": TRIAL_SEED, "finals": SEEDS},
        "complete": complete,
        "data": results,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(table(results))
    for data, found in results.items():
        for name, clip in found["qk_clip"].items():
            print(f"{data}: QK-Clip {name}: largest logit {clip['max_logit']}, held-out {clip['held_loss']}")
    if not complete:
        print("not complete: start it again to go on")


if __name__ == "__main__":
    main()
