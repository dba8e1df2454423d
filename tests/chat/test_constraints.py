"""Tool calls right by construction: random walks under the mask, judged by an independent schema validator."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from numpy.typing import NDArray

from openk2.chat.builtin_tools import BUILTIN_TOOLS
from openk2.chat.constraints import MAX_CALLS, ToolConstraint
from openk2.chat.messages import ToolCall, ToolChoice, ToolSpec
from openk2.chat.parser import Marker, parse_ids
from openk2.errors import ProviderError, RequestError, SchemaError
from openk2.tokenizer import Tokenizer

AUTO, NONE, REQUIRED = ToolChoice("auto"), ToolChoice("none"), ToolChoice("required")
SECTION, CALL, ARGUMENT, END, SECTION_END = (marker.value for marker in Marker)

# Bounded, so that a random walk ends; every kind of type that tools use.
SCHEMAS: dict[str, dict[str, Any]] = {
    "none": {"type": "object", "properties": {}},
    "any-order": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 4},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "units": {"enum": ["metric", "imperial"]},
            "exact": {"type": "boolean"},
        },
        "required": ["city", "units"],
    },
    "all-optional": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"const": 3}},
    },
    "many": {
        "type": "object",
        "properties": {name: {"type": "boolean"} for name in "hgfedcba"},
        "required": ["c", "h"],
    },
    "nested": {
        "type": "object",
        "properties": {
            "items": {
                "type": "array",
                "minItems": 1,
                "maxItems": 2,
                "items": {"type": "object", "properties": {"b": {"type": "null"}, "a": {"type": "boolean"}}},
            },
            "description": {"oneOf": [{"type": "boolean"}, {"type": "null"}]},
        },
        "required": ["items"],
    },
    "references": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": "https://example.com/s.json",
        "type": "object",
        "definitions": {"level": {"enum": [1, 2]}},
        "properties": {
            "low": {"$ref": "#/definitions/level"},
            "high": {"$ref": "https://example.com/s.json#/definitions/level"},
        },
        "required": ["low", "high"],
    },
    "open": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "additionalProperties": {"type": "boolean"},
        "required": ["a"],
        "maxProperties": 2,
    },
    "all-of": {
        "allOf": [
            {"properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": True},
            {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ],
        "maxProperties": 2,
    },
    "formats": {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "format": "int32", "minimum": -5, "maximum": 5},
            "list": {"type": "array", "items": {"type": "boolean"}, "uniqueItems": False, "maxItems": 2},
        },
    },
}


def tool(name: str, schema: dict[str, Any]) -> ToolSpec:
    return ToolSpec.function(name, "", schema)


WEATHER = tool("get_weather", SCHEMAS["any-order"])
PING = tool("ping", {"type": "object", "properties": {}})


def allowed(constraint: ToolConstraint, tokenizer: Tokenizer) -> NDArray[np.intp]:
    words = np.full((tokenizer.vocab_size + 31) // 32 + 2, -1, np.int32)  # a model's vocabulary may be larger
    assert constraint.fill_mask(words)
    ids = np.unpackbits(words.view(np.uint8), bitorder="little").nonzero()[0]
    assert len(ids)
    assert ids[-1] < tokenizer.vocab_size
    return ids


def walk(
    constraint: ToolConstraint, tokenizer: Tokenizer, rng: random.Random, *, forced: bool, limit: int
) -> list[int]:
    """Tokens drawn evenly under the mask, the section begun at once, until the turn may only end."""
    ids: list[int] = []
    while not constraint.is_finished and len(ids) < limit:
        step = constraint.forced_tokens() if forced else []
        for token_id in step:
            assert token_id in allowed(constraint, tokenizer)
            constraint.accept(token_id)
        if not step:
            step = [int(rng.choice(allowed(constraint, tokenizer)))]
            constraint.accept(step[0])
        ids += step
    return ids


def feed(constraint: ToolConstraint, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the constraint lets `text` (markers as literals) be said, token by token."""
    for token_id in tokenizer.encode_with_specials(text):
        if token_id not in allowed(constraint, tokenizer):
            return False
        constraint.accept(token_id)
    return True


def build(
    tokenizer: Tokenizer, tools: list[ToolSpec] | tuple[ToolSpec, ...], choice: ToolChoice, first_index: int = 0
) -> ToolConstraint:
    constraint = ToolConstraint.build(tokenizer, tools, choice, first_index)
    assert constraint is not None
    return constraint


@pytest.mark.parametrize("kind", SCHEMAS)
def test_random_walks_are_declared_calls_with_valid_arguments(tokenizer: Tokenizer, kind: str) -> None:
    tools = [tool("get_weather", SCHEMAS[kind]), tool("get_weather_2", SCHEMAS[kind])]
    validator = jsonschema_rs.validator_for({k: v for k, v in SCHEMAS[kind].items() if k != "$schema"})
    finished = 0
    for seed in range(8):
        constraint = build(tokenizer, tools, REQUIRED, first_index=9)
        ids = walk(constraint, tokenizer, random.Random(seed), forced=seed % 2 == 0, limit=80)
        calls = parse_ids(tokenizer, ids, first_index=9).message.tool_calls
        finished += constraint.is_finished
        assert calls or not constraint.is_finished
        assert tokenizer.decode(ids).count(CALL) - len(calls) in (0, 1)
        for position, call in enumerate(calls):
            assert call.name in {"get_weather", "get_weather_2"}
            assert f"{CALL}functions.{call.name}:{9 + position}{ARGUMENT}" in tokenizer.decode(ids)
            validator.validate(json.loads(call.arguments))
    assert finished >= 2


def test_a_tool_that_is_not_strict_is_called_by_name_with_any_object(tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "not": {}}
    loose = ToolSpec({"type": "function", "function": {"name": "loose", "parameters": schema, "strict": False}})
    for arguments, fits in ("{}", True), ('{"days": [1, {"a": null}]}', True), ("[]", False), ('{"city"}', False):
        constraint = build(tokenizer, [loose, PING], REQUIRED)
        assert feed(constraint, tokenizer, f"{SECTION}{CALL}functions.loose:0{ARGUMENT}{arguments}{END}") == fits
    assert not feed(build(tokenizer, [loose], REQUIRED), tokenizer, f"{SECTION}{CALL}functions.tight:0")
    with pytest.raises(SchemaError, match="loose"):
        build(tokenizer, [ToolSpec.function("loose", "", schema)], REQUIRED)


def test_walks_over_the_published_vocabulary(kimi_tokenizer: Tokenizer) -> None:
    calls: list[ToolCall] = []
    for seed in range(5):
        constraint = build(kimi_tokenizer, [WEATHER, PING], REQUIRED)
        ids = walk(constraint, kimi_tokenizer, random.Random(seed), forced=True, limit=60)
        calls += parse_ids(kimi_tokenizer, ids).message.tool_calls
    validator = jsonschema_rs.validator_for(SCHEMAS["any-order"])
    assert {call.name for call in calls} == {"get_weather", "ping"}
    assert all(validator.is_valid(json.loads(call.arguments)) for call in calls if call.name == "get_weather")
    assert all(call.arguments == "{}" for call in calls if call.name == "ping")


@pytest.mark.parametrize("kind", ["any-order", "many", "nested"])
def test_arguments_closed_objects_and_order(tokenizer: Tokenizer, kind: str) -> None:
    said = {
        "any-order": {
            '{"city": "Rom", "units": "metric"}': True,
            '{"units": "metric", "exact": true, "city": ""}': True,
            '{"city": "Rom"}': False,
            '{"city": "Rom", "units": "kelvin"}': False,
            '{"city": "Rom", "units": "metric", "days": 15}': False,
            '{"city": "Rom", "units": "metric", "wind": 1}': False,
            '{"city": "Rom", "city": "Rom", "units": "metric"}': False,
            '{"city":"Rom"}': False,
            "[]": False,
        },
        "many": {
            '{"c": true, "h": false}': True,
            '{"a": true, "c": true, "g": false, "h": false}': True,
            '{"h": true, "c": false}': False,
        },
        "nested": {
            '{"items": [{"a": true, "b": null}]}': True,
            '{"description": null, "items": [{}]}': True,
            '{"items": [{"b": null, "a": true}]}': False,
            '{"items": []}': False,
            '{"items": [{"c": 1}]}': False,
        },
    }[kind]
    for arguments, may in said.items():
        constraint = build(tokenizer, [tool("f", SCHEMAS[kind])], AUTO)
        text = f"Hm. {SECTION}{CALL}functions.f:0{ARGUMENT}{arguments}{END}{SECTION_END}"
        assert feed(constraint, tokenizer, text) is may, arguments
        assert constraint.is_finished is may


@pytest.mark.parametrize(
    ("text", "may"),
    [
        (f"{SECTION}{CALL}functions.ping:4{ARGUMENT}{{}}{END}{SECTION_END}", True),
        (f"{SECTION}{CALL}functions.ping:4{ARGUMENT}{{}}{END}{CALL}functions.ping:5{ARGUMENT}{{}}{END}", True),
        (f"{SECTION}{CALL}functions.ping:4{ARGUMENT}{{}}{END}{CALL}functions.ping:4{ARGUMENT}", False),
        (f"{SECTION}{CALL}functions.pong:4", False),
        (f"{SECTION}{CALL}functions.ping:0", False),
        (f"{SECTION}{CALL}ping", False),
        (f"{SECTION}{SECTION_END}", False),
        (f"{SECTION}{CALL}functions.ping:4{ARGUMENT}{END}", False),
        (f"{SECTION}{CALL}functions.ping:4{ARGUMENT}{{}}{END}{SECTION_END}<|im_end|>", True),
        (f"{SECTION}{CALL}functions.ping:4{ARGUMENT}{{}}{END}{SECTION_END}and", False),
        (f"{SECTION}{CALL}functions.ping:4{ARGUMENT}{{}}<|im_end|>", False),
        ("words, words<|im_end|>", True),
        ("words[EOS]", True),
        ("words<|im_user|>", False),
        ("words<|im_system|>", False),
        ("words[BOS]", False),
        (CALL, False),
        (SECTION_END, False),
    ],
)
def test_auto(tokenizer: Tokenizer, text: str, may: bool) -> None:
    assert feed(build(tokenizer, [WEATHER, PING], AUTO, first_index=4), tokenizer, text) is may


def test_strings_may_quote_markers_but_hold_no_control_token(tokenizer: Tokenizer) -> None:
    constraint = build(tokenizer, [tool("say", {"properties": {"text": {"type": "string"}}})], AUTO)
    assert feed(constraint, tokenizer, f'{SECTION}{CALL}functions.say:0{ARGUMENT}{{"text": "')
    assert not tokenizer.special_ids & set(map(int, allowed(constraint, tokenizer)))
    for token_id in tokenizer.encode(f'{END}<|im_end|>"}}'):
        assert token_id in allowed(constraint, tokenizer)
        constraint.accept(token_id)
    assert feed(constraint, tokenizer, END + SECTION_END)


@pytest.mark.parametrize(("tools", "choice"), [((WEATHER,), NONE), ((), AUTO), ((), NONE)])
def test_no_calls_where_none_may_be(tokenizer: Tokenizer, tools: tuple[ToolSpec, ...], choice: ToolChoice) -> None:
    constraint = build(tokenizer, tools, choice)
    ids = set(map(int, allowed(constraint, tokenizer)))
    assert ids & tokenizer.special_ids == {tokenizer.im_end_id, tokenizer.eos_id}
    assert set(range(tokenizer.n_ranks)) <= ids
    assert constraint.forced_tokens() == []


def test_required_and_named_open_the_section_at_once(tokenizer: Tokenizer) -> None:
    opening = [tokenizer.specials[SECTION], tokenizer.specials[CALL]]
    required = build(tokenizer, [WEATHER, PING], REQUIRED)
    assert list(allowed(required, tokenizer)) == opening[:1]
    forced = required.forced_tokens()
    assert forced[:2] == opening
    assert tokenizer.decode(forced[2:]) in "functions."

    named = build(tokenizer, [WEATHER, PING], ToolChoice("required", name="ping", parallel=False), first_index=2)
    text = tokenizer.decode(named.forced_tokens())
    assert text == f"{SECTION}{CALL}functions.ping:2{ARGUMENT}{{}}{END}{SECTION_END}"
    assert not feed(
        build(tokenizer, [WEATHER, PING], ToolChoice("required", name="ping")),
        tokenizer,
        text.replace("2", "0").replace("ping", "get_weather"),
    )


def test_forced_tokens_change_nothing_until_they_are_accepted(tokenizer: Tokenizer) -> None:
    constraint = build(tokenizer, BUILTIN_TOOLS, REQUIRED)
    first = constraint.forced_tokens()
    assert constraint.forced_tokens() == first
    for token_id in first:
        constraint.accept(token_id)
    assert constraint.forced_tokens() == []
    assert len(allowed(constraint, tokenizer)) > 1


def test_forced_arguments_are_the_tokens_of_the_text(kimi_tokenizer: Tokenizer) -> None:
    """The model sees forced text tokenized as it was in training."""
    schema = {"type": "object", "properties": {"city_name": {"const": "Beijing"}}, "required": ["city_name"]}
    constraint = build(kimi_tokenizer, [tool("get_weather", schema)], ToolChoice("required", parallel=False))
    expected = f'{SECTION}{CALL}functions.get_weather:0{ARGUMENT}{{"city_name": "Beijing"}}{END}{SECTION_END}'
    assert constraint.forced_tokens() == kimi_tokenizer.encode_with_specials(expected)


def test_at_most_one_call_where_parallel_is_off(tokenizer: Tokenizer) -> None:
    constraint = build(tokenizer, [PING], ToolChoice("auto", parallel=False))
    assert feed(constraint, tokenizer, f"{SECTION}{CALL}functions.ping:0{ARGUMENT}{{}}{END}")
    assert list(allowed(constraint, tokenizer)) == [tokenizer.specials[SECTION_END]]


def test_a_model_that_repeats_itself_is_led_out(tokenizer: Tokenizer) -> None:
    constraint = build(tokenizer, [PING], REQUIRED)
    calls = 0
    while not constraint.is_finished:
        options = constraint.forced_tokens() or [tokenizer.specials[CALL]]
        calls += options.count(tokenizer.specials[CALL])
        for token_id in options:
            constraint.accept(token_id)
    assert calls == MAX_CALLS


def test_after_the_section_only_the_turn_ends(tokenizer: Tokenizer) -> None:
    constraint = ToolConstraint.build(tokenizer, [PING], AUTO, 0, end_ids=[tokenizer.im_end_id])
    assert constraint is not None
    assert feed(constraint, tokenizer, f"{SECTION}{CALL}functions.ping:0{ARGUMENT}{{}}{END}{SECTION_END}")
    assert constraint.is_finished
    assert list(allowed(constraint, tokenizer)) == [tokenizer.im_end_id]
    assert constraint.forced_tokens() == []


def test_requests_do_not_share_state(tokenizer: Tokenizer) -> None:
    first, second = (build(tokenizer, [WEATHER], REQUIRED) for _ in range(2))
    assert feed(first, tokenizer, f'{SECTION}{CALL}functions.get_weather:0{ARGUMENT}{{"city": "')
    assert feed(second, tokenizer, f'{SECTION}{CALL}functions.get_weather:0{ARGUMENT}{{"units": "metric",')
    assert feed(first, tokenizer, 'R", "units": "metric"}')


def test_grammar_off_leaves_auto_free_and_nothing_else(tokenizer: Tokenizer) -> None:
    assert ToolConstraint.build(tokenizer, [WEATHER], AUTO, 0, grammar=False) is None
    for choice in (NONE, REQUIRED):
        assert ToolConstraint.build(tokenizer, [WEATHER], choice, 0, grammar=False) is not None


def test_a_token_against_the_mask_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ProviderError, match="does not allow"):
        build(tokenizer, [PING], REQUIRED).accept(0)
    constraint = build(tokenizer, [PING], AUTO)
    assert feed(constraint, tokenizer, f"{SECTION}{CALL}functions.")
    with pytest.raises(ProviderError, match="does not allow"):
        constraint.accept(ord("x"))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "object", "properties": {"a": {"type": "frob"}}}, "frob"),
        ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "not"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}}, r"\$defs/b"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}, "unclosed group"),
        ({"type": "object", "properties": [1]}, "properties"),
        ({"type": "object", "required": "a"}, "required"),
        ({"type": "object", "properties": {"a": 3}}, "schema must be"),
    ],
)
def test_unusable_schemas_are_one_clear_line(tokenizer: Tokenizer, schema: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message) as caught:
        ToolConstraint.build(tokenizer, [PING, tool("broken", schema)], AUTO, 0)
    assert "'broken'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([PING], ToolChoice("required", name="pong"), "'pong'"),
        ([], REQUIRED, "no tools"),
        ([PING, PING], AUTO, r"tools\[1\] declares 'ping' a second time"),
        ([PING, ToolSpec({"type": "function"})], AUTO, r"tools\[1\] is not"),
        ([tool("", {})], AUTO, r"tools\[0\] has no name"),
    ],
)
def test_impossible_choices(tokenizer: Tokenizer, tools: list[ToolSpec], choice: ToolChoice, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ToolConstraint.build(tokenizer, tools, choice, 0)
