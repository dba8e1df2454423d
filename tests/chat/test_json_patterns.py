"""Patterns under the grammar: what they exclude stays out, escaped or not."""

from __future__ import annotations

import json
import re

import pytest

from openk2.chat.grammars import ToolGrammars
from openk2.chat.json_schema.patterns import compiler_pattern
from openk2.chat.schema import argument_grammars
from openk2.tokenizer import Tokenizer

TEXTS = (
    *(
        "",
        "a",
        '"',
        "\\",
        'a"',
        "a\\",
        "\n",
        "\t",
        "\x1f",
        "/",
        "一",
        "a&",
        "[",
        "]",
        "~",
        "&",
        "@",
        "-",
        "^",
        "1",
        'A"',
    ),
    *("ab@example.org", 'a"b@example.org', "a\\b@example.org"),
)


@pytest.fixture
def grammars(tokenizer: Tokenizer) -> ToolGrammars:
    return ToolGrammars(tokenizer)


def admits(grammars: ToolGrammars, schema: dict[str, object], value: object) -> bool:
    matcher = grammars.compile(argument_grammars(schema))
    ids = grammars.tokenizer.encode(json.dumps(value, ensure_ascii=False))
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of re: what a nested class will mean one day
@pytest.mark.parametrize(
    "pattern",
    [
        '^[^"]+$',
        r"^[^\\]*$",
        '^[^"\\\\]{1,3}$',
        '^[^a"]$',
        '^(a|[^"])+$',
        '[^"]',
        r"^[^\s\"]+$",
        r"^[^\d\"]+$",
        '^[a-z"]+$',
        r"^[\x20-\x7e]+$",
        r"^[\x00-!#-\x7e]+$",
        r"^[\x00-\x1f]+$",
        r"^[\s\S]+$",
        "^[!-~]+$",
        r"^\D+$",
        "^[^[\\]]+$",
        "^[[]$",
        "^[&a]+$",
        "^[a&&b]+$",
        "^[~a]$",
        r"^\[a\]$",
        "^[a-]$",
        "^[a^]$",
        r"^\"$",
        '^[^@ "\\\\]{1,8}@example[.]org$',
    ],
)
def test_a_pattern_admits_what_the_regex_does(grammars: ToolGrammars, pattern: str) -> None:
    texts = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}, "required": ["a"]}
    keys = {"type": "object", "patternProperties": {pattern: {"const": 1}}, "additionalProperties": False}
    for text in TEXTS:
        matches = re.search(pattern.replace("$", r"\Z"), text, re.ASCII) is not None
        assert admits(grammars, texts, {"a": text}) is matches, text
        assert admits(grammars, keys, {text: 1}) is matches, text


def test_a_property_class_without_quotes_admits_none(grammars: ToolGrammars) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": r"^\P{P}+$"}}, "required": ["a"]}
    assert [admits(grammars, schema, {"a": text}) for text in ("a1", 'a"', "a\\")] == [True, False, False]


@pytest.mark.parametrize("pattern", ["", "abc", "^a{2}$", r"\d\.\]", "[abc]", "[a", "a\\", "[^", "[\\", r"[\d-]", "[]"])
def test_what_has_no_such_class_stays_as_it_is(pattern: str) -> None:
    assert compiler_pattern(pattern) == pattern
