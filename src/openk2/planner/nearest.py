"""The nearest valid choice, for the message that refuses another."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that is spelled most like `name`; None where none is at all like it."""
    from difflib import get_close_matches  # 2 ms, for an error only

    found = get_close_matches(name, list(names), n=1, cutoff=0.3)
    return found[0] if found else None
