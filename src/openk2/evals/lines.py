"""A JSON lines file that is added to line by line, so that what wrote it can go on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from openk2.errors import DataError


class LineFile:
    """Drops a last line that was cut off while it was written, then adds. Raises DataError: it cannot be written."""

    def __init__(self, path: Path) -> None:
        try:
            kept = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0
            # Unbuffered: what a full disk refused would be tried again on closing, and hide the first error.
            self._file: FileIO = path.open("ab", buffering=0)
            self._file.truncate(kept)
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror or error}", param=str(path)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Raises OSError, such as on a full disk; then the file ends in a part of the line."""
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8")
        while line:
            line = line[self._file.write(line) :]
