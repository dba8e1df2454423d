"""What becomes of a schema on its way to the grammar: nothing that is not valid under it may be said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from openk2.chat.constraints import ToolConstraint
from openk2.chat.messages import ToolChoice, ToolSpec
from openk2.errors import SchemaError
from openk2.tokenizer import Tokenizer

NAMED = ToolChoice("required", name="f", parallel=False)
TEXT, WHOLE = {"type": "string"}, {"type": "integer"}


def object_of(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def admits(tokenizer: Tokenizer, schema: dict[str, Any], arguments: str) -> bool:
    """Whether a call of the tool f may have these arguments."""
    constraint = ToolConstraint.build(tokenizer, [ToolSpec.function("f", "", schema)], NAMED, 0)
    assert constraint is not None
    section, call, argument = (
        tokenizer.specials[f"<|{name}|>"]
        for name in ("tool_calls_section_begin", "tool_call_begin", "tool_call_argument_begin")
    )
    end = tokenizer.specials["<|tool_call_end|>"]
    for token_id in [section, call, *tokenizer.encode("functions.f:0"), argument, *tokenizer.encode(arguments), end]:
        words = np.zeros((tokenizer.vocab_size + 31) // 32, np.int32)
        constraint.fill_mask(words)
        if not words.view(np.uint32)[token_id // 32] >> np.uint32(token_id % 32) & 1:
            return False
        constraint.accept(token_id)
    return True


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (TEXT, {'"Rom"': True, "3": False, "{}": False}),
        ({"type": ["number"], "maximum": 9}, {"3.5": True, "12": False, '"3"': False}),
        ({"type": "null"}, {"null": True, "true": False}),
        ({"type": "array", "items": TEXT}, {"[]": True, '["a", "b"]': True, "[1]": False}),
        ({"enum": ["a", 2]}, {'"a"': True, "2": True, '"b"': False}),
        ({"anyOf": [TEXT, WHOLE]}, {'"a"': True, "2": True, "null": False}),
        ({"anyOf": [{"type": "null"}, {"type": "null"}]}, {"null": True, "0": False}),
        ({"$defs": {"a": {"$ref": "#/$defs/c"}, "c": TEXT}, "$ref": "#/$defs/a"}, {'"a"': True, "1": False}),
    ],
)
def test_any_root(tokenizer: Tokenizer, schema: dict[str, Any], said: dict[str, bool]) -> None:
    for arguments, may in said.items():
        assert admits(tokenizer, schema, arguments) is may, arguments


@pytest.mark.parametrize(
    "schema",
    [
        object_of("a", a=TEXT) | {"type": ["object", "null"]},
        {"properties": {"a": TEXT}, "required": ["a"]},
        {"anyOf": [TEXT, object_of("a", a=TEXT), {"type": "null"}]},
    ],
)
def test_arguments_are_an_object_where_they_may_be(tokenizer: Tokenizer, schema: dict[str, Any]) -> None:
    assert admits(tokenizer, schema, '{"a": "x"}')
    assert not any(admits(tokenizer, schema, other) for other in ("null", '"a"', "{}"))


def test_what_never_ends_is_never_begun(tokenizer: Tokenizer) -> None:
    chain = {"$defs": {"Chain": object_of("next", next={"$ref": "#/$defs/Chain"})}}
    optional = object_of(node={"$ref": "#/$defs/Chain"}, name=TEXT) | chain
    assert admits(tokenizer, optional, '{"name": "x"}')
    assert not admits(tokenizer, optional, '{"node": {"next": {}}}')
    either = {"anyOf": [{"$ref": "#/$defs/Chain"}, TEXT]} | chain
    assert admits(tokenizer, either, '"x"')
    ended = object_of("next", next={"anyOf": [{"$ref": "#"}, {"type": "null"}]})
    assert admits(tokenizer, ended, '{"next": {"next": null}}')
    for endless in (chain | {"$ref": "#/$defs/Chain"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1}):
        with pytest.raises(SchemaError, match="no value can ever be valid"):
            admits(tokenizer, endless, "{}")


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("#/$defs/word", True),
        ("#/shared/kinds/1", True),
        ("#/properties/b", True),
        ("#word", True),
        ("https://example.com/root.json#/$defs/word", True),
        ("part.json#/$defs/word", False),  # a document within the document
        ("https://example.com/part.json#/properties/here", False),
    ],
)
def test_references_lead_where_the_specification_says(tokenizer: Tokenizer, reference: str, text: bool) -> None:
    part = {"$id": "part.json", "$defs": {"word": WHOLE}} | object_of(here={"$ref": "#/$defs/word"})
    schema = object_of("a", a={"$ref": reference}, b=TEXT) | {
        "$id": "https://example.com/root.json",
        "$defs": {"word": TEXT | {"$anchor": "word"}, "part": part},
        "shared": {"kinds": [WHOLE, TEXT]},
    }
    assert admits(tokenizer, schema, '{"a": "x"}') is text
    assert admits(tokenizer, schema, '{"a": 1}') is not text


ONE_OF: dict[str, tuple[list[Any], dict[str, bool]]] = {
    "types": ([TEXT, object_of("a", a=TEXT)], {'{"a": "x"}': True}),
    "required": (
        [{"required": ["a"]}, {"required": ["b"]}],
        {'{"a": 1}': True, '{"b": 1}': True, '{"a": 1, "b": 1}': False, "{}": False},
    ),
    "constants": (
        [object_of("k", k={"const": "x"}, a=WHOLE), object_of("k", k={"const": "y"}, a=TEXT)],
        {'{"a": 1, "k": "x"}': True, '{"a": "1", "k": "y"}': True, '{"a": 1, "k": "y"}': False},
    ),
    "narrowed": (
        [object_of("a", a=WHOLE, b=WHOLE), object_of("b", b=WHOLE)],
        {'{"a": 1}': True, '{"b": 1}': True, '{"a": 1, "b": 1}': False},
    ),
}


@pytest.mark.parametrize("kind", ONE_OF)
def test_one_of_is_one(tokenizer: Tokenizer, kind: str) -> None:
    branches, said = ONE_OF[kind]
    schema: dict[str, Any] = {"oneOf": branches}
    if kind == "required":
        schema = object_of(a=WHOLE, b=WHOLE) | schema
    for arguments, may in said.items():
        assert admits(tokenizer, schema, arguments) is may, arguments


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"oneOf": [WHOLE, {"type": "number"}]}, r"both oneOf\[0\] and oneOf\[1\]"),
        ({"oneOf": [object_of("a", a=TEXT), object_of("a", a=TEXT, b=TEXT)]}, "oneOf"),
        (object_of(a={"$ref": "#/$defs/b"}), "leads nowhere"),
        (object_of(a={"$ref": "https://example.com/b.json"}), "outside of the schema"),
        ({"type": "object", "minProperties": 2}, "minProperties 2"),
    ],
)
def test_what_cannot_be_kept_is_refused(tokenizer: Tokenizer, schema: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message) as caught:
        admits(tokenizer, schema, "{}")
    assert "'f'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "may"),
    [
        ("date", "2024-02-29", True),
        ("date", "2023-02-29", False),
        ("date", "1900-02-29", False),
        ("date", "2000-02-29", True),
        ("date", "2024-04-31", False),
        ("date-time", "2024-02-29T23:59:59.5+01:00", True),
        ("date-time", "2023-02-29T00:00:00Z", False),
        ("time", "24:00:00Z", False),
        ("colour", "any", True),
    ],
)
def test_formats(tokenizer: Tokenizer, name: str, text: str, may: bool) -> None:
    assert admits(tokenizer, {"type": "string", "format": name}, f'"{text}"') is may
