"""Changes to a settings file in TOML: what is not changed keeps its every character (as `jsonc` does for JSON)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tomlkit
from tomlkit.items import AbstractTable

from openk2.client.jsonc import MISSING, Step


def with_value(text: str, path: Sequence[Step], value: Any) -> str:
    """The text with `value` at the path of keys; tables that are missing on the way are added.

    Raises tomlkit's ParseError, a ValueError: the text is not TOML. TypeError: a value on the way is no table.
    """
    document = tomlkit.parse(text)
    table: Any = document
    for depth, step in enumerate(path[:-1]):
        if step not in table:
            # The tables on the way to a table need no header of their own.
            table[step] = tomlkit.table(is_super_table=depth < len(path) - 2 or isinstance(value, dict))
        table = table[step]
        if not isinstance(table, AbstractTable):
            raise TypeError(f"{'.'.join(map(str, path[: depth + 1]))} is not a table")
    table[path[-1]] = value
    return tomlkit.dumps(document)


def value_at(text: str, path: Sequence[Step]) -> Any:
    """The value at the path, or MISSING. Raises tomlkit's ParseError, a ValueError: the text is not TOML."""
    value: Any = tomlkit.parse(text).unwrap()
    for step in path:
        if not isinstance(value, dict) or step not in value:
            return MISSING
        value = value[step]
    return value
