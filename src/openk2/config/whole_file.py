"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file to, which takes its place at the end, when it is on the disk. Whatever goes
    wrong, `path` stays what it was and nothing is left beside it; what a killed process left, the next one removes.

    What is there and no file, such as a pipe or `/dev/stdout`, is written to as it is. Raises OSError as writing does.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    remove_abandoned(path)
    aside = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise


def remove_abandoned(path: Path) -> None:
    """What processes that are gone left half written beside `path`: never read, but as large as the file itself."""
    for left in path.parent.glob(f".{escape(path.name)}.writing-*"):
        pid = left.name.rpartition("-")[2]
        if pid.isdigit() and not _is_running(int(pid)):
            left.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
