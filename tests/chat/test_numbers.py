"""Numbers in JSON that is written under a grammar: not so long that a reader rounds them out of their bounds."""

from __future__ import annotations

import json
import random

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.walks import walk

from openk2.chat.constraints import ToolConstraint
from openk2.chat.lexers import Marker
from openk2.chat.messages import ResponseFormat, ToolChoice, ToolSpec
from openk2.chat.numbers import MOST_DIGITS, MOST_EXPONENT_DIGITS, MOST_INTEGER_DIGITS, DigitMasks, NumberWatch
from openk2.chat.parser import parse_ids
from openk2.chat.response_format import build_constraint
from openk2.tokenizer import Tokenizer

CLOSED = {"type": "object", "required": ["x"], "additionalProperties": False}
BOUNDS = [
    {"type": "number", "exclusiveMinimum": -1, "exclusiveMaximum": 0},
    {"type": "number", "exclusiveMinimum": -1, "exclusiveMaximum": 0.5},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 20},
]


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False), st.text())
def test_the_watch_knows_a_number_from_text(number: float, text: str) -> None:
    watch = NumberWatch()
    watch.feed(json.dumps({text: [text, "12.5"]}).encode() + b",")
    assert watch.room is None
    said = json.dumps(number)
    watch.feed(b"[" + said.encode())
    mantissa, _, exponent = said.lower().partition("e")
    most = MOST_EXPONENT_DIGITS if exponent else MOST_DIGITS if "." in said else MOST_INTEGER_DIGITS
    assert watch.room == max(0, most - sum(c.isdigit() for c in exponent or mantissa))
    watch.feed(b", ")
    assert watch.room is None


@pytest.mark.parametrize("schema", BOUNDS, ids=str)
@pytest.mark.parametrize("digit", ["0", "9", "e"])
def test_a_number_that_only_repeats_a_digit_stays_within_its_bounds(
    tokenizer: Tokenizer, schema: dict[str, object], digit: str
) -> None:
    """What a model does that is stuck: the digit as long as it may, else whatever may come."""
    spec = ToolSpec.function("f", "", {**CLOSED, "properties": {"x": schema}})
    constraint = ToolConstraint.build(tokenizer, [spec], ToolChoice("required"), 0)
    assert constraint is not None
    said = f'{Marker.SECTION_BEGIN.value}{Marker.CALL_BEGIN.value}functions.f:0{Marker.ARGUMENT_BEGIN.value}{{"x": '
    ids = tokenizer.encode_with_specials(said + ("0." if schema["exclusiveMaximum"] else "-0."))
    for token_id in ids:
        constraint.accept(token_id)
    wanted = tokenizer.encode(digit)[0]
    words, rng = np.zeros((tokenizer.vocab_size + 31) // 32, np.int32), random.Random(0)
    nine = tokenizer.encode("9")[0]
    while ids[-1] != tokenizer.specials[Marker.CALL_END.value]:
        constraint.fill_mask(words)
        allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()
        ids.append(next((token_id for token_id in (wanted, nine) if token_id in allowed), None) or rng.choice(allowed))
        constraint.accept(ids[-1])
        assert len(ids) < 80
    (call,) = parse_ids(tokenizer, ids, "stop").message.tool_calls
    jsonschema_rs.validate(dict(spec.parameters), json.loads(call.arguments))


def test_json_answers_too(tokenizer: Tokenizer) -> None:
    schema = {**CLOSED, "properties": {"x": {"type": "number", "minimum": 0}}}
    for seed in range(6):
        constraint = build_constraint(tokenizer, [], ToolChoice("none"), 0, response_format=ResponseFormat(schema))
        ids, _ = walk(constraint, tokenizer, 200, seed)
        text = tokenizer.decode([token_id for token_id in ids if token_id not in tokenizer.special_ids])
        digits = text.partition('"x":')[2].strip(" }").split("e")[0].split("E")[0]
        assert sum(c.isdigit() for c in digits.split(",")[0]) <= MOST_INTEGER_DIGITS + 1


def test_what_only_digits_can_follow_keeps_them(tokenizer: Tokenizer) -> None:
    masks = DigitMasks(tokenizer)
    words = np.zeros((tokenizer.vocab_size + 31) // 32, np.int32)
    for token_id in tokenizer.encode("7"):
        words.view(np.uint32)[token_id // 32] |= np.uint32(1 << token_id % 32)
    before = words.copy()
    masks.limit(words, 0)
    assert (words == before).all()
