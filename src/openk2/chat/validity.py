"""Is a value valid under a JSON schema that a caller wrote, and is that schema one?"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import jsonschema_rs

_DIALECTS = (
    "https://json-schema.org/draft/2020-12/schema",
    "http://json-schema.org/draft-07/schema#",
    "http://json-schema.org/draft-04/schema#",
)
"""A schema is read in the first of these that accepts it: generators seldom say which they write."""


def schema_fault(value: Any, schema: Any) -> str | None:
    """Why `value` is not valid under `schema`; None when it is, when there is no schema, or when that is none."""
    validator = _validator(schema)
    if validator is None:
        return None
    for error in validator.iter_errors(value):
        where = "".join(f"[{step!r}]" for step in error.instance_path)
        return f"{where or 'the value'}: {error.message}"
    return None


def broken_schema(schema: Any) -> str | None:
    """Why `schema` is no JSON schema in any dialect that is read here; None when it is one, or empty."""
    if not isinstance(schema, dict):
        return "it is no object"
    reasons = []
    for dialect in _DIALECTS if schema else ():
        try:
            _compiled(schema, dialect)
        except jsonschema_rs.ValidationError as error:
            where = "".join(f"[{step!r}]" for step in error.instance_path)
            reasons.append(f"{where}: {error.message}" if where else str(error.message))
        except (jsonschema_rs.ReferencingError, ValueError) as error:
            reasons.append(str(error).partition("\n")[0])
        else:
            return None
    return reasons[0] if reasons else None


def _validator(schema: Any) -> jsonschema_rs.Validator | None:
    if not isinstance(schema, dict) or not schema:
        return None
    for dialect in _DIALECTS:
        with suppress(jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError):
            return _compiled(schema, dialect)
    return None


def _compiled(schema: dict[str, Any], dialect: str) -> jsonschema_rs.Validator:
    candidate = {**schema, "$schema": dialect}
    jsonschema_rs.meta.validate(candidate)
    return jsonschema_rs.validator_for(candidate, validate_formats=False, retriever=_no_network)


def _no_network(uri: str) -> Any:
    raise ValueError(f"{uri} is not looked up")
