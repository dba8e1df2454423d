"""Rules that every answer keeps, whatever was asked: the faults that tool users meet, found in the records of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openk2.chat.ids import call_id, parse_call_id
from openk2.evals.verify.check import Check, check_of
from openk2.evals.verify.records import Record
from openk2.evals.verify.reply import Call
from openk2.evals.verify.validity import call_faults

GROUP = "answers"
MARKER = re.compile(r"<\|[a-z_]+\|>|\[(?:BOS|EOS|EOT|PAD|UNK)\]")
"""The control tokens of the model, as text."""
FINISH_REASONS = ("stop", "length", "tool_calls")


@dataclass(frozen=True)
class Rule:
    name: str
    meaning: str
    counts: Callable[[Record], bool]
    """Whether the rule says anything about this answer."""
    fault: Callable[[Record], str | None]


def judge_records(records: Sequence[Record]) -> list[Check]:
    """One check for each rule. A request that the window has no room for is left out of all of them."""
    checks = []
    for rule in RULES:
        counted = [record for record in records if not is_too_long(record) and rule.counts(record)]
        checks.append(check_of(GROUP, rule.name, (_numbered(record, rule.fault(record)) for record in counted)))
    return checks


def is_too_long(record: Record) -> bool:
    """Whether the request was refused since it does not fit the model's window."""
    return record.error is not None and re.search(r"context.{0,12}(length|window)", record.error) is not None


def leaked_marker(request: Mapping[str, Any], text: str, calls: Iterable[Call]) -> str | None:
    """The first control token in what is delivered as text; those that the caller wrote may be quoted."""
    asked = json.dumps(request, ensure_ascii=False)
    for place, value in [
        ("content", text),
        *((f"a call of {call.name!r}", call.name + call.arguments) for call in calls),
    ]:
        for marker in MARKER.findall(value):
            if marker not in asked:
                return f"{marker} in {place}"
    return None


def foreign_id(calls: Iterable[Call]) -> str | None:
    """The first id that is not of the model's form `functions.NAME:INDEX`, with the called name."""
    for call in calls:
        parsed = parse_call_id(call.id)
        if parsed is None or call.id != call_id(call.name, parsed[1]):
            return f"a call of {call.name!r} has the id {call.id!r}"
    return None


def wrong_index(messages: Sequence[Mapping[str, Any]], calls: Sequence[Call]) -> str | None:
    """The first id whose index does not go on from the calls of the history; foreign ids are not looked at."""
    before = sum(len(message.get("tool_calls") or ()) for message in messages)
    for number, call in enumerate(calls, start=before):
        parsed = parse_call_id(call.id)
        if parsed is not None and parsed[1] != number:
            return f"after {before} earlier calls comes {call.id!r}, not index {number}"
    return None


def finish_fault(finish_reason: str | None, calls: Sequence[Call]) -> str | None:
    """`tool_calls` is said if and only if there are calls; an answer cut off may hold some."""
    if finish_reason not in FINISH_REASONS:
        return f"finish_reason {finish_reason!r}"
    if finish_reason == "tool_calls" and not calls:
        return "finish_reason 'tool_calls' without a call"
    if finish_reason == "stop" and calls:
        return f"finish_reason 'stop' with {len(calls)} calls"
    return None


def usage_fault(usage: Any) -> str | None:
    if not isinstance(usage, dict):
        return "no usage"
    counts: list[Any] = [usage.get(f"{key}_tokens") for key in ("prompt", "completion", "total")]
    if not all(isinstance(count, int) for count in counts) or counts[0] <= 0 or counts[1] < 0:
        return f"usage {json.dumps(usage)}"
    prompt, answer, total = counts
    return None if total == prompt + answer else f"total_tokens {total} is not {prompt} + {answer}"


def _numbered(record: Record, fault: str | None) -> str | None:
    return None if fault is None else f"line {record.data_index}: {fault}"


def _answered(record: Record) -> bool:
    return record.status == "success"


def _calls(record: Record) -> bool:
    return _answered(record) and bool(record.calls)


def _call_fault(*kinds: str) -> Callable[[Record], str | None]:
    def fault(record: Record) -> str | None:
        faults = call_faults(record.calls, record.request.get("tools") or ())
        # The last call of an answer that the token limit cut off may be incomplete.
        if record.finish_reason == "length" and faults and faults[-1].kind == "not json":
            faults.pop()
        return next((found.detail for found in faults if found.kind in kinds), None)

    return fault


def _repeated_id(record: Record) -> str | None:
    history = [call.get("id") for message in record.request["messages"] for call in message.get("tool_calls") or ()]
    seen = {str(known) for known in history}
    for call in record.calls:
        if call.id in seen:
            return f"the id {call.id!r} is used twice in the conversation"
        seen.add(call.id)
    return None


RULES = (
    Rule("answered", "every request gets a whole answer", lambda r: True, lambda r: r.error),
    Rule("form", "streams and bodies keep to the API's form", _answered, lambda r: "; ".join(r.faults) or None),
    Rule(
        "no markers",
        "no control token is delivered as text",
        _answered,
        lambda r: leaked_marker(r.request, r.text, r.calls),
    ),
    Rule(
        "finish reason",
        "tool_calls if and only if there are calls",
        _answered,
        lambda r: finish_fault(r.finish_reason, r.calls),
    ),
    Rule("declared tools", "calls name declared tools only", _calls, _call_fault("undeclared")),
    Rule("arguments", "arguments are JSON", _calls, _call_fault("not json")),
    Rule("schema", "arguments are valid under the tool's schema", _calls, _call_fault("schema")),
    Rule("call ids", "ids are functions.NAME:INDEX, of the called name", _calls, lambda r: foreign_id(r.calls)),
    Rule(
        "call index",
        "the index counts on over the conversation",
        lambda r: _calls(r) and foreign_id(r.calls) is None,
        lambda r: wrong_index(r.request["messages"], r.calls),
    ),
    Rule("unique ids", "no id is used twice in a conversation", _calls, _repeated_id),
    Rule("usage", "token counts are there and add up", _answered, lambda r: usage_fault(r.response.get("usage"))),
)
