"""Branches of a `oneOf` kept apart: a value under one of them must be under no other.

The compiler takes any branch, so two that could share a value are narrowed, each to forbid a key that the other
requires, or refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from openk2.chat.json_schema.finite import KINDS, kinds_of
from openk2.chat.json_schema.references import References
from openk2.errors import SchemaError

_MAX_DEPTH = 3
"""Properties within properties that are looked at for what tells two branches apart."""

Parts = list[Mapping[str, Any]]
"""Schemas that hold together."""


class Branches:
    """Of the schemas of one document."""

    def __init__(self, references: References) -> None:
        self._references = references

    def disjoint(self, schema: Mapping[str, Any]) -> list[Any]:
        """The branches of the schema's `oneOf`, narrowed so that no two share a value.

        Raises SchemaError where that cannot be had.
        """
        declared: list[Any] = schema["oneOf"]
        branches = list(declared)
        beside = self._parts(self._references.derive(schema, {"oneOf": None}))
        parts = [[*beside, *self._parts(branch)] for branch in declared]
        for later in range(len(declared)):
            for earlier in range(later):
                if False in (declared[earlier], declared[later]):
                    continue
                one, other = parts[earlier], parts[later]
                if self._apart(one, other, _MAX_DEPTH):
                    continue
                # Each forbids what the other requires: then no value of either is one of the other as declared.
                key = min(_required(other) - _required(one), default=None)
                other_key = min(_required(one) - _required(other), default=None)
                if key is None or other_key is None or self._kinds(one) & self._kinds(other) != {"object"}:
                    raise _overlap(earlier, later)
                branches[earlier] = self._without(branches[earlier], key)
                branches[later] = self._without(branches[later], other_key)
        return branches

    def _parts(self, schema: Any, depth: int = _MAX_DEPTH) -> Parts:
        if not isinstance(schema, Mapping) or depth < 0:
            return []
        parts: Parts = [schema]
        if "$ref" in schema:
            parts += self._parts(self._references.follow(schema), depth - 1)
        for part in schema["allOf"] if isinstance(schema.get("allOf"), list) else []:
            parts += self._parts(part, depth - 1)
        return parts

    def _apart(self, parts: Parts, others: Parts, depth: int) -> bool:
        """True only where no value is valid under both."""
        common = self._kinds(parts) & self._kinds(others)
        values, other_values = _values(parts), _values(others)
        if values is not None and other_values is not None:
            return not any(_same(value, other) for value in values for other in other_values)
        return all(
            (kind == "object" and self._objects_apart(parts, others, depth))
            or (kind in ("number", "integer") and _ranges_apart(parts, others))
            for kind in common
        )

    def _objects_apart(self, parts: Parts, others: Parts, depth: int) -> bool:
        if any(_forbids(others, key) for key in _required(parts)):
            return True
        if any(_forbids(parts, key) for key in _required(others)):
            return True
        return depth > 0 and any(
            self._apart(self._property(parts, key), self._property(others, key), depth - 1)
            for key in _required(parts) | _required(others)
        )

    def _without(self, schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        properties = schema.get("properties")
        forbidding = {**(properties if isinstance(properties, Mapping) else {}), key: False}
        return self._references.derive(schema, {"properties": forbidding})

    def _property(self, parts: Parts, key: str) -> Parts:
        found = (part["properties"].get(key) for part in parts if isinstance(part.get("properties"), Mapping))
        return [part for schema in found for part in self._parts(schema)]

    def _kinds(self, parts: Parts) -> frozenset[str]:
        kinds = KINDS
        for part in parts:
            kinds &= kinds_of(part)
            for key in ("anyOf", "oneOf"):
                if isinstance(part.get(key), list):
                    kinds &= frozenset().union(*(self._kinds(self._parts(branch)) for branch in part[key]))
        values = _values(parts)
        return kinds if values is None else kinds & {_kind(value) for value in values}


def _required(parts: Parts) -> set[str]:
    lists = (part.get("required") for part in parts)
    return {name for names in lists if isinstance(names, list) for name in names if isinstance(name, str)}


def _forbids(parts: Parts, key: str) -> bool:
    for part in parts:
        properties = part.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        if properties.get(key) is False:
            return True
        if key not in properties and part.get("additionalProperties") is False and "patternProperties" not in part:
            return True
    return False


def _values(parts: Parts) -> Sequence[Any] | None:
    """The only values that some part admits, if one says so."""
    for part in parts:
        if "const" in part:
            return [part["const"]]
        if isinstance(part.get("enum"), list):
            return list(part["enum"])
    return None


def _ranges_apart(parts: Parts, others: Parts) -> bool:
    low, high = _range(parts)
    other_low, other_high = _range(others)
    return high < other_low or other_high < low


def _range(parts: Parts) -> tuple[float, float]:
    return (
        max([-math.inf, *_numbers(parts, "minimum"), *_numbers(parts, "exclusiveMinimum")]),
        min([math.inf, *_numbers(parts, "maximum"), *_numbers(parts, "exclusiveMaximum")]),
    )


def _numbers(parts: Parts, key: str) -> Iterator[float]:
    values = (part.get(key) for part in parts)
    return (value for value in values if isinstance(value, int | float) and not isinstance(value, bool))


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if isinstance(value, int) or value.is_integer() else "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _same(one: Any, other: Any) -> bool:
    """As JSON values: 1 is 1.0, and true is not 1. Unsure about what holds others, which only makes it careful."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _overlap(earlier: int, later: int) -> SchemaError:
    return SchemaError(
        f"a value could be valid under both oneOf[{earlier}] and oneOf[{later}]; use anyOf, or tell them apart by "
        "types, constants or required properties"
    )
