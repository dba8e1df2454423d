"""Is a tool call one that was asked for: a declared tool, JSON arguments, valid under its schema?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jsonschema_rs

from openk2.evals.verify.reply import Call

FaultKind = Literal["undeclared", "not json", "schema"]
_DIALECTS = (
    "https://json-schema.org/draft/2020-12/schema",
    "http://json-schema.org/draft-07/schema#",
    "http://json-schema.org/draft-04/schema#",
)
"""A schema is read in the first of these that accepts it: generators seldom say which they write."""


class CallFault(NamedTuple):
    kind: FaultKind
    detail: str


def call_faults(calls: Iterable[Call], tools: Sequence[Mapping[str, Any]]) -> list[CallFault]:
    """What is wrong with the calls, at most one fault for each."""
    schemas: dict[str, Any] = {}
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            schemas[function["name"]] = function.get("parameters")
    found = []
    for call in calls:
        if call.name not in schemas:
            found.append(CallFault("undeclared", f"calls {call.name!r}, which is no declared tool"))
            continue
        try:
            arguments = json.loads(call.arguments, parse_constant=_refuse)
        except (ValueError, RecursionError):
            shown = call.arguments if len(call.arguments) <= 60 else call.arguments[:57] + "..."
            found.append(CallFault("not json", f"{call.name}: the arguments are no JSON: {shown!r}"))
            continue
        reason = schema_fault(arguments, schemas[call.name])
        if reason is not None:
            found.append(CallFault("schema", f"{call.name}: {reason}"))
    return found


def schema_fault(value: Any, schema: Any) -> str | None:
    """Why `value` is not valid under `schema`; None when it is, when there is no schema, or when that is none."""
    validator = _validator(schema)
    if validator is None:
        return None
    for error in validator.iter_errors(value):
        where = "".join(f"[{step!r}]" for step in error.instance_path)
        return f"{where or 'the value'}: {error.message}"
    return None


def _validator(schema: Any) -> jsonschema_rs.Validator | None:
    if not isinstance(schema, dict) or not schema:
        return None
    for dialect in _DIALECTS:
        candidate = {**schema, "$schema": dialect}
        try:
            jsonschema_rs.meta.validate(candidate)
            return jsonschema_rs.validator_for(candidate, validate_formats=False, retriever=_no_network)
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError):
            continue
    return None


def _no_network(uri: str) -> Any:
    raise ValueError(f"{uri} is not looked up")


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
