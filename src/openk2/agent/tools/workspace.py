"""The working folder: the one place that decides which files a tool may see.

Confinement is by resolved paths: `..` and links are followed first, then the target must lie inside. It keeps a
model's mistakes in; it is no defence against another process that changes the folder at the same moment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from openk2.agent.declare import ToolError
from openk2.errors import EnvironmentFault

SKIPPED_FOLDERS = frozenset(
    {".git", ".hg", ".svn", ".venv", "node_modules", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
)
"""Never walked into: what tools and package managers write, not people."""
MAX_FILE_BYTES = 2_000_000
"""Larger files are data, not text to read in a conversation."""
_BINARY_PROBE_BYTES = 8192


class Workspace:
    """A folder and what lies inside it. Raises EnvironmentFault when it does not exist."""

    def __init__(self, folder: str | Path) -> None:
        self.root = Path(folder).expanduser().resolve()
        if not self.root.is_dir():
            raise EnvironmentFault(f"the working folder {folder} does not exist or is no folder")

    def resolve(self, path: str) -> Path:
        """The place that `path` means, links followed. Raises ToolError when it lies outside or does not exist."""
        try:
            target = (self.root / path).resolve()
            exists = target.exists()
        except (OSError, ValueError, RuntimeError) as error:  # a NUL, a name too long, a loop of links
            raise ToolError(f"{path!r} is no usable path: {error}") from None
        if not target.is_relative_to(self.root):
            raise ToolError(f"{path!r} is outside the working folder")
        if not exists:
            raise ToolError(f"there is no {path!r} in the working folder")
        return target

    def relative(self, target: Path) -> str:
        """The path of a place inside as shown to the model: from the working folder, with slashes."""
        return target.relative_to(self.root).as_posix()

    def files(self, extensions: frozenset[str] = frozenset()) -> Iterator[Path]:
        """All files inside in sorted order, optionally those with one of the extensions (lower case, with the dot).

        Links to folders are not followed; links to files are, where the target lies inside.
        """
        for folder, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS)
            for name in sorted(names):
                path = Path(folder, name)
                if extensions and path.suffix.lower() not in extensions:
                    continue
                if path.is_file() and (not path.is_symlink() or path.resolve().is_relative_to(self.root)):
                    yield path

    def read_text(self, target: Path) -> str:
        """The text of a file. Raises ToolError for a folder, a device, a huge or a binary file."""
        shown = self.relative(target)
        if target.is_dir():
            raise ToolError(f"{shown or '.'} is a folder; list_files shows what is in it")
        if not target.is_file():
            raise ToolError(f"{shown} is no regular file")
        size = target.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ToolError(f"{shown} has {size / 1e6:.1f} MB; files over {MAX_FILE_BYTES / 1e6:.0f} MB are not read")
        data = target.read_bytes()
        if b"\0" in data[:_BINARY_PROBE_BYTES]:
            raise ToolError(f"{shown} is a binary file")
        return data.decode("utf-8", errors="replace")
