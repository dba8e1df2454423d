from __future__ import annotations

from typing import Any

import pytest

from openk2.chat.messages import Completion, FinishReason, Message, ToolCall, ToolSpec
from openk2.evals import Case, CaseKind, ExpectedCall, Score, Share, score_reply
from openk2.evals.figures import figures_of
from openk2.evals.scoring import call_matches, json_equal

TOOLS = tuple(ToolSpec.function(name, "", {"type": "object"}) for name in ("ping", "stop"))


def case(kind: CaseKind, *calls: ExpectedCall, contains: tuple[str, ...] = ()) -> Case:
    return Case("s/1", "s", kind, TOOLS, (Message("user", "x"),), calls, contains)


def reply(text: str = "", *calls: tuple[str, str], reason: FinishReason = "stop") -> Completion:
    made = tuple(ToolCall(f"functions.{name}:{at}", name, arguments) for at, (name, arguments) in enumerate(calls))
    return Completion(Message("assistant", text or None, tool_calls=made), reason)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (5, 5.0, True),
        (1, True, False),
        (True, True, True),
        (None, None, True),
        (None, False, False),
        ("5", 5, False),
        ({"a": 1, "b": [2]}, {"b": [2.0], "a": 1}, True),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ({"a": 1}, {"a": 1, "b": None}, False),
    ],
)
def test_json_equal(one: Any, other: Any, equal: bool) -> None:
    assert json_equal(one, other) is equal
    assert json_equal(other, one) is equal


def test_a_call_matches_with_its_alternatives_and_optional_arguments_only() -> None:
    wanted = ExpectedCall("ping", {"host": "a"}, {"host": ["A"]}, {"times": [1, 2], "label": None})
    assert call_matches(wanted, "ping", {"host": "a"})
    assert call_matches(wanted, "ping", {"host": "A", "times": 2, "label": "anything"})
    assert not call_matches(wanted, "stop", {"host": "a"})
    assert not call_matches(wanted, "ping", {})
    assert not call_matches(wanted, "ping", {"host": "b"})
    assert not call_matches(wanted, "ping", {"host": "a", "times": 3})
    assert not call_matches(wanted, "ping", {"host": "a", "extra": 1})


def test_parallel_calls_are_right_in_any_order_and_each_only_once() -> None:
    first, second = ExpectedCall("ping", {"host": "a"}, {"host": ["b"]}), ExpectedCall("ping", {"host": "a"})
    wanted = case("parallel", first, second)
    assert score_reply(wanted, reply("", ("ping", '{"host":"a"}'), ("ping", '{"host":"b"}'))).right_calls
    assert score_reply(wanted, reply("", ("ping", '{"host":"b"}'), ("ping", '{"host":"a"}'))).right_calls
    twice = score_reply(wanted, reply("", ("ping", '{"host":"b"}'), ("ping", '{"host":"b"}')))
    assert twice == Score(right_tools=True)
    assert score_reply(wanted, reply("", ("ping", '{"host":"a"}'))) == Score()
    more = reply("", *[("ping", '{"host":"a"}')] * 3)
    assert score_reply(wanted, more) == Score()


@pytest.mark.parametrize(
    "broken",
    [
        reply("", ("ping", '{"host":')),
        reply("", ("ping", "[1]")),
        reply("", ("ping", '{"host":NaN}')),
        reply("half an answ", reason="length"),
        reply("<|tool_calls_section_begin|>functions.ping"),
    ],
)
def test_broken_replies_are_unparsed_and_nothing_else(broken: Completion) -> None:
    assert score_reply(case("single", ExpectedCall("ping", {"host": "a"})), broken) == Score(unparsed=True)
    assert score_reply(case("no_tool"), broken) == Score(unparsed=True)


def test_text_replies() -> None:
    assert score_reply(case("ask_back"), reply("Which host?")).asks
    assert score_reply(case("ask_back"), reply("Please tell me the host.")).asks
    assert not score_reply(case("ask_back"), reply("Done.")).asks
    assert not score_reply(case("ask_back"), reply("Sorry, I have no tool for that.")).asks
    assert score_reply(case("ask_back"), reply("Which host?", ("ping", "{}"))) == Score()
    told = case("answer", contains=("12", "Hall"))
    assert score_reply(told, reply("12 ms from hall-1")).right_text
    assert not score_reply(told, reply("12 ms")).right_text
    assert score_reply(case("chat"), reply(" \n")) == Score(no_call=True)
    assert score_reply(case("chat"), None) == Score(failed=True)


def test_figures() -> None:
    single, fit = case("single", ExpectedCall("ping", {"host": "a"})), case("no_tool")
    shares = figures_of(
        [
            (single, Score(right_tools=True, right_calls=True)),
            (single, Score(right_tools=True)),
            (single, Score()),
            (single, Score(no_call=True)),
            (single, Score(unparsed=True)),
            (fit, Score(no_call=True)),
            (fit, Score(no_call=True)),
            (fit, Score()),
        ]
    )
    assert shares == {
        "tool choice": Share(2, 5),
        "arguments": Share(1, 2),
        "whole call": Share(1, 5),
        "no tool fits": Share(2, 3),
        "no-call precision": Share(2, 3),
        "no-call recall": Share(2, 3),
        "unparsed": Share(1, 8),
        "failed": Share(0, 8),
    }


def _binomial_root(right: int, n: int, sign: int) -> float:
    """The share p with (right/n - p) = sign * z * sqrt(p (1-p) / n), by bisection: Wilson's definition itself."""
    low, high = (0.0, right / n) if sign > 0 else (right / n, 1.0)
    for _ in range(200):
        p = (low + high) / 2
        far = abs(right / n - p) > 1.959963984540054 * (p * (1 - p) / n) ** 0.5
        if far == (sign > 0):
            low = p
        else:
            high = p
    return p


@pytest.mark.parametrize(("right", "n"), [(1, 2), (61, 100), (95, 97), (3, 40)])
def test_wilson_interval_solves_its_definition(right: int, n: int) -> None:
    assert Share(right, n).interval == pytest.approx(
        (_binomial_root(right, n, +1), _binomial_root(right, n, -1)), abs=1e-9
    )


def test_interval_of_extremes_and_of_nothing() -> None:
    assert Share(0, 10).interval == pytest.approx((0.0, 0.277533), abs=1e-5)
    assert Share(10, 10).interval == pytest.approx((0.722467, 1.0), abs=1e-5)
    assert Share(0, 0).interval is None
    assert Share(0, 0).value is None
