"""Amounts of memory, as people write them."""

from __future__ import annotations

import re

from openk2.errors import ConfigError

_UNITS = {
    "": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip


def read_bytes(text: str, *, param: str) -> int:
    """`8GiB`, `8G` (the same), `8GB` (10^9), `1.5TiB`, or a number of bytes. Raises ConfigError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    size = 0 if found is None else int(float(found[1]) * _UNITS.get(found[2], 0))
    if size < 1:
        raise ConfigError(f"{param} {text!r}: an amount of memory looks like 8GiB, 500MB or 8589934592", param=param)
    return size


def show_bytes(size: int) -> str:
    """In MiB below a GiB, else in GiB."""
    return f"{size / 2**20:,.0f} MiB" if size < 1 << 30 else f"{size / 2**30:,.2f} GiB"
