"""Calls judged by what they do: of the built-in tools, those whose result follows from the arguments alone are run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from openk2.agent.declare import ToolError
from openk2.agent.tools.arithmetic import calculate
from openk2.chat.builtin_tools import CALCULATE
from openk2.chat.messages import Completion, ToolCall
from openk2.evals.cases import Case, ExpectedCall
from openk2.evals.scoring import Score, parse_arguments, score_reply


def score_executed(case: Case, reply: Completion | None) -> Score:
    """As `score_reply`, but calls of `calculate` are right when their value is: `7 * 12` for `12 * 7`.

    The other built-in tools answer from the folder or the clock, so their arguments are compared as they are.
    """
    score = score_reply(case, reply)
    if score.right_calls or not score.right_tools or reply is None or CALCULATE not in case.tools:
        return score
    valued = replace(case, calls=tuple(_expected(call) for call in case.calls))
    calls = tuple(_called(call) for call in reply.message.tool_calls)
    return score_reply(valued, replace(reply, message=replace(reply.message, tool_calls=calls)))


def _expected(call: ExpectedCall) -> ExpectedCall:
    if call.name != CALCULATE.name:
        return call
    alternatives = {key: [_value(one) for one in values] for key, values in call.alternatives.items()}
    return replace(call, arguments=_values(call.arguments), alternatives=alternatives)


def _called(call: ToolCall) -> ToolCall:
    arguments = parse_arguments(call)
    if call.name != CALCULATE.name or arguments is None:
        return call
    return replace(call, arguments=json.dumps(_values(arguments)))


def _values(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _value(value) for key, value in arguments.items()}


def _value(expression: Any) -> Any:
    """What it comes to; itself where it cannot be calculated."""
    try:
        return calculate(expression) if isinstance(expression, str) else expression
    except ToolError:
        return expression
