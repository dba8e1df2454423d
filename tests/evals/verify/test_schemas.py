"""Generated argument schemas: the same for the same seed, valid, and of every kind that they promise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs

from openk2.evals.verify.schema_checks import generated_cases

WIDE_ONLY = {
    *("pattern", "format", "multipleOf", "exclusiveMinimum", "exclusiveMaximum"),
    *("prefixItems", "oneOf", "allOf", "maxProperties", "patternProperties"),
}
COMMON = {
    *("type", "properties", "required", "additionalProperties", "enum", "const", "anyOf", "$ref", "$defs"),
    *("minimum", "maximum", "minLength", "maxLength", "items", "minItems", "maxItems"),
}


def schemas(number: int, *, wide: bool) -> list[dict[str, Any]]:
    return [case.schema for case in generated_cases(number, 3, wide=wide)]


def keywords(schema: Any) -> Iterator[str]:
    """Of a schema and those in it."""
    if not isinstance(schema, dict):
        return
    yield from schema
    for key in ("properties", "patternProperties", "$defs"):
        for part in schema.get(key, {}).values():
            yield from keywords(part)
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for part in schema.get(key, []):
            yield from keywords(part)
    for key in ("items", "additionalProperties"):
        yield from keywords(schema.get(key))


def test_a_case_is_the_same_whatever_their_number() -> None:
    assert schemas(5, wide=True) == schemas(9, wide=True)[:5]
    assert schemas(5, wide=True) != schemas(5, wide=False)


def test_every_keyword_is_used_and_none_beyond_them() -> None:
    for wide, expected in ((False, COMMON), (True, COMMON | WIDE_ONLY)):
        generated = schemas(300, wide=wide)
        assert {key for schema in generated for key in keywords(schema)} == expected
        for schema in generated:
            jsonschema_rs.meta.validate({**schema, "$schema": "https://json-schema.org/draft/2020-12/schema"})
            assert json.loads(json.dumps(schema)) == schema
