"""Reading past the page cache, where the file system can."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path

from openk2.checkpoint.packed_header import PAGE


def open_direct(path: Path) -> tuple[int, bool]:
    """A descriptor, and whether it reads past the page cache: not every file system can."""
    direct = getattr(os, "O_DIRECT", 0)
    if direct:
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY | direct)
            try:
                os.preadv(fd, [mmap.mmap(-1, PAGE)], 0)
                return fd, True
            except OSError:
                os.close(fd)
    return os.open(path, os.O_RDONLY), False


def forget(fd: int, at: int, size: int) -> None:
    """Let the page cache drop a part of a file; where there is no such call, it stays as long as nobody needs room."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, at, size, os.POSIX_FADV_DONTNEED)
