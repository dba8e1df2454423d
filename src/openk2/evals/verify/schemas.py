"""Seeded JSON schemas of tool arguments: nested, with references and unions, every string and array bounded."""

from __future__ import annotations

import random
from typing import Any

NAMES = (
    *("city", "amount", "due_date", "recipients", "priority", "notes", "limit", "page_size", "include_archived"),
    *(
        "unit",
        "address",
        "items",
        "filters",
        "title",
        "language",
        "retries",
        "tags",
        "owner",
        "range",
        "zielort",
        "件名",
    ),
)
WORDS = (
    *("draft", "open", "closed", "north", "south", "daily", "weekly", "celsius", "kelvin", "low", "high"),
    *("größer", "東京", "上海", "résumé", "a b", "x/y"),
)
MAX_DEPTH = 3


def arguments_schema(rng: random.Random) -> dict[str, Any]:
    """A schema of an object, as tools declare it."""
    schema = _object(rng, 1)
    if rng.random() < 0.25:
        schema["$defs"] = {"Entry": _object(rng, MAX_DEPTH)}
        schema["properties"]["entry"] = {"$ref": "#/$defs/Entry"}
        schema["required"] = sorted({*schema["required"], "entry"})
    return schema


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(NAMES, rng.randint(1, 5 if depth == 1 else 3))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _value(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
    }
    if rng.random() < 0.5:
        schema["additionalProperties"] = False
    return schema


def _value(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = ["text", "text", "choice", "integer", "number", "boolean", "const", "nullable"]
    if depth < MAX_DEPTH:
        kinds += ["array", "array", "object", "union"]
    match rng.choice(kinds):
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
            return {"type": "array", "items": _value(rng, depth + 1), "minItems": rng.randint(0, 1), "maxItems": 3}
        case "object":
            return _object(rng, depth + 1)
        case "union":
            return {"anyOf": [_object(rng, MAX_DEPTH), {"type": "integer", "minimum": 0, "maximum": 9}]}
    return {"type": "string", "minLength": rng.randint(0, 1), "maxLength": rng.randint(4, 24)}
