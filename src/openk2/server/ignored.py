"""Telling a caller which of the parameters that were sent have no effect here."""

from __future__ import annotations

import re
from collections.abc import Sequence

HEADER = "x-openk2-ignored"
MAX_NAMES = 20

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """The response header that names them. Names are the caller's: only plain ones may pass."""
    plain = [name for name in names if _PLAIN_NAME.fullmatch(name)]
    return {HEADER: ",".join(plain[:MAX_NAMES])} if plain else {}
