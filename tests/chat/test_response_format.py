"""Answers that are JSON by construction: random walks under the mask, judged by json and a schema validator."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openk2.chat.constraints import ToolConstraint
from openk2.chat.messages import ResponseFormat, ToolChoice, ToolSpec
from openk2.chat.parser import Marker, parse_ids
from openk2.chat.response_format import ReplyConstraint, build_constraint
from openk2.errors import ProviderError, RequestError, SchemaError
from openk2.tokenizer import Tokenizer

from .test_constraints import AUTO, NONE, PING, REQUIRED, WEATHER, allowed, feed, tool

SECTION, CALL, ARGUMENT, END, SECTION_END = (marker.value for marker in Marker)
VERDICT = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "maxLength": 12},
        "holds": {"type": "boolean"},
        "notes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 2},
    },
    "required": ["reason", "holds"],
    "additionalProperties": False,
}


def reply(
    tokenizer: Tokenizer, schema: dict[str, Any] | None, tools: tuple[ToolSpec, ...] = (), choice: ToolChoice = AUTO
) -> ReplyConstraint:
    constraint = build_constraint(tokenizer, tools, choice, 0, response_format=ResponseFormat(schema))
    assert isinstance(constraint, ReplyConstraint)
    return constraint


def walk(
    constraint: ReplyConstraint, tokenizer: Tokenizer, rng: random.Random, *, forced: bool, limit: int
) -> list[int]:
    """Tokens drawn evenly under the mask until the turn may only end; with `forced`, the forced ones are not drawn.

    Forced tokens are accepted without a look at the mask, as the engine does: inside of forced text the mask may name
    another way to cut it.
    """
    ids: list[int] = []
    while not constraint.is_finished and len(ids) < limit:
        step = constraint.forced_tokens() if forced else []
        for token_id in step or [int(rng.choice(allowed(constraint, tokenizer)))]:
            constraint.accept(token_id)
            ids.append(token_id)
    return ids


# Finite languages, so that every walk ends.
leaves = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"], "minimum": 0, "maximum": 3}]),
    st.tuples(st.integers(-200, 200), st.integers(0, 400)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
    ),
    st.integers(0, 3).map(lambda most: {"type": "string", "maxLength": most}),
    st.lists(st.one_of(st.text(max_size=3), st.integers(-9, 9), st.none()), min_size=1, max_size=3).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from([{"type": "string", "pattern": "^[a-c]{1,3}$"}, {"type": "string", "format": "date"}]),
)
keys = st.one_of(
    st.sampled_from(["zeta", "alpha", "title", "description", "type", "properties", "$ref", 'a "quoted" one', ""]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
)


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    properties = draw(st.dictionaries(keys, values, max_size=3))
    required = [name for name in properties if draw(st.booleans())]
    return {"type": "object", "properties": properties, "required": required} | draw(
        st.sampled_from([{}, {"additionalProperties": False}, {"description": "d", "title": "t"}])
    )


values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        objects(inner),
        st.tuples(inner, st.integers(0, 1)).map(
            lambda pair: {"type": "array", "items": pair[0], "minItems": pair[1], "maxItems": 2}
        ),
        st.tuples(inner, leaves).map(lambda pair: {"anyOf": list(pair)}),
    ),
    max_leaves=4,
)


@given(schema=objects(values), seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_random_walks_are_valid_objects_in_the_declared_order(
    tokenizer: Tokenizer, schema: dict[str, Any], seed: int
) -> None:
    constraint = reply(tokenizer, schema)
    ids = walk(constraint, tokenizer, random.Random(seed), forced=seed % 2 == 0, limit=3000)
    assert constraint.is_finished
    assert set(map(int, allowed(constraint, tokenizer))) == {tokenizer.im_end_id, tokenizer.eos_id}
    assert not tokenizer.special_ids & set(ids)
    text = tokenizer.decode_bytes(ids).decode()
    value = json.loads(text)
    jsonschema_rs.validator_for(schema).validate(value)
    assert list(value) == [name for name in schema["properties"] if name in value]
    assert parse_ids(tokenizer, [*ids, tokenizer.im_end_id]).message.content == text


@pytest.mark.parametrize("seed", range(12))
def test_any_object_where_no_schema_is_given(tokenizer: Tokenizer, seed: int) -> None:
    """40 tokens at random, then the shortest way out: the language has no longest text."""
    constraint, rng, ids = reply(tokenizer, None), random.Random(seed), []
    ways_out = [ord(char) for char in '"}]0']
    while not constraint.is_finished and len(ids) < 400:
        options = set(map(int, allowed(constraint, tokenizer)))
        out = ways_out if in_string(tokenizer.decode_bytes(ids)) else [*ways_out[1:], ways_out[0]]
        wanted = [token_id for token_id in out if token_id in options] if len(ids) >= 40 else []
        ids.append(wanted[0] if wanted else rng.choice(sorted(options)))
        constraint.accept(ids[-1])
    assert constraint.is_finished
    assert isinstance(json.loads(tokenizer.decode_bytes(ids)), dict)


def in_string(data: bytes) -> bool:
    quotes, escaped = 0, False
    for byte in data:
        quotes += byte == ord('"') and not escaped
        escaped = byte == ord("\\") and not escaped
    return quotes % 2 == 1


@pytest.mark.parametrize(
    ("text", "may"),
    [
        ('{"reason": "so", "holds": true}<|im_end|>', True),
        ('{"reason": "so", "holds": true}[EOS]', True),
        ('{"reason": "so", "holds": false, "notes": [1, 2]}<|im_end|>', True),
        ('{"reason": "so", "holds": true', True),
        ('{"reason": "so", "holds": true<|im_end|>', False),
        ("<|im_end|>", False),
        ("Sure: {", False),
        ("```json", False),
        (" {", False),
        ('{\n"', False),
        ('{"holds": true', False),  # the declared order
        ('{"reason": "so"}', False),
        ('{"reason": "so", "holds": 1', False),
        ('{"reason": "so", "holds": true, "more"', False),
        ('{"reason": "so", "holds": true}\n', False),
        ('{"reason": "so", "holds": true}{', False),
        ('{"reason": "<|im_end|>', False),
        (SECTION, False),
    ],
)
def test_what_may_be_said(tokenizer: Tokenizer, text: str, may: bool) -> None:
    assert feed(reply(tokenizer, VERDICT), tokenizer, text) is may


def test_the_first_token_decides_between_the_object_and_a_call(tokenizer: Tokenizer) -> None:
    tools = (WEATHER, PING)
    constraint = reply(tokenizer, VERDICT, tools)
    section = tokenizer.specials[SECTION]
    options = set(map(int, allowed(constraint, tokenizer)))
    assert options & tokenizer.special_ids == {section}
    assert {tokenizer.token_bytes(token_id)[:1] for token_id in options - {section}} == {b"{"}
    assert constraint.forced_tokens() == []

    called = f"{SECTION}{CALL}functions.ping:0{ARGUMENT}{{}}{END}{SECTION_END}"
    assert feed(constraint, tokenizer, called) and constraint.is_finished
    assert feed(constraint, tokenizer, "<|im_end|>")
    assert not feed(constraint, tokenizer, "{")
    assert not feed(reply(tokenizer, VERDICT, tools), tokenizer, f"{SECTION}{CALL}functions.pong")
    assert not feed(reply(tokenizer, VERDICT, tools), tokenizer, "{" + SECTION)
    assert feed(reply(tokenizer, VERDICT, tools), tokenizer, '{"reason": "", "holds": true}<|im_end|>')


@pytest.mark.parametrize("seed", range(6))
def test_walks_with_tools_end_in_one_or_the_other(tokenizer: Tokenizer, seed: int) -> None:
    constraint = reply(tokenizer, VERDICT, (PING,), ToolChoice("auto", parallel=False))
    section = tokenizer.specials[SECTION]
    start = [section] if seed % 2 else tokenizer.encode("{")
    for token_id in start:
        constraint.accept(token_id)
    ids = start + walk(constraint, tokenizer, random.Random(seed), forced=seed % 3 == 0, limit=400)
    message = parse_ids(tokenizer, ids).message
    assert constraint.is_finished
    if seed % 2:
        assert [(call.name, call.arguments) for call in message.tool_calls] == [("ping", "{}")] and not message.content
    else:
        jsonschema_rs.validate(VERDICT, json.loads(message.text))
        assert not message.tool_calls


def test_a_choice_that_leaves_no_choice(tokenizer: Tokenizer) -> None:
    required = build_constraint(tokenizer, (PING,), REQUIRED, 0, response_format=ResponseFormat(VERDICT))
    assert isinstance(required, ToolConstraint)
    none = reply(tokenizer, VERDICT, (PING,), NONE)
    assert tokenizer.specials[SECTION] not in allowed(none, tokenizer)
    assert tokenizer.decode(none.forced_tokens()) == '{"reason":'


def test_without_a_format_nothing_changes(tokenizer: Tokenizer) -> None:
    assert isinstance(build_constraint(tokenizer, (PING,), AUTO, 0), ToolConstraint)
    assert build_constraint(tokenizer, (PING,), AUTO, 0, grammar=False) is None


def test_a_token_that_may_not_be_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ProviderError, match="response format does not allow"):
        reply(tokenizer, VERDICT).accept(ord("x"))
    with pytest.raises(ProviderError, match="response format does not allow"):
        reply(tokenizer, VERDICT).accept(tokenizer.im_end_id)


def test_the_ends_of_a_turn_are_the_callers(tokenizer: Tokenizer) -> None:
    end = tokenizer.eos_id
    constraint = build_constraint(
        tokenizer, (), AUTO, 0, response_format=ResponseFormat({"properties": {}}), end_ids=[end, 10**6]
    )
    assert constraint is not None and feed(constraint, tokenizer, "{}")
    assert list(allowed(constraint, tokenizer)) == [end]


def test_recursive_schemas(tokenizer: Tokenizer) -> None:
    """As pydantic writes them: the root is a reference."""
    node = {
        "type": "object",
        "properties": {"v": {"type": "boolean"}, "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
        "required": ["v", "next"],
        "additionalProperties": False,
    }
    schema = {"$defs": {"Node": node}, "$ref": "#/$defs/Node"}
    text = '{"v": true, "next": {"v": false, "next": null}}<|im_end|>'
    assert feed(reply(tokenizer, schema), tokenizer, text)
    assert not feed(reply(tokenizer, schema), tokenizer, '{"v": true, "next": {"v": null')


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array"}, 'must be of type "object"'),
        ({"type": "object", "properties": {"a": {"type": "frob"}}}, "frob"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}}, r"\$defs/b"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}, "unclosed group"),
        ({"type": "object", "properties": {"a": {"enum": [{1, 2}]}}}, "not JSON"),
        (json.loads('{"properties":{"a":' * 400 + "{}" + "}}" * 400), "nested too deeply|recursion limit"),
    ],
)
def test_unusable_schemas_are_one_clear_line(tokenizer: Tokenizer, schema: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message) as caught:
        build_constraint(tokenizer, (), AUTO, 0, response_format=ResponseFormat(schema))
    assert caught.value.param == "response_format"
    assert "\n" not in str(caught.value)


def test_tools_are_checked_as_ever(tokenizer: Tokenizer) -> None:
    broken = tool("broken", {"type": "object", "properties": {"a": {"type": "frob"}}})
    with pytest.raises(SchemaError, match="'broken'"):
        reply(tokenizer, VERDICT, (broken,))
    with pytest.raises(RequestError, match="no tools"):
        reply(tokenizer, VERDICT, (), REQUIRED)


def test_walks_over_the_published_vocabulary(kimi_tokenizer: Tokenizer) -> None:
    for seed in range(2):
        constraint = reply(kimi_tokenizer, VERDICT)
        ids = walk(constraint, kimi_tokenizer, random.Random(seed), forced=True, limit=100)
        assert constraint.is_finished
        jsonschema_rs.validate(VERDICT, json.loads(kimi_tokenizer.decode_bytes(ids)))
