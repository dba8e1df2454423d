"""Edits of JSON with comments: the change is there, and nothing else has moved."""

from __future__ import annotations

import json
from json import JSONDecodeError
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openk2.client.jsonc import MISSING, Named, value_at, with_value

ZED = """\
// Zed settings
{
    "theme": "One Dark", // my favourite
    /* models */
    "language_models": {
        "ollama": {"api_url": "http://localhost:11434"}, // local
    },
    "buffer_font_size": 15 // the last, without a comma
    // and a closing word
}
"""


def test_a_member_is_added_and_every_other_line_stays() -> None:
    changed = with_value(ZED, ("language_models", "openai_compatible", "mine"), {"api_url": "u"})
    assert changed == ZED.replace(
        "// local\n",
        """// local
        "openai_compatible": {
            "mine": {
                "api_url": "u"
            }
        }
""",
    )


def test_the_comma_goes_before_the_comment() -> None:
    assert '"buffer_font_size": 15, // the last' in with_value(ZED, ("tab_size",), 2)
    assert with_value(ZED, ("tab_size",), 2).endswith('// and a closing word\n    "tab_size": 2\n}\n')


def test_a_value_is_replaced_in_its_place() -> None:
    assert with_value(ZED, ("theme",), "Ayu") == ZED.replace("One Dark", "Ayu")


@pytest.mark.parametrize(
    ("text", "path", "changed"),
    [
        ("", ("a", "b"), '{\n  "a": {\n    "b": 1\n  }\n}\n'),
        ("// nothing yet", ("a",), '// nothing yet\n{\n  "a": 1\n}\n'),
        ("{}", ("a",), '{\n  "a": 1\n}'),
        ("{\n}\n", ("a",), '{\n  "a": 1\n}\n'),
        ('{"b":2}', ("a",), '{"b":2,\n  "a": 1\n}'),
        ('{"b":2,}', ("a",), '{"b":2,\n  "a": 1\n}'),
        ('{\r\n\t"b": 2\r\n}\r\n', ("a", "c"), '{\r\n\t"b": 2,\r\n\t"a": {\r\n\t\t"c": 1\r\n\t}\r\n}\r\n'),
        ("\ufeff{}", ("a",), '\ufeff{\n  "a": 1\n}'),
        ('{"a": 5, "a": 6}', ("a",), '{"a": 5, "a": 1}'),
        ('{"//": "/* no comment */"}', ("//",), '{"//": 1}'),
    ],
)
def test_forms_of_text(text: str, path: tuple[str, ...], changed: str) -> None:
    assert with_value(text, path, 1) == changed


def test_an_object_of_an_array_is_found_by_its_name() -> None:
    text = '[\n  {"name": "other", "id": 1},\n  {"name": "mine", "id": 2}\n]\n'
    mine = {"name": "mine", "id": 3}
    assert json.loads(with_value(text, (Named("mine"),), mine)) == [{"name": "other", "id": 1}, mine]
    added = with_value('[{"name": "other"}]', (Named("mine"),), mine)
    assert json.loads(added) == [{"name": "other"}, mine]
    assert value_at(added, (Named("mine"), "id")) == 3


def test_what_is_missing_is_not_null() -> None:
    assert value_at('{"a": null}', ("a",)) is None
    assert value_at('{"a": null}', ("b",)) is value_at("", ("a",)) is value_at('{"a": 1}', ("a", "b")) is MISSING


@pytest.mark.parametrize(
    "text", ["{", '{"a" 1}', '{"a": 1 "b": 2}', "{'a': 1}", "{a: 1}", "{} {}", "/* open", "[1,,2]", '{"a": NaN}', "{,}"]
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(JSONDecodeError):
        with_value(text, ("a",), 1)


def test_a_value_of_another_kind_on_the_way_is_refused() -> None:
    with pytest.raises(TypeError, match=r"env is not an object"):
        with_value('{"env": "PATH"}', ("env", "A"), 1)
    with pytest.raises(TypeError, match="the whole is not an array"):
        with_value("{}", (Named("mine"),), {})


keys = st.text(max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(keys, values, max_size=4), keys, values, st.sampled_from([None, 1, 4, "\t"]))
def test_any_edit_of_any_object_is_the_same_as_pythons(
    before: dict[str, Any], key: str, value: Any, indent: int | str | None
) -> None:
    text = json.dumps(before, indent=indent)
    assert json.loads(with_value(text, (key,), value)) == {**before, key: value}
