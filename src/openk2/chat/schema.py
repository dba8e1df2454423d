"""A JSON schema as a grammar: of a tool's arguments, or of a whole answer.

llguidance compiles JSON schemas; done here is what it leaves open: the key order, the spacing that models are trained
on (`{"city": "Paris", "days": 3}`), objects closed to undeclared keys, references that depend on `$id`.
Each change only narrows what the schema admits, so a value that the grammar admits is valid under the schema as it was
declared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from openk2.errors import SchemaError

MAX_FREE_ORDER_PROPERTIES = 6
"""Up to this many properties the arguments may come in any order (2^n grammar rules); beyond, in sorted order."""

_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"}
)
"""String formats that llguidance enforces; the specification makes all others annotations."""

_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties")
_DROPPED = ("$schema", "$id", "id", "$comment", "title", "description", "default", "examples")
_APPLICATORS = ("allOf", "anyOf", "oneOf", "$ref")


def argument_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` normalised: an object, properties sorted, undeclared keys closed, annotations gone.

    Raises SchemaError when it cannot describe an object.
    """
    return _object_schema(schema, sort=True)


def reply_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` of an answer's text, normalised like that of arguments, its properties in their declared order.

    The order is the caller's to choose: a `reason` that comes before the `verdict` is thought before it.
    Raises SchemaError when it cannot describe an object.
    """
    return _object_schema(schema, sort=False)


def _object_schema(schema: Mapping[str, Any], *, sort: bool) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        raise SchemaError("it must be a JSON schema object")
    root = dict(schema)
    kind = root.get("type")
    if (isinstance(kind, list) and "object" in kind) or kind is None:
        root["type"] = "object"
    elif kind != "object":
        raise SchemaError(f'it must be of type "object", not {json.dumps(kind)}')
    try:
        joined = any("allOf" in part for part in _subschemas(root))
        return dict(_normalise(root, base=str(root.get("$id") or ""), close=not joined, sort=sort))
    except RecursionError:
        raise SchemaError("it is nested too deeply") from None


def argument_grammars(schema: Mapping[str, Any]) -> Iterator[str]:
    """Grammars (llguidance Lark) of arguments that are valid under a normalised `schema`, the freest first.

    A later one is for when an earlier one does not compile.
    """
    properties = schema.get("properties")
    if _order_can_be_free(schema) and 1 < len(properties or ()) <= MAX_FREE_ORDER_PROPERTIES:
        yield _any_order(schema)
    yield value_grammar(schema)


def value_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of a value that is valid under a normalised `schema`, its properties in the order given there."""
    return "%llguidance {}\nstart: " + _json(schema)


def literals(texts: Sequence[str]) -> str:
    """A grammar of exactly these texts."""
    return "%llguidance {}\nstart: " + " | ".join(map(_quote, texts))


def required_names(schema: Mapping[str, Any]) -> frozenset[bytes]:
    """The keys that any object of a schema document requires, as they stand between their quotes."""
    lists = [part.get("required") for part in _subschemas(schema)]
    names = {name for names in lists if isinstance(names, list) for name in names if isinstance(name, str)}
    return frozenset(json.dumps(name, ensure_ascii=False)[1:-1].encode() for name in names)


def _normalise(value: Any, *, base: str, close: bool, sort: bool) -> Any:
    if not isinstance(value, Mapping):
        return value  # a boolean schema, or something malformed that the compiler names
    schema = {key: item for key, item in value.items() if key not in _DROPPED}
    if "format" in schema and schema["format"] not in _FORMATS:
        del schema["format"]
    if schema.get("uniqueItems") is False:
        del schema["uniqueItems"]
    reference = schema.get("$ref")
    if base and isinstance(reference, str) and reference.startswith(base + "#"):
        schema["$ref"] = reference[len(base) :]

    properties = schema.get("properties")
    # Branches beside the object's own properties see the same keys, so closing one would refuse the other's.
    close_branches = close and not isinstance(properties, Mapping)
    for key in _SCHEMA_MAPS:
        if isinstance(schema.get(key), Mapping):
            parts = schema[key]
            names = sorted(parts) if sort else parts
            schema[key] = {name: _normalise(parts[name], base=base, close=close, sort=sort) for name in names}
    for key in _SCHEMA_LISTS:
        if isinstance(schema.get(key), list):
            inner = close if key == "prefixItems" else close_branches
            schema[key] = [_normalise(part, base=base, close=inner, sort=sort) for part in schema[key]]
    for key in _SCHEMAS:
        if key in schema:
            schema[key] = _normalise(schema[key], base=base, close=close, sort=sort)
    if close and _can_be_closed(schema):
        schema["additionalProperties"] = False
    return schema


def _can_be_closed(schema: Mapping[str, Any]) -> bool:
    properties, required = schema.get("properties"), schema.get("required", [])
    return (
        isinstance(properties, Mapping)
        and isinstance(required, list)
        and all(name in properties for name in required)
        and "additionalProperties" not in schema
        and "patternProperties" not in schema
        and not any(key in schema for key in _APPLICATORS)
    )


def _subschemas(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a schema document; some are not schemas, which only makes the caller careful."""
    if isinstance(value, Mapping):
        yield value
        for item in value.values():
            yield from _subschemas(item)
    elif isinstance(value, list):
        for item in value:
            yield from _subschemas(item)


def _order_can_be_free(schema: Mapping[str, Any]) -> bool:
    references = [part["$ref"] for part in _subschemas(schema) if "$ref" in part]
    return (
        schema.get("additionalProperties") is False
        and set(schema) <= {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}
        and isinstance(schema.get("properties"), Mapping)
        and isinstance(schema.get("required", []), list)
        and all(str(reference).startswith(("#/$defs/", "#/definitions/")) for reference in references)
    )


def _any_order(schema: Mapping[str, Any]) -> str:
    """One rule per set of properties that are still to come: `rS`, S a bit set, after at least one was written."""
    names = list(schema["properties"])
    needed = sum(1 << bit for bit, name in enumerate(names) if name in schema.get("required", ()))
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
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


def _json(schema: Any) -> str:
    if not isinstance(schema, Mapping):  # `true` and `false` are schemas too, but cannot carry options
        schema = {} if schema is True else {"not": {}}
    return "%json " + json.dumps({**schema, "x-guidance": _SPACING})


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
