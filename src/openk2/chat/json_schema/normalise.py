"""A schema as the grammar compiler is given it.

Objects are closed to undeclared keys, references lead to `$defs` and nowhere else, branches without a value are gone,
and so is what says nothing about values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from openk2.chat.json_schema.dates import FORMAT_PATTERNS
from openk2.chat.json_schema.finite import Finite
from openk2.chat.json_schema.one_of import Branches
from openk2.chat.json_schema.patterns import compiler_pattern
from openk2.chat.json_schema.references import References
from openk2.errors import SchemaError

_FORMATS = frozenset({"duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"})
"""String formats that the compiler enforces; the specification makes all others annotations."""

_SCHEMA_MAPS = ("properties", "patternProperties")
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SCHEMAS = ("items", "additionalProperties", "additionalItems")
_DROPPED = ("$schema", "$id", "id", "$anchor", "$comment", "title", "description", "default", "examples")
_DEFINITIONS = ("$defs", "definitions")
_APPLICATORS = ("allOf", "anyOf", "oneOf", "$ref")


def normalised(schema: Mapping[str, Any], *, sort: bool, as_object: bool = False) -> dict[str, Any]:
    """`schema` for the compiler. sort: the properties by name; as_object: no other values than objects.

    Raises SchemaError for a schema that has no value, or that cannot be kept.
    """
    try:
        root = _Normaliser(schema, sort=sort).root(as_object=as_object)
    except RecursionError:
        raise SchemaError("it is nested too deeply") from None
    if root is False:
        raise SchemaError("no value can ever be valid under it")
    return dict(root)


def required_names(schema: Mapping[str, Any]) -> frozenset[bytes]:
    """The keys that any object of a schema document requires, as they stand between their quotes."""
    lists = [part.get("required") for part in _objects(schema)]
    names = {name for names in lists if isinstance(names, list) for name in names if isinstance(name, str)}
    return frozenset(json.dumps(name, ensure_ascii=False)[1:-1].encode() for name in names)


class _Normaliser:
    """Of one document."""

    def __init__(self, document: Mapping[str, Any], *, sort: bool) -> None:
        self._document = document
        self._sort = sort
        self._references = References(document)
        self._finite = Finite(self._references)
        self._branches = Branches(self._references)
        self._names: dict[tuple[int, bool], str] = {}  # of definitions, by the identity of what they define
        self._definitions: dict[str, Any] = {}

    def root(self, *, as_object: bool) -> Any:
        document = self._references.derive(self._document, {"type": "object"}) if as_object else self._document
        root = self._normalise(document, close=True)
        return {**root, "$defs": self._definitions} if self._definitions and isinstance(root, dict) else root

    def _normalise(self, value: Any, *, close: bool) -> Any:
        if not isinstance(value, Mapping):
            return value  # a boolean schema, or something malformed that the compiler names
        if not self._finite.has_value(value):
            return False
        schema = {key: item for key, item in value.items() if key not in _DROPPED and key not in _DEFINITIONS}
        _check_least_properties(schema)
        if schema.get("uniqueItems") is False:
            del schema["uniqueItems"]
        if isinstance(schema.get("oneOf"), list):
            schema["oneOf"] = self._branches.disjoint(value)

        # Parts of an `allOf` see the same keys, at every depth, so closing one would refuse the others'.
        close = close and "allOf" not in schema
        # So do branches, and what is referred to, beside the object's own properties.
        close_beside = close and not isinstance(schema.get("properties"), Mapping)
        if "$ref" in schema:
            definition = self._definition(self._references.follow(value), close=close_beside)
            schema["$ref"] = f"#/$defs/{definition}"
        for key in _SCHEMA_MAPS:
            if isinstance(schema.get(key), Mapping):
                parts = schema[key]
                names = sorted(parts) if self._sort else parts
                schema[key] = {name: self._normalise(parts[name], close=close) for name in names}
        if isinstance(schema.get("pattern"), str):
            schema["pattern"] = compiler_pattern(schema["pattern"])
        if isinstance(schema.get("patternProperties"), Mapping):
            schema["patternProperties"] = {
                compiler_pattern(name): part for name, part in schema["patternProperties"].items()
            }
        for key in _SCHEMA_LISTS:
            if isinstance(schema.get(key), list):
                inner = close_beside if key in _APPLICATORS else close
                parts = [self._normalise(part, close=inner) for part in schema[key]]
                schema[key] = [part for part in parts if part is not False] if key in ("anyOf", "oneOf") else parts
        for key in _SCHEMAS:
            if key in schema and not isinstance(schema[key], list):
                schema[key] = self._normalise(schema[key], close=close)
        if close and _can_be_closed(schema):
            schema["additionalProperties"] = False
        _keep_format(schema)
        return _without_impossible_properties(schema)

    def _definition(self, target: Any, *, close: bool) -> str:
        """The name of what a reference leads to; normalised once, when the first reference to it is."""
        key = id(target), close
        if key not in self._names:
            name = self._names[key] = str(len(self._names))
            self._definitions[name] = self._normalise(target, close=close)
        return self._names[key]


def _keep_format(schema: dict[str, Any]) -> None:
    """Keep a format that can be enforced, as a pattern where the compiler is less exact than that."""
    if "format" not in schema:
        return
    name = str(schema["format"])
    if name not in _FORMATS:
        del schema["format"]
    if name in FORMAT_PATTERNS and isinstance(schema.get("allOf", []), list):
        schema["allOf"] = [*schema.get("allOf", []), {"pattern": FORMAT_PATTERNS[name]}]


def _check_least_properties(schema: Mapping[str, Any]) -> None:
    """Free keys can repeat each other, so the grammar's count of them proves no more than one."""
    least, required = schema.get("minProperties", 0), schema.get("required", [])
    if isinstance(least, int) and isinstance(required, list) and least > len({*map(str, required)}) + 1:
        raise SchemaError(f"minProperties {least} cannot be enforced, unless all or all but one of them are required")


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


def _without_impossible_properties(schema: dict[str, Any]) -> dict[str, Any]:
    """What cannot be there needs no mention where only mentioned keys can be."""
    properties, required = schema.get("properties"), schema.get("required", [])
    if (
        isinstance(properties, Mapping)
        and isinstance(required, list)
        and schema.get("additionalProperties") is False
        and "patternProperties" not in schema
    ):
        kept = {name: part for name, part in properties.items() if part is not False or name in required}
        return {**schema, "properties": kept}
    return schema


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a schema document; some are not schemas, which only makes the caller careful."""
    if isinstance(value, Mapping):
        yield value
        for item in value.values():
            yield from _objects(item)
    elif isinstance(value, list):
        for item in value:
            yield from _objects(item)
