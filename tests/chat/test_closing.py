"""Answers near their token limit: random walks that babble, judged by an independent schema validator."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from tests.support.walks import walk

from openk2.chat.closing import WATCHED_ROOM, Closer
from openk2.chat.constraints import ToolConstraint
from openk2.chat.grammars import tool_grammars
from openk2.chat.messages import ResponseFormat, ToolChoice, ToolSpec
from openk2.chat.parser import Marker, parse_ids
from openk2.chat.response_format import ReplyConstraint, build_constraint
from openk2.chat.schema import required_names
from openk2.tokenizer import Tokenizer

REQUIRED = ToolChoice("required")

# Unbounded where a model can babble on, and every reason for which a value may not end yet.
SCHEMAS: dict[str, dict[str, Any]] = {
    "string": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    "order": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 9},
            "days": {"type": "integer", "minimum": 100, "maximum": 999},
            "notes": {"type": "array", "items": {"type": "string"}},
            "units": {"enum": ["metric", "imperial"]},
        },
        "required": ["units", "city"],
    },
    "many": {
        "type": "object",
        "properties": {f"key_{name}": {"type": "string"} for name in "abcdefghij"},
        "required": ["key_e", "key_j"],
    },
    "nested": {
        "type": "object",
        "properties": {
            "rows": {
                "type": "array",
                "minItems": 2,
                "items": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "size": {"type": "integer"}, "tags": {"type": "array"}},
                    "required": ["name", "size"],
                },
            }
        },
        "required": ["rows"],
    },
    "shapes": {
        "type": "object",
        "properties": {
            "code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
            "mail": {"type": "string", "pattern": "^[a-z]+@[a-z]+[.]org$"},
            "when": {"type": "string", "format": "date"},
            "either": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "boolean"}, "minItems": 1}]},
        },
        "required": ["code", "mail", "when", "either"],
    },
    "open": {"type": "object", "additionalProperties": {"type": "string"}},
}


def tool(name: str, schema: dict[str, Any]) -> ToolSpec:
    return ToolSpec.function(name, "", schema)


def shortest(tokenizer: Tokenizer, schema: dict[str, Any]) -> int:
    """Tokens of the call f with nothing but what `schema` demands, its section included."""
    named = ToolConstraint.build(tokenizer, [tool("f", schema)], ToolChoice("required", parallel=False), 0)
    assert named is not None
    opening = named.forced_tokens()
    for token_id in opening:
        named.accept(token_id)
    assert named._matcher is not None
    path = tool_grammars(tokenizer).closer.path(named._matcher, WATCHED_ROOM, required_names(schema))
    assert path is not None
    return len(opening) + len(path) + 2


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_call_with_room_for_its_least_is_never_cut(tokenizer: Tokenizer, kind: str) -> None:
    schema = SCHEMAS[kind]
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    cut = {True: 0, False: 0}
    least = shortest(tokenizer, schema)
    for seed in range(8):
        limit = least + 4 * seed
        for closing in cut:
            constraint = ToolConstraint.build(tokenizer, [tool("f", schema)], REQUIRED, 0)
            assert constraint is not None
            ids, reason = walk(constraint, tokenizer, limit, seed, closing=closing)
            message = parse_ids(tokenizer, ids, "length" if reason == "length" else "stop").message
            cut[closing] += tokenizer.decode(ids).count(Marker.CALL_BEGIN.value) > len(message.tool_calls)
            for call in message.tool_calls:
                validator.validate(json.loads(call.arguments))
    assert cut[True] == 0
    assert cut[False] >= 3


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_json_answer_with_room_for_its_least_is_whole(tokenizer: Tokenizer, kind: str) -> None:
    schema = SCHEMAS[kind]
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    least = shortest(tokenizer, schema)
    for seed in range(3):
        constraint = build_constraint(tokenizer, [], ToolChoice("none"), 0, response_format=ResponseFormat(schema))
        assert isinstance(constraint, ReplyConstraint)
        ids, _ = walk(constraint, tokenizer, least + 9 * seed, seed)
        text = tokenizer.decode([token_id for token_id in ids if token_id not in tokenizer.special_ids])
        validator.validate(json.loads(text))


def test_nesting_without_end_is_left_in_time(tokenizer: Tokenizer) -> None:
    """Each level costs more to close than to open, so the way out grows past what a look near the limit could save."""
    node = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}, "value": {"type": "number"}},
        "required": ["next", "value"],
    }
    schema = {"$defs": {"Node": node}, "type": "object", "properties": {"list": {"$ref": "#/$defs/Node"}}}
    constraint = ToolConstraint.build(tokenizer, [tool("f", schema)], REQUIRED, 0)
    assert constraint is not None
    said = f"{Marker.SECTION_BEGIN.value}{Marker.CALL_BEGIN.value}functions.f:0{Marker.ARGUMENT_BEGIN.value}"
    ids, limit = list[int](), 700
    for token_id in tokenizer.encode_with_specials(said + '{"list": ' + '{"next": ' * limit):
        closing = constraint.closing_tokens(token_id, limit - len(ids))
        for taken in closing or [token_id]:
            constraint.accept(taken)
            ids.append(taken)
        if closing:
            break
    assert limit // 2 < len(ids) <= limit
    (call,) = parse_ids(tokenizer, ids, "length").message.tool_calls
    assert call.arguments.count("next") > 15
    jsonschema_rs.validate(schema, json.loads(call.arguments))


@pytest.mark.parametrize("digits", ["1" * 90, "0." + "7" * 90])
def test_a_number_that_is_whole_at_any_digit_ends_in_time(tokenizer: Tokenizer, digits: str) -> None:
    """The way out of the value itself is empty: what follows it must still be written."""
    constraint = ToolConstraint.build(tokenizer, [tool("f", {"type": "number", "minimum": 0})], REQUIRED, 0)
    assert constraint is not None
    said = f"{Marker.SECTION_BEGIN.value}{Marker.CALL_BEGIN.value}functions.f:0{Marker.ARGUMENT_BEGIN.value}"
    ids, limit = list[int](), 40
    for token_id in tokenizer.encode_with_specials(said + digits):
        closing = constraint.closing_tokens(token_id, limit - len(ids))
        for taken in closing or [token_id]:
            constraint.accept(taken)
            ids.append(taken)
        if closing:
            break
    assert len(ids) <= limit
    (call,) = parse_ids(tokenizer, ids, "length").message.tool_calls
    assert digits.startswith(call.arguments) and len(call.arguments) > 10


@pytest.mark.parametrize("bounds", [(-1, 0), (0, 20), (-0.5, -0.001), (0.25, 0.26)])
def test_a_number_that_may_not_end_in_zeros_is_not_closed_by_them(
    tokenizer: Tokenizer, bounds: tuple[float, float]
) -> None:
    """-0.00...01 with hundreds of zeros is below 0, and every reader of JSON makes it -0."""
    low, high = bounds
    number = {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high}
    schema = {"type": "object", "properties": {"x": number}, "required": ["x"], "additionalProperties": False}
    matcher = tool_grammars(tokenizer).arguments("f", schema).deep_copy()
    begun = '{"x": ' + ("-0." if low < 0 else "0.")
    assert all(matcher.consume_token(token_id) for token_id in tokenizer.encode(begun))
    path = Closer(tokenizer).path(matcher, WATCHED_ROOM, frozenset())
    assert path is not None and len(path) < 8
    jsonschema_rs.validate(schema, json.loads(begun + tokenizer.decode(path)))


def test_no_room_is_a_cut_call(tokenizer: Tokenizer) -> None:
    """What cannot be closed goes on to the limit: the length is the reason, and no call is delivered."""
    constraint = ToolConstraint.build(tokenizer, [tool("f", SCHEMAS["nested"])], REQUIRED, 0)
    assert constraint is not None
    ids, reason = walk(constraint, tokenizer, shortest(tokenizer, SCHEMAS["nested"]) // 2, 0)
    assert reason == "length"
    assert parse_ids(tokenizer, ids, "length").message.tool_calls == ()


@pytest.mark.parametrize("others", [[], [tool("f", SCHEMAS["shapes"])]])
def test_no_call_is_begun_after_another_that_may_never_be_closed(tokenizer: Tokenizer, others: list[ToolSpec]) -> None:
    constraint = ToolConstraint.build(tokenizer, [*others, tool("ping", {})], REQUIRED, 0)
    begin, end = (tokenizer.specials[marker.value] for marker in (Marker.CALL_BEGIN, Marker.SECTION_END))
    assert constraint is not None
    said = f"{Marker.SECTION_BEGIN.value}{Marker.CALL_BEGIN.value}functions.ping:0{Marker.ARGUMENT_BEGIN.value}{{}}"
    for token_id in tokenizer.encode_with_specials(said + Marker.CALL_END.value):
        constraint.accept(token_id)
    another = 3 + len(tokenizer.encode("functions.ping:1")) + len(tokenizer.encode("{}"))
    assert constraint.closing_tokens(begin, another) == ([end] if others else [])  # it could be a call of the other
    assert constraint.closing_tokens(begin, another - 1) == [end]
    assert constraint.closing_tokens(begin, WATCHED_ROOM) == []
    assert constraint.closing_tokens(end, 1) == []


def test_required_keys_are_preferred(tokenizer: Tokenizer) -> None:
    matcher = tool_grammars(tokenizer).arguments("f", SCHEMAS["order"])
    path = Closer(tokenizer).path(matcher, WATCHED_ROOM, frozenset([b"units", b"city"]))
    assert path is not None
    assert json.loads(tokenizer.decode(path)).keys() == {"units", "city"}
    assert Closer(tokenizer).path(matcher, 5, frozenset()) is None


def test_far_from_the_limit_nothing_is_looked_at(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("looked")

    monkeypatch.setattr(Closer, "path", never)
    constraint = ToolConstraint.build(tokenizer, [tool("f", SCHEMAS["string"])], REQUIRED, 0)
    assert constraint is not None
    for token_id in constraint.forced_tokens():
        constraint.accept(token_id)
    words = np.zeros((tokenizer.vocab_size + 31) // 32, np.int32)
    constraint.fill_mask(words)
    token_id = int(np.unpackbits(words.view(np.uint8), bitorder="little").nonzero()[0][0])
    assert constraint.closing_tokens(token_id, WATCHED_ROOM + 1) == []
    with pytest.raises(AssertionError, match="looked"):
        constraint.closing_tokens(token_id, WATCHED_ROOM)
