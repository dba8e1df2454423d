"""One recipe with several values of some keys: each combination a run in a folder of its own, and how each ended."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from openk2.errors import ConfigError, DataError, DivergedError
from openk2.evals.lines import LineFile
from openk2.training.assemble import open_run
from openk2.training.recipe import Recipe, TrackingConfig
from openk2.training.report import SMOOTHED
from openk2.training.run_log import read_log

OUTCOMES_FILE = "sweep.jsonl"
LONGEST_NAME = 120
"""Characters of a run's folder; longer names are cut."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended. `diverged`: its loss or a gradient was no finite number."""

    run: str
    status: Literal["done", "diverged"]
    tokens: int
    seconds: float
    """In steps, all stretches together."""
    loss: float | None = None
    """Mean of the last 50 steps, nats."""
    held_loss: float | None = None
    """Of the last validation; None where nothing is held out."""
    held_token_accuracy: float | None = None
    max_logit: float | None = None
    """Largest attention logit of any step."""
    optimizer_bytes: int = 0
    recipe: str = ""
    """A hash of what the recipe says other than the defaults: an outcome is that of this one only."""


def parse_axis(text: str) -> tuple[str, list[str]]:
    """`optimizer.lr=1e-4,3e-4` to the key and its values as they stand; commas inside brackets or quotes divide
    nothing. Raises ConfigError for anything else."""
    key, equals, values = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--sweep takes KEY=VALUE,VALUE,..., not {text!r}", param="sweep")
    found, depth, quote = [""], 0, ""
    for sign in values:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        depth += (sign in "[{") - (sign in "]}") if not quote else 0
        if sign == "," and depth == 0 and not quote:
            found.append("")
        else:
            found[-1] += sign
    stripped = [value.strip() for value in found]
    if not all(stripped) or len(set(stripped)) < len(stripped):
        raise ConfigError(f"--sweep {key.strip()}: a value is empty or given twice: {values!r}", param="sweep")
    return key.strip(), stripped


def combinations(axes: Sequence[tuple[str, Sequence[str]]]) -> list[list[str]]:
    """Every combination of the axes' values as `key=value` strings, the last axis changing fastest.

    Raises ConfigError for a key that is given twice.
    """
    keys = [key for key, _ in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"--sweep {key} is given twice; list its values after one =", param="sweep")
    return [[f"{key}={value}" for key, value in zip(keys, row, strict=True)] for row in product(*(v for _, v in axes))]


def folder_name(run: str) -> str:
    """A name of a folder that no other run's has."""
    plain = re.sub(r"[^\w.=,+-]+", "_", run)
    if plain == run and len(run) <= LONGEST_NAME:
        return run
    return f"{plain[: LONGEST_NAME - 9]}-{_digest(run)}"


def run_sweep(
    runs: Mapping[str, Recipe],
    folder: Path,
    *,
    device: str = "cpu",
    max_seconds: float | None = None,
    report: Callable[[str, dict[str, Any]], None] = lambda run, record: None,
) -> list[Outcome]:
    """Train every run that has not ended yet, each in its folder under `folder`, one after the other; the outcomes of
    those that have, in the order of `runs`. A run that was cut goes on; one that diverged is not tried again. Runs of
    one vocabulary and data learn their tokenizer once.

    `report` is given each run's records. After `max_seconds`, and a step at least, the sweep stops, to go on when
    called again. Raises ConfigError when `folder` holds a run of the same name by another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / OUTCOMES_FILE
    ended = {outcome.run: outcome for outcome in read_outcomes(folder)}
    for run, recipe in runs.items():
        if run in ended and ended[run].recipe != _recipe_digest(recipe):
            raise ConfigError(f"{path}: {run} ended by another recipe; choose another --output", param="output")
    started, trained = time.perf_counter(), False
    tokenizers: dict[Any, Path] = {}
    with LineFile(path) as lines:
        for run, recipe in runs.items():
            own = folder / folder_name(run)
            vocabulary = (repr(recipe.tokenizer), repr(recipe.data), recipe.init, recipe.model.vocab_size)
            if run not in ended:
                left = None if max_seconds is None else max_seconds - (time.perf_counter() - started)
                if left is not None and left <= 0 and trained:
                    break
                trained = True
                outcome = _train(run, recipe, own, tokenizers.get(vocabulary), device, left, report)
                if outcome is None:
                    break
                lines.write(asdict(outcome))
                ended[run] = outcome
            tokenizers.setdefault(vocabulary, own / "tokenizer")
    return [ended[run] for run in runs if run in ended]


def read_outcomes(folder: Path) -> list[Outcome]:
    """Of the runs that have ended so far. Raises DataError for a line that is none."""
    path = folder / OUTCOMES_FILE
    found: list[Outcome] = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else [], start=1):
        try:
            found.append(Outcome(**json.loads(line)))
        except (ValueError, TypeError):
            raise DataError(f"{path}, line {number}: not the outcome of a run", param=str(path)) from None
    return found


def outcome_rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """A table's rows under `OUTCOME_COLUMNS`; the least held-out loss of several is marked."""
    held = [o.held_loss for o in outcomes if o.status == "done" and o.held_loss is not None]
    best = min(held) if len(held) > 1 else None

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        [
            o.run,
            f"{o.tokens:,}" if o.status == "done" else f"{o.tokens:,}, diverged",
            shown(o.loss, ".4f"),
            shown(o.held_loss, ".4f") + (" *" if best is not None and o.held_loss == best else ""),
            shown(o.max_logit, ".1f"),
            f"{o.optimizer_bytes / 1e6:,.1f}",
        ]
        for o in outcomes
    ]


OUTCOME_COLUMNS = ("run", "tokens", "loss", "held-out loss", "max logit", "optimizer MB")


def _train(
    run: str,
    recipe: Recipe,
    folder: Path,
    tokenizer: Path | None,
    device: str,
    max_seconds: float | None,
    report: Callable[[str, dict[str, Any]], None],
) -> Outcome | None:
    """None: stopped by `max_seconds`."""
    given = recipe
    if tokenizer is not None and recipe.tokenizer.folder is None:
        given = replace(recipe, tokenizer=replace(recipe.tokenizer, folder=str(tokenizer)))
    trainer, held = open_run(given, folder, device=device)
    trainer.resume()
    status: Literal["done", "diverged"] = "done"
    try:
        trainer.run(held, max_seconds=max_seconds, report=lambda record: report(run, record))
    except DivergedError:
        status = "diverged"
    if status == "done" and trainer.tokens < trainer.total_tokens:
        return None
    outcome = Outcome(
        run=run,
        status=status,
        tokens=trainer.tokens,
        seconds=round(trainer.seconds, 1),
        optimizer_bytes=trainer.optimizer.state_bytes,
        recipe=_recipe_digest(recipe),
    )
    try:
        log = read_log(folder)
    except DataError:  # diverged in its first step
        return outcome
    last = log.validations[-1] if log.validations else {}
    logits = [step["max_logit"] for step in log.steps if "max_logit" in step]
    return replace(
        outcome,
        loss=statistics.fmean(step["loss"] for step in log.steps[-SMOOTHED:]),
        held_loss=last.get("held_loss"),
        held_token_accuracy=last.get("held_token_accuracy"),
        max_logit=max(logits, default=None),
    )


def _recipe_digest(recipe: Recipe) -> str:
    return _digest(json.dumps(_given(replace(recipe, tracking=TrackingConfig())), sort_keys=True))


def _given(value: Any) -> Any:
    """What differs from the defaults, so that a key that a later version adds changes nothing."""
    if not is_dataclass(value):
        return repr(value)
    pairs = ((f, getattr(value, f.name)) for f in fields(value))
    return {
        f.name: _given(v)
        for f, v in pairs
        if v != (f.default_factory() if f.default_factory is not MISSING else f.default)
    }


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
