"""The published schema cases, each sent as a tool's parameters as it is: a random walk under the mask must be valid."""

from __future__ import annotations

from pathlib import Path

import jsonschema_rs
import pytest
from tests.support.walks import value_of, walk

from openk2.chat.constraints import ToolConstraint
from openk2.chat.messages import ToolChoice, ToolSpec
from openk2.chat.parser import parse_ids
from openk2.errors import SchemaError
from openk2.evals.verify.schema_checks import SchemaCase, cases_in
from openk2.tokenizer import Tokenizer

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "schema_cases" / "validator_cases"
UNUSABLE = {"TestRangeConstraints/valid.jsonl:3": "a string of at least 999,999,999,999 characters"}
LIMIT = 400
"""Tokens of an answer; what babbles on is closed within them."""


@pytest.fixture(scope="module")
def cases() -> list[SchemaCase]:
    if not FOLDER.is_dir():
        pytest.skip(f"no published schema cases in {FOLDER}")
    return cases_in(FOLDER)


def test_every_case_but_the_odd_one_is_called_validly(tokenizer: Tokenizer, cases: list[SchemaCase]) -> None:
    refused, cut, invalid = [], [], []
    for seed, case in enumerate(cases):
        tool = ToolSpec.function("f", "", case.schema)
        try:
            constraint = ToolConstraint.build(tokenizer, [tool], ToolChoice("required", parallel=False), 0)
        except SchemaError:
            refused.append(case.name)
            continue
        assert constraint is not None
        ids, reason = walk(constraint, tokenizer, LIMIT, seed)
        calls = parse_ids(tokenizer, ids, "length" if reason == "length" else "stop").message.tool_calls
        if not calls:
            cut.append(case.name)
        # One case has a title in the place of its `$id`, which no URI parser takes; nothing refers to it.
        judged = {key: value for key, value in case.schema.items() if key not in ("$schema", "$id")}
        validator = jsonschema_rs.Draft202012Validator(judged, validate_formats=True)
        invalid += [(case.name, call.arguments) for call in calls if not validator.is_valid(value_of(call.arguments))]
    assert len(cases) == 212
    assert invalid == []
    assert cut == []
    assert refused == list(UNUSABLE)
