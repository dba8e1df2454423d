"""Is a tool call one that was asked for: a declared tool, JSON arguments, valid under its schema?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from openk2.chat.validity import schema_fault
from openk2.evals.verify.reply import Call

FaultKind = Literal["undeclared", "not json", "schema"]


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


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
