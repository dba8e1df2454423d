"""Which schemas have a value that ends: one that demands itself without a way out has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openk2.chat.json_schema.references import References

KINDS = frozenset({"null", "boolean", "object", "array", "number", "integer", "string"})


def kinds_of(schema: Mapping[str, Any]) -> frozenset[str]:
    """The types that `type` admits; an integer is a number."""
    declared = schema.get("type")
    if isinstance(declared, str):
        declared = [declared]
    if not isinstance(declared, list):
        return KINDS
    kinds = {kind for kind in declared if isinstance(kind, str)}
    return frozenset(kinds | {"integer"} if "number" in kinds else kinds)


class Finite:
    """Answers for the schemas of one document, by the least fixed point over its references."""

    def __init__(self, references: References) -> None:
        self._references = references
        self._finite: set[int] = set()
        self._endless: set[int] = set()
        self._seen: set[int] = set()  # in this pass, and not known to be finite

    def has_value(self, schema: Any) -> bool:
        """False only for schemas that no value is valid under. Raises SchemaError for a reference to nowhere."""
        while True:
            known = len(self._finite)
            self._seen.clear()
            if self._look(schema):
                return True
            if len(self._finite) == known:
                self._endless |= self._seen
                return False

    def _look(self, schema: Any) -> bool:
        if not isinstance(schema, Mapping):
            return schema is not False
        key = id(schema)
        if key in self._finite:
            return True
        if key in self._seen or key in self._endless:
            return False
        self._seen.add(key)
        if not self._has_value(schema):
            return False
        self._seen.discard(key)
        self._finite.add(key)
        return True

    def _has_value(self, schema: Mapping[str, Any]) -> bool:
        if "$ref" in schema and not self._look(self._references.follow(schema)):
            return False
        if not all(self._look(part) for part in _list(schema, "allOf")):
            return False
        for key in ("anyOf", "oneOf"):
            branches = _list(schema, key)
            if branches and not any(self._look(branch) for branch in branches):
                return False
        if "enum" in schema or "const" in schema:
            return True
        kinds = kinds_of(schema)
        return (
            bool(kinds - {"object", "array"})
            or ("object" in kinds and self._has_object(schema))
            or ("array" in kinds and self._has_array(schema))
        )

    def _has_object(self, schema: Mapping[str, Any]) -> bool:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        others = schema.get("additionalProperties", True)
        return all(
            self._look(properties.get(name, others)) for name in _list(schema, "required") if isinstance(name, str)
        )

    def _has_array(self, schema: Mapping[str, Any]) -> bool:
        least = schema.get("minItems", 0)
        if not isinstance(least, int) or least <= 0:
            return True
        first, others = _list(schema, "prefixItems"), schema.get("items", True)
        if isinstance(others, list):
            first, others = others, schema.get("additionalItems", True)
        return all(self._look(part) for part in first[:least]) and (least <= len(first) or self._look(others))


def _list(schema: Mapping[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []
