"""Whether what a caller sent as a JSON schema is one."""

from __future__ import annotations

from typing import Any

import jsonschema_rs

from openk2.errors import SchemaError

_DIALECTS = (
    "https://json-schema.org/draft/2020-12/schema",
    "http://json-schema.org/draft-07/schema#",
    "http://json-schema.org/draft-04/schema#",
)
"""A schema is accepted if one of these accepts it: generators seldom say which they write, and tuples (`items` as an
array) and boolean `exclusiveMinimum` exist only in the older ones."""


def check_object_schema(schema: dict[str, Any], path: str) -> None:
    """Refuse what is no JSON Schema, or not one of an object."""
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise SchemaError(f"Invalid schema for '{path}': its type must be \"object\", not {kind!r}.", param=path)
    check_schema(schema, path)


def check_schema(schema: dict[str, Any] | None, path: str) -> None:
    """Refuse what is no JSON Schema; its root may be of any type."""
    if not schema:
        return
    first: jsonschema_rs.ValidationError | None = None
    for dialect in _DIALECTS:
        # The dialect is set here, never the caller's: an unknown `$schema` would be fetched from the network.
        try:
            jsonschema_rs.meta.validate({**schema, "$schema": dialect})
            return
        except jsonschema_rs.ValidationError as error:
            first = first or error
        except ValueError as error:
            raise SchemaError(f"Invalid schema for '{path}': {error}.", param=path) from error
    assert first is not None
    where = ".".join([path, *(str(step) for step in first.instance_path)])
    raise SchemaError(f"Invalid schema for '{where}': {first.message}.", param=where)
