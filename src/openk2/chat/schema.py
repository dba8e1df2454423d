"""A JSON schema as a grammar (llguidance's Lark): of a tool's arguments, or of a whole answer.

The spelling is the one that models are trained on: `{"city": "Paris", "days": 3}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from openk2.chat.json_schema.normalise import normalised, required_names
from openk2.errors import SchemaError

__all__ = ["argument_grammars", "literals", "reply_grammar", "required_names"]

MAX_FREE_ORDER_PROPERTIES = 6
"""Up to this many properties the arguments may come in any order (2^n grammar rules); beyond, in sorted order."""

# Branches of a `oneOf` are disjoint once normalised, so any of them will do.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}


def argument_grammars(schema: Mapping[str, Any]) -> Iterator[str]:
    """Grammars of arguments that are valid under `schema`, the preferred first.

    A later one is for when the earlier ones do not compile. They are of objects wherever the schema admits one: clients
    hand arguments on by name. Raises SchemaError for a schema that cannot be used.
    """
    for root in _roots(schema):
        if _order_can_be_free(root) and 1 < len(root["properties"]) <= MAX_FREE_ORDER_PROPERTIES:
            yield _any_order(root)
        yield _value(root)


def reply_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of an answer's text: an object valid under `schema`, its properties in their declared order.

    The order is the caller's to choose: a `reason` that comes before the `verdict` is thought before it.
    Raises SchemaError for a schema that cannot be used, or that describes no object.
    """
    if not _admits_objects(schema):
        raise SchemaError(f'it must be of type "object", not {json.dumps(schema.get("type"))}')
    return _value(normalised(schema, sort=False, as_object=True))


def literals(texts: Sequence[str]) -> str:
    """A grammar of exactly these texts."""
    return "%llguidance {}\nstart: " + " | ".join(map(_quote, texts))


def _roots(schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The normalised schema held to objects, if its type admits any, and as it was declared."""
    if _admits_objects(schema):
        with suppress(SchemaError):  # the schema as declared has the same fault, or it has other values than objects
            yield normalised(schema, sort=True, as_object=True)
    yield normalised(schema, sort=True)


def _admits_objects(schema: Mapping[str, Any]) -> bool:
    if not isinstance(schema, Mapping):
        raise SchemaError("it must be a JSON schema object")
    kind = schema.get("type", "object")
    return bool(kind == "object" or (isinstance(kind, list) and "object" in kind))


def _order_can_be_free(schema: Mapping[str, Any]) -> bool:
    return (
        schema.get("type") == "object"
        and schema.get("additionalProperties") is False
        and set(schema) <= {"type", "properties", "required", "additionalProperties", "$defs"}
        and isinstance(schema.get("properties"), Mapping)
        and isinstance(schema.get("required", []), list)
    )


def _any_order(schema: Mapping[str, Any]) -> str:
    """One rule per set of properties that are still to come: `rS`, S a bit set, after at least one was written."""
    names = list(schema["properties"])
    needed = sum(1 << bit for bit, name in enumerate(names) if name in schema.get("required", ()))
    definitions = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    everything = (1 << len(names)) - 1

    def members(left: int) -> Iterator[tuple[int, int]]:
        """(property, what is left after it)"""
        return ((bit, left & ~(1 << bit)) for bit in range(len(names)) if left >> bit & 1)

    first = [f"p{bit} r{rest}" for bit, rest in members(everything)]
    rules = [f'start: "{{" ({" | ".join(first)}) "}}"' + ("" if needed else ' | "{}"')]
    for left in range(everything):
        options = [f'", " p{bit} r{rest}' for bit, rest in members(left)]
        if not left & needed:
            options.append('""')
        rules.append(f"r{left}: " + " | ".join(options))
    for bit, name in enumerate(names):
        part = schema["properties"][name]
        value = _json({**definitions, **part} if isinstance(part, Mapping) else part)
        rules.append(f"p{bit}: {_quote(json.dumps(name, ensure_ascii=False) + ': ')} v{bit}")
        rules.append(f"v{bit}: {value}")
    return "%llguidance {}\n" + "\n".join(rules)


def _value(schema: Mapping[str, Any]) -> str:
    """The properties come in the order given there."""
    return "%llguidance {}\nstart: " + _json(schema)


def _json(schema: Any) -> str:
    if not isinstance(schema, Mapping):  # `true` and `false` are schemas too, but cannot carry options
        schema = {} if schema is True else {"not": {}}
    return "%json " + json.dumps({**schema, "x-guidance": _SPACING})


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
