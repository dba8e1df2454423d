"""Schemas as tool parameters: the call that each forces must be valid under it, streamed or not."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openk2.errors import DataError
from openk2.evals.verify.check import Check
from openk2.evals.verify.deployment import Deployment
from openk2.evals.verify.runner import gathered
from openk2.evals.verify.scenarios import must_call
from openk2.evals.verify.schemas import arguments_schema

MAX_TOKENS = 1024


@dataclass(frozen=True)
class SchemaCase:
    group: str
    name: str
    schema: Any


def generated_cases(n: int, seed: int, *, wide: bool = False) -> list[SchemaCase]:
    """`n` seeded schemas of objects; case `i` is the same whatever their number. wide: see `arguments_schema`."""

    def schema(number: int) -> dict[str, Any]:
        return arguments_schema(random.Random(f"schema/{seed}/{number}"), wide=wide)

    return [SchemaCase("schemas", f"generated {seed}/{number}", schema(number)) for number in range(n)]


def cases_in(folder: Path) -> list[SchemaCase]:
    """One case for each line of each `*.jsonl`, and one for each `*.json`, below a folder.

    Raises DataError when there are none, or naming the first that is no JSON.
    """
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl")):
        where = path.relative_to(folder).as_posix()
        try:
            text = path.read_text(encoding="utf-8")
            lines = text.split("\n") if path.suffix == ".jsonl" else [text]
            found += [
                SchemaCase(f"schemas in {folder.name}", f"{where}:{number}", json.loads(line))
                for number, line in enumerate(lines, start=1)
                if line.strip()
            ]
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: {error}", param=str(path)) from error
    if not found:
        raise DataError(f"{folder} holds no schema cases (*.jsonl, *.json)", param=str(folder))
    return found


async def check_schemas(
    deployment: Deployment, cases: Sequence[SchemaCase], *, on_done: Callable[[], None] = lambda: None
) -> list[Check]:
    """One check for each case, in order."""

    async def check(case: SchemaCase) -> Check:
        faults = []
        for stream in (False, True):
            body = _question(case.schema, stream)
            fault = must_call(body, await deployment.ask(body))
            if fault is not None:
                faults.append(f"{'streamed' if stream else 'not streamed'}: {fault}")
        on_done()
        return Check(case.group, case.name, 2, tuple(faults))

    return await gathered([check(case) for case in cases])


def _question(schema: Any, stream: bool) -> dict[str, Any]:
    function = {"name": "submit", "description": "Submit one entry.", "parameters": schema}
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Submit an entry with values of your choice."}],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "max_tokens": MAX_TOKENS,
    }
    return {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body
