"""A run's state on disk: whole or not there, whatever cuts the writing short."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import torch

from openk2.config.whole_file import whole_file
from openk2.errors import CheckpointError, TrainingError

STATE_FILE = "state.pt"
_NUMBERED = re.compile(r"state-(\d+)\.pt")


def write_state(state: dict[str, Any], folder: Path, *, keep: int = 1) -> None:
    """Write beside the old state and rename: a cut at any moment leaves a good `state.pt`.

    `keep` above 1 keeps so many of the latest states, the newest included, as `state-STEP.pt`; the newest shares its
    bytes with `state.pt` where the file system can. States of later steps, from before the run went back, go first.

    Raises TrainingError when it cannot be written, such as on a full disk; the old states are untouched then.
    """
    path = folder / STATE_FILE
    try:
        with whole_file(path) as aside, aside.open("wb") as file:
            guarded = _Guarded(file)
            torch.save(state, guarded)  # type: ignore[arg-type]
            if guarded.error is not None:
                raise guarded.error
        if keep > 1:
            _number(path, folder / f"state-{state['step']:08}.pt")
    except OSError as error:
        reason = error.strerror or error
        before = f"the last state, {path}, is intact" if path.exists() else "there is no earlier state"
        raise TrainingError(f"cannot write the state of step {state['step']} to {folder}: {reason}; {before}") from None
    by_age = sorted(_numbered(folder), key=lambda numbered: (numbered[0] <= state["step"], numbered[0]))
    for _, old in by_age[: -keep if keep > 1 else None]:
        old.unlink(missing_ok=True)


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of the kept states."""
    found = ((_NUMBERED.fullmatch(path.name), path) for path in folder.glob("state-*.pt"))
    return [(int(match[1]), path) for match, path in found if match is not None]


class _Guarded:
    """A file that keeps its first error to itself: torch's writer ends the process when a write fails under it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            if self.error is None:
                return self.file.write(data)
        except OSError as error:
            self.error = error
        return len(data)

    def flush(self) -> None:
        """Left to the owner of the file."""


def _number(path: Path, numbered: Path) -> None:
    numbered.unlink(missing_ok=True)
    try:
        os.link(path, numbered)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, numbered)


def read_state(folder: Path, device: str, *, mapped: bool = False) -> dict[str, Any] | None:
    """The latest state in `folder`; None where there is none. Raises CheckpointError when it is unreadable.

    `mapped`: read each tensor when it is looked at, on the CPU: for processes that want a part of each.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True, mmap=mapped)  # type: ignore[no-any-return]
    except Exception as error:
        others = sorted(one for one in _numbered(folder) if not one[1].samefile(path))  # the newest is the same bytes
        way_out = f"rename {others[-1][1].name} to it to go on from there" if others else "remove it to start anew"
        raise CheckpointError(f"{path} cannot be read ({error}); {way_out}") from None
