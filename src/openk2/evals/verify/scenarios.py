"""Single questions whose right answer is known: tool choice, answers in JSON, refusals, ids over turns."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from openk2.chat.ids import call_id
from openk2.chat.validity import schema_fault
from openk2.evals.verify.check import Check, check_of
from openk2.evals.verify.deployment import Deployment
from openk2.evals.verify.generator import ID_STYLES
from openk2.evals.verify.reply import Reply
from openk2.evals.verify.rules import finish_fault, foreign_id, leaked_marker, wrong_index
from openk2.evals.verify.validity import call_faults

Body = dict[str, Any]
MAX_TOKENS = 256
REFUSALS = frozenset({400, 413, 422})
"""Statuses of a request that can never be served."""
LARGEST_TESTED_WINDOW = 40_000
"""Tokens; a prompt beyond a larger window is megabytes, which costs money and meets other limits first."""

WEATHER: Body = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 40},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME: Body = {
    "type": "function",
    "function": {
        "name": "current_time",
        "description": "The current time of a time zone.",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "maxLength": 30}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
TOOLS = [WEATHER, TIME]
VERDICT: Body = {
    "type": "object",
    "properties": {
        "verdict": {"type": "string", "enum": ["yes", "no", "unsure"]},
        "score": {"type": "integer", "minimum": 0, "maximum": 100},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 10}, "maxItems": 3},
    },
    "required": ["verdict", "score", "tags"],
    "additionalProperties": False,
}


def weather_question(**fields: Any) -> Body:
    messages = [{"role": "user", "content": "What will the weather be in Lisbon for the next 3 days, in celsius?"}]
    return {"messages": messages, "tools": TOOLS, "max_tokens": MAX_TOKENS, **fields}


def plain_question(**fields: Any) -> Body:
    messages = [{"role": "user", "content": "Is a tomato a fruit? Answer briefly."}]
    return {"messages": messages, "max_tokens": MAX_TOKENS, **fields}


async def check_scenarios(
    deployment: Deployment, window: int | None, *, on_done: Callable[[], None] = lambda: None
) -> list[Check]:
    """All checks of this module, in order, one after another; `window`: tokens, where the endpoint tells."""
    checks = []
    for scenario in SCENARIOS:
        checks.append(await scenario(deployment))
        on_done()
    checks.append(await _beyond_the_window(deployment, window))
    return checks


def must_call(body: Mapping[str, Any], reply: Reply) -> str | None:
    """The fault of an answer that had to call one of the declared tools."""
    if reply.error is not None:
        return reply.error
    faults = call_faults(reply.calls, body["tools"])
    return (
        leaked_marker(body, reply.text, reply.calls)
        or (None if reply.calls else f"no call (finish_reason {reply.finish_reason!r})")
        or (faults[0].detail if faults else None)
        or finish_fault(reply.finish_reason, reply.calls)
        or foreign_id(reply.calls)
        or wrong_index(body["messages"], reply.calls)
        or ("; ".join(reply.faults) or None)
    )


async def _both_ways(
    deployment: Deployment, group: str, name: str, body: Body, judge: Callable[[Body, Reply], str | None]
) -> Check:
    """The question as one answer and as a stream."""
    results = []
    for way, fields in (("not streamed", {}), ("streamed", _STREAMED)):
        sent = {**body, **fields}
        fault = judge(sent, await deployment.ask(sent))
        results.append(None if fault is None else f"{way}: {fault}")
    return check_of(group, name, results)


_STREAMED: Body = {"stream": True, "stream_options": {"include_usage": True}}
Scenario = Callable[[Deployment], Awaitable[Check]]


def _called(name: str, body: Body, *, only: str | None = None, most: int | None = None) -> Scenario:
    def judge(sent: Body, reply: Reply) -> str | None:
        fault = must_call(sent, reply)
        others = [call.name for call in reply.calls if only is not None and call.name != only]
        if fault is None and others:
            fault = f"calls {others[0]!r} instead of {only!r}"
        if fault is None and most is not None and len(reply.calls) > most:
            fault = f"{len(reply.calls)} calls instead of {most}"
        return fault

    return lambda deployment: _both_ways(deployment, "tool choice", name, body, judge)


def _no_call(name: str, body: Body) -> Scenario:
    def judge(sent: Body, reply: Reply) -> str | None:
        if reply.error is not None:
            return reply.error
        if reply.calls or reply.finish_reason == "tool_calls":
            return f"{len(reply.calls)} calls, finish_reason {reply.finish_reason!r}"
        return leaked_marker({}, reply.text, ())

    return lambda deployment: _both_ways(deployment, "tool choice", name, body, judge)


def _json_answer(name: str, response_format: Body, schema: Body, *, one_line: bool) -> Scenario:
    question = "Is a tomato a fruit? Answer as JSON with the keys verdict, score and tags."
    body = plain_question(messages=[{"role": "user", "content": question}], response_format=response_format)

    def judge(sent: Body, reply: Reply) -> str | None:
        if reply.error is not None:
            return reply.error
        try:
            answer = json.loads(reply.text)
        except ValueError:
            return f"the answer is no JSON (finish_reason {reply.finish_reason!r}): {reply.text[:60]!r}"
        if one_line and ("\n" in reply.text or "\t" in reply.text):
            return "the answer has line breaks or tabs"
        return schema_fault(answer, schema)

    return lambda deployment: _both_ways(deployment, "response format", name, body, judge)


def _accepted(group: str, name: str, body: Body) -> Scenario:
    async def scenario(deployment: Deployment) -> Check:
        return check_of(group, name, [(await deployment.ask(body)).error])

    return scenario


def _refused(group: str, name: str, *bodies: Body) -> Scenario:
    async def scenario(deployment: Deployment) -> Check:
        results = []
        for body in bodies:
            reply = await deployment.ask(body)
            results.append(
                None if reply.status in REFUSALS else f"answered {reply.status or reply.error} instead of a refusal"
            )
        return check_of(group, name, results)

    return scenario


def _with_history(make_id: Callable[[str, int], str], calls: int, **fields: Any) -> Body:
    """A conversation with `calls` earlier calls, whose ids are made by `make_id`."""
    messages: list[Body] = []
    for index, city in enumerate(("Lisbon", "Oslo", "上海")[:calls]):
        arguments = json.dumps({"city": city, "days": 1, "unit": "celsius"}, ensure_ascii=False)
        id_ = make_id("get_weather", index)
        function = {"name": "get_weather", "arguments": arguments}
        messages += [
            {"role": "user", "content": f"What is the weather in {city} today, in celsius?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": id_, "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": id_, "content": '{"sky": "clear", "degrees": 21}'},
            {"role": "assistant", "content": f"Clear, 21 degrees in {city}."},
        ]
    messages.append({"role": "user", "content": "And in Rome tomorrow?"})
    return {"messages": messages, "tools": TOOLS, "max_tokens": MAX_TOKENS, **fields}


async def _foreign_histories(deployment: Deployment) -> Check:
    """A history whose ids another server made is the same prompt, which shows in its length."""
    expected: int | None = None
    results: list[str | None] = []
    for make_id in (call_id, *ID_STYLES[1:]):
        body = _with_history(make_id, 3, tool_choice="required")
        reply = await deployment.ask(body)
        fault = must_call(body, reply)
        if make_id is call_id:
            expected = reply.prompt_tokens
        elif fault is None and reply.prompt_tokens != expected:
            fault = f"the ids reach the prompt: {reply.prompt_tokens} tokens, {expected} with the model's own ids"
        results.append(None if fault is None else f"ids like {make_id('get_weather', 0)!r}: {fault}")
    return check_of("conversations", "foreign ids in the history", results)


async def _ids_over_turns(deployment: Deployment) -> Check:
    """Two turns with what the endpoint itself answered in between."""
    body = weather_question(tool_choice="required")
    first = await deployment.ask(body)
    fault = must_call(body, first)
    if fault is None:
        turn: Body = {"role": "assistant", "content": first.text or None}
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in first.calls
        ]
        results = [{"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'} for call in first.calls]
        again = {"role": "user", "content": "And what time is it in Tokyo?"}
        body = {**body, "messages": [*body["messages"], turn, *results, again]}
        second = await deployment.ask(body)
        fault = must_call(body, second)
        if fault is None and {call.id for call in first.calls} & {call.id for call in second.calls}:
            fault = f"the id {second.calls[0].id!r} comes twice"
    return check_of("conversations", "ids over two turns", [fault])


async def _same_prompt(deployment: Deployment) -> Check:
    """What a request costs does not depend on how its answer is delivered."""
    results = []
    for body in (weather_question(), plain_question(), _with_history(call_id, 2)):
        whole = await deployment.ask({**body, "max_tokens": 16})
        streamed = await deployment.ask({**body, "max_tokens": 16, **_STREAMED})
        fault = whole.error or streamed.error
        if fault is None and whole.prompt_tokens != streamed.prompt_tokens:
            fault = f"{whole.prompt_tokens} prompt tokens, {streamed.prompt_tokens} when streamed"
        results.append(fault)
    return check_of("conversations", "same prompt streamed or not", results)


async def _beyond_the_window(deployment: Deployment, window: int | None) -> Check:
    group, name = "refusals", "a prompt beyond the window"
    if window is None or window > LARGEST_TESTED_WINDOW:
        said = "no window" if window is None else f"a window of {window} tokens"
        return Check(group, name, 0, note=f"the endpoint lists {said}")
    body = plain_question(messages=[{"role": "user", "content": "again and " * window}], max_tokens=8)
    return await _refused(group, name, body)(deployment)


def _json_schema(**fields: Any) -> Body:
    return plain_question(response_format={"type": "json_schema", **fields})


def _tool_choice(value: Any, **fields: Any) -> Body:
    return plain_question(tool_choice=value, **fields)


_ASSISTANT_PAST: Body = {"role": "assistant", "content": "Yes.", "reasoning_content": "A fruit holds seeds."}
_LATE_SYSTEM = [
    {"role": "user", "content": "Is a tomato a fruit?"},
    _ASSISTANT_PAST,
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "And a potato?"},
]
_DEFAULTS: Body = {"temperature": 0.6, "top_p": 0.95, "presence_penalty": 0, "frequency_penalty": 0, "n": 1}
_NAMED: Body = {"type": "function", "function": {"name": "current_time"}}
_UNKNOWN: Body = {"type": "function", "function": {"name": "no_such_tool"}}
_STRICT: Body = {
    "type": "json_schema",
    "json_schema": {"name": "verdict", "schema": VERDICT, "strict": True},
}

SCENARIOS: tuple[Scenario, ...] = (
    _called("required calls a tool", weather_question(tool_choice="required")),
    _called("a named tool is called", weather_question(tool_choice=_NAMED), only="current_time"),
    _called(
        "one call when parallel calls are off",
        weather_question(tool_choice="required", parallel_tool_calls=False),
        most=1,
    ),
    _no_call("none calls nothing", weather_question(tool_choice="none")),
    _accepted("tool choice", "auto without tools is accepted", _tool_choice("auto")),
    _accepted("tool choice", "none without tools is accepted", _tool_choice("none")),
    _refused("tool choice", "required without tools", _tool_choice("required"), _tool_choice("required", tools=[])),
    _refused("tool choice", "an unknown tool choice", weather_question(tool_choice="sometimes")),
    _refused("tool choice", "a named tool that is not declared", weather_question(tool_choice=_UNKNOWN)),
    _json_answer("json_object", {"type": "json_object"}, {"type": "object"}, one_line=False),
    _json_answer("strict json_schema", _STRICT, VERDICT, one_line=True),
    _refused("response format", "an unknown type", plain_question(response_format={"type": "xml"})),
    _refused("response format", "json_schema left out", _json_schema()),
    _refused("response format", "a schema without its name", _json_schema(json_schema={"schema": VERDICT})),
    _refused("response format", "a name without its schema", _json_schema(json_schema={"name": "verdict"})),
    _refused("response format", "a schema that is no object", _json_schema(json_schema={"name": "v", "schema": "x"})),
    _refused(
        "response format",
        "strict that is no boolean",
        _json_schema(json_schema={"name": "v", "schema": VERDICT, "strict": "yes"}),
    ),
    _accepted("parameters", "the recommended sampling is accepted", plain_question(**_DEFAULTS)),
    _refused(
        "parameters",
        "sampling out of range",
        plain_question(temperature=-1),
        plain_question(top_p=1.5),
        plain_question(n=0),
    ),
    _refused("parameters", "no messages", {"max_tokens": 8}),
    _accepted("conversations", "reasoning and a late system message", plain_question(messages=_LATE_SYSTEM)),
    _foreign_histories,
    _ids_over_turns,
    _same_prompt,
)
