"""Is an answer right? The comparison of one reply with one case."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openk2.chat.messages import Completion, ToolCall
from openk2.evals.cases import Case, ExpectedCall

CONTROL_MARKS = ("<|tool_call", "<|im_")
"""In a reply's text these mean that the model began a call or a turn and did not finish it in the wire format."""

ASKING = re.compile(
    r"[?？]|\b(please (tell|give|say|specify|provide|name|choose|enter|add)|let me know|tell me|give me|i need)\b",
    re.IGNORECASE,
)
"""A text that asks for something: a question mark, or a request in words."""


@dataclass(frozen=True)
class Score:
    """What one reply got right. A reply that is `unparsed` or `failed` is wrong in every other respect."""

    unparsed: bool = False
    """The reply is neither text nor complete calls with JSON objects as arguments."""
    failed: bool = False
    """No reply came: the provider refused the request."""
    no_call: bool = False
    """The reply is text only."""
    right_tools: bool = False
    """The tools called are those expected, each as often as expected."""
    right_calls: bool = False
    """The calls are those expected: names and whole arguments, in any order."""
    asks: bool = False
    """The reply is text only and asks something."""
    right_text: bool = False
    """The reply is text only, not empty, and contains what it must."""


def score_reply(case: Case, reply: Completion | None) -> Score:
    """Compare a reply with what `case` expects; None stands for a request that was refused."""
    if reply is None:
        return Score(failed=True)
    text, calls = reply.message.text, reply.message.tool_calls
    arguments = [parse_arguments(call) for call in calls]
    cut = reply.finish_reason in ("length", "error")
    if cut or None in arguments or any(mark in text for mark in CONTROL_MARKS):
        return Score(unparsed=True)
    if not calls:
        said = text.strip()
        contains = all(part.casefold() in said.casefold() for part in case.contains)
        return Score(no_call=True, asks=bool(ASKING.search(said)), right_text=bool(said) and contains)
    given = [(call.name, parsed) for call, parsed in zip(calls, arguments, strict=True) if parsed is not None]
    return Score(
        right_tools=sorted(name for name, _ in given) == sorted(call.name for call in case.calls),
        right_calls=len(given) == len(case.calls) and _pair_off(case.calls, given),
    )


def parse_arguments(call: ToolCall) -> dict[str, Any] | None:
    """The call's arguments; None when they are not one JSON object (NaN and Infinity are not JSON)."""
    try:
        value = json.loads(call.arguments, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def call_matches(expected: ExpectedCall, name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a call is the expected one: the same tool, no argument missing, extra or different."""
    if name != expected.name or not expected.arguments.keys() <= arguments.keys():
        return False
    for key, value in arguments.items():
        if key in expected.arguments:
            allowed: Sequence[Any] | None = (expected.arguments[key], *expected.alternatives.get(key, ()))
        elif key in expected.optional:
            allowed = expected.optional[key]
        else:
            return False
        if allowed is not None and not any(json_equal(value, one) for one in allowed):
            return False
    return True


def json_equal(one: Any, other: Any) -> bool:
    """Equality of JSON values: 5 equals 5.0, but true is not 1; order counts in arrays and not in objects."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return one == other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(json_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(json_equal, one, other))
    return type(one) is type(other) and bool(one == other)


def _pair_off(expected: Sequence[ExpectedCall], given: Sequence[tuple[str, dict[str, Any]]]) -> bool:
    """Whether each expected call can be given a call of its own. Tries all ways: alternatives may overlap."""
    if not expected:
        return not given
    first, rest = expected[0], expected[1:]
    return any(
        call_matches(first, *call) and _pair_off(rest, [*given[:at], *given[at + 1 :]]) for at, call in enumerate(given)
    )
