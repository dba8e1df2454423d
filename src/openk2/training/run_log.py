"""A run's log read back: its steps and validations, as if it had never been cut."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openk2.errors import DataError
from openk2.training.trainer import LOG_FILE

Entry = dict[str, Any]


@dataclass
class RunLog:
    """Records in order of their tokens."""

    steps: list[Entry] = field(default_factory=list)
    validations: list[Entry] = field(default_factory=list)
    cuts: int = 0
    """How often the run went on from a state older than its last record."""


def read_log(folder: Path) -> RunLog:
    """Of a run's folder. A run that was cut logs again what it does again: the later record counts.

    Raises DataError when there is no log, a line is broken (other than a last one that was cut off), or it has no step.
    """
    path = folder / LOG_FILE
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; is {folder} a run's folder?") from None
    log = RunLog()
    for number, line in enumerate(lines[:-1], start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            tokens = entry["tokens"]
            if not all(isinstance(entry[key], int) for key in ("tokens", "step") if key in entry):
                raise TypeError("counts are whole numbers")
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}, line {number}: not a record of a run", param=str(path)) from None
        if "step" not in entry:
            log.validations.append(entry)
        else:
            if log.steps and tokens <= log.steps[-1]["tokens"]:
                log.cuts += 1
                log.steps = [e for e in log.steps if e["tokens"] < tokens]
                log.validations = [e for e in log.validations if e["tokens"] < tokens]
            log.steps.append(entry)
    if not log.steps:
        raise DataError(f"{path} holds no step yet", param=str(path))
    return log
