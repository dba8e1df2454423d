"""Seeded JSON schemas of tool arguments: nested, with references and unions, every string and array bounded."""

from __future__ import annotations

import random
from typing import Any

NAMES = (
    *("city", "amount", "due_date", "recipients", "priority", "notes", "limit", "page_size", "include_archived"),
    *("unit", "address", "items", "filters", "title", "language", "retries", "tags", "owner", "range"),
    *("zielort", "件名"),
)
WORDS = (
    *("draft", "open", "closed", "north", "south", "daily", "weekly", "celsius", "kelvin", "low", "high"),
    *("größer", "東京", "上海", "résumé", "a b", "x/y"),
)
PATTERNS = (
    "^[A-Z]{3}-[0-9]{4}$",
    r"^\d{2}:\d{2}$",
    "^(low|mid|high)-[a-f0-9]{4}$",
    "^[a-z][a-z0-9_]{0,11}$",
    r"^v[0-9]\.[0-9]{1,2}(-rc[1-9])?$",
    '^[^@ "\\\\]{1,8}@example[.]org$',
)
FORMATS = ("date", "time", "date-time", "duration", "uuid", "ipv4", "int32")
"""The last one is of no standard, and so says nothing."""
MAX_DEPTH = 3

_COMMON = ("text", "text", "choice", "integer", "number", "boolean", "const", "nullable")
_COMMON_NESTED = ("array", "array", "object", "union")
_WIDE = ("pattern", "format", "step", "open_range", "mixed_choice", "several_types")
_WIDE_NESTED = ("tuple", "tagged", "joined", "keyed")


def arguments_schema(rng: random.Random, *, wide: bool = False) -> dict[str, Any]:
    """A schema of an object, as tools declare it.

    wide: also with keywords that not every deployment takes, such as patterns, formats, tuples and `oneOf`.
    """
    return _Writer(rng, wide).arguments()


class _Writer:
    def __init__(self, rng: random.Random, wide: bool) -> None:
        self._rng = rng
        self._kinds = [*_COMMON, *_WIDE] if wide else list(_COMMON)
        self._nested_kinds = [*_COMMON_NESTED, *_WIDE_NESTED] if wide else list(_COMMON_NESTED)
        self._wide = wide

    def arguments(self) -> dict[str, Any]:
        schema = self._object(1)
        if self._rng.random() < 0.25:
            self._refer(schema, "entry", "Entry", self._object(MAX_DEPTH))
        if self._wide and self._rng.random() < 0.1:  # as long as anyone likes
            next_one = {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}
            node = {"type": "object", "properties": {"value": self._value(MAX_DEPTH), "next": next_one}}
            self._refer(schema, "first", "Node", {**node, "required": ["next", "value"]})
        return schema

    def _refer(self, schema: dict[str, Any], name: str, definition: str, part: dict[str, Any]) -> None:
        schema.setdefault("$defs", {})[definition] = part
        schema["properties"][name] = {"$ref": f"#/$defs/{definition}"}
        schema["required"] = sorted({*schema["required"], name})

    def _object(self, depth: int) -> dict[str, Any]:
        names = self._rng.sample(NAMES, self._rng.randint(1, 5 if depth == 1 else 3))
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: self._value(depth) for name in names},
            "required": [name for name in names if self._rng.random() < 0.7],
        }
        if self._rng.random() < 0.5:
            schema["additionalProperties"] = False
        return schema

    def _value(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        match rng.choice(self._kinds + self._nested_kinds if depth < MAX_DEPTH else self._kinds):
            case "choice":
                return {"type": "string", "enum": rng.sample(WORDS, rng.randint(2, 4))}
            case "integer":
                low = rng.randint(-5, 10)
                return {"type": "integer", "minimum": low, "maximum": low + rng.randint(1, 90)}
            case "number":
                return {"type": "number", "minimum": 0, "maximum": 1000}
            case "boolean":
                return {"type": "boolean"}
            case "const":
                return {"const": rng.choice(WORDS)}
            case "nullable":
                return {"anyOf": [{"type": "string", "maxLength": 12}, {"type": "null"}]}
            case "array":
                return {"type": "array", "items": self._value(depth + 1), "minItems": rng.randint(0, 1), "maxItems": 3}
            case "object":
                return self._object(depth + 1)
            case "union":
                return {"anyOf": [self._object(MAX_DEPTH), {"type": "integer", "minimum": 0, "maximum": 9}]}
            case "text":
                return {"type": "string", "minLength": rng.randint(0, 1), "maxLength": rng.randint(4, 24)}
            case kind:
                return self._wide_value(kind, depth)

    def _wide_value(self, kind: str, depth: int) -> dict[str, Any]:
        rng = self._rng
        match kind:
            case "pattern":
                return {"type": "string", "pattern": rng.choice(PATTERNS)}
            case "format":
                bounds = {"maxLength": 40}  # fractions of a second have no other end
                return {"type": "string", "format": rng.choice(FORMATS), **bounds}
            case "step":
                return {"type": "integer", "multipleOf": rng.choice((2, 5, 10)), "minimum": 0, "maximum": 500}
            case "open_range":
                return {"type": "number", "exclusiveMinimum": -1, "exclusiveMaximum": rng.choice((0, 0.5, 20))}
            case "mixed_choice":
                return {"enum": [*rng.sample(WORDS, 2), rng.randint(-9, 9), 2.5, True, None, ["a", 1], {"b": {}}]}
            case "several_types":
                types = rng.sample(["boolean", "integer", "null", "string"], rng.randint(2, 3))
                return {"type": types, "maxLength": 8, "minimum": -99, "maximum": 99}
            case "tuple":
                parts = [self._value(depth + 1) for _ in range(rng.randint(1, 3))]
                return {"type": "array", "prefixItems": parts, "items": False, "minItems": rng.randint(0, len(parts))}
            case "tagged":
                tags = rng.sample(WORDS, 2)
                return {"oneOf": [self._tagged(tag) for tag in tags]}
            case "joined":
                name, reason = rng.choice(NAMES), {"type": "string", "maxLength": 9}
                parts = [
                    {"properties": {name: self._value(depth + 1)}, "required": [name]},
                    {"properties": {"reason": reason}, "required": ["reason"]},
                ]
                return {"type": "object", "allOf": parts, "maxProperties": 2}
            case _:
                keys = {"^[a-z]{1,6}$": self._value(depth + 1)}
                return {"type": "object", "patternProperties": keys, "additionalProperties": False}

    def _tagged(self, tag: str) -> dict[str, Any]:
        schema = self._object(MAX_DEPTH)
        schema["properties"]["kind"] = {"const": tag}
        return {**schema, "required": sorted({*schema["required"], "kind"})}
