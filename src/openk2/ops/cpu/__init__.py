"""Bindings to the compiled CPU ops (`csrc/`); absent where the package was built without a compiler."""

from __future__ import annotations


def available() -> bool:
    return False
