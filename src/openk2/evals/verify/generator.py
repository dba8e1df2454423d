"""Seeded request lines: tools, histories and questions as agents send them, without a downloaded data set.

Line `i` of a seed is the same whatever the number of lines. Who wants the vendor's own requests passes their file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from openk2.evals.verify.schemas import arguments_schema

MOST_TOOLS = 30
MOST_TURNS = 20
TEMPERATURE = 0.6
"""The model's recommended one."""
MAX_TOKENS = 512
CHARS_PER_TOKEN = 1.5
"""A cautious guess for JSON in a small vocabulary; it only bounds a line's size."""

_VERBS = ("find", "create", "update", "delete", "list", "send", "book", "convert", "summarize", "schedule")
_NOUNS = ("invoice", "meeting", "flight", "ticket", "document", "weather", "contact", "order", "sensor", "playlist")
_ASKS = (
    "Please {verb} the {noun} for {who}: {detail}.",
    "I need you to {verb} a {noun}. {who} said: {detail}",
    "{who} 请你处理一下：{verb} {noun}，{detail}。",
    "{noun} を {verb} してください。担当は {who}、内容は「{detail}」です。",
    "Kannst du für {who} bitte {verb}: {noun}? {detail}",
)
_TALK = (
    "Thanks, that is all for today.",
    "How are you?",
    "你好，今天过得怎么样？",
    "Tell me in one sentence what you can do here.",
)
_PEOPLE = ("Ada", "Björn", "李雷", "佐藤", "Fatima", "O'Neil")
_DETAILS = (
    "by Friday, at most 40 units",
    "地址是 上海市静安区南京西路 1266 号",
    'the title is "Q3 \\"final\\" draft", in C:\\temp',
    "amount 1299.50, twice, but not before noon",
    "<b>urgent</b> & confidential",
)


def generate_lines(n: int, seed: int, *, window: int | None = None) -> list[dict[str, Any]]:
    """`n` whole request bodies, but for the model. Lines that would not fit a `window` (in tokens) are made smaller."""
    most_chars = int((window - MAX_TOKENS) * CHARS_PER_TOKEN) if window else None
    return [_fitting(seed, index, most_chars) for index in range(n)]


def _fitting(seed: int, index: int, most_chars: int | None) -> dict[str, Any]:
    tools, turns = MOST_TOOLS, MOST_TURNS
    while True:
        line = _line(random.Random(f"{seed}/{index}"), tools, turns)
        smallest = tools == 1 and turns == 0
        if most_chars is None or smallest or len(json.dumps(line, ensure_ascii=False)) <= most_chars:
            return line
        tools, turns = max(1, tools // 2), turns // 2


def _line(rng: random.Random, most_tools: int, most_turns: int) -> dict[str, Any]:
    """Small ones are more likely, as among real requests."""
    names = _tool_names(rng, min(most_tools, 1 + int(MOST_TOOLS * rng.random() ** 2)))
    tools = [_tool(rng, name) for name in names]
    turns = min(most_turns, int((MOST_TURNS + 1) * rng.random() ** 3))
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.7:
        messages.append({"role": "system", "content": f"You help {rng.choice(_PEOPLE)}. Use the tools when they fit."})
    messages += _history(rng, names, turns)
    messages.append({"role": "user", "content": _question(rng, names)})
    line = {"messages": messages, "tools": tools, "temperature": TEMPERATURE, "max_tokens": MAX_TOKENS}
    if rng.random() < 0.5:
        line["stream"] = True
    return line


def _tool_names(rng: random.Random, n: int) -> list[str]:
    pairs = rng.sample([(verb, noun) for verb in _VERBS for noun in _NOUNS], n)
    separator = rng.choice(("_", "_", "-"))
    return [f"{verb}{separator}{noun}" for verb, noun in pairs]


def _tool(rng: random.Random, name: str) -> dict[str, Any]:
    verb, noun = _words(name)
    function: dict[str, Any] = {"name": name, "description": f"{verb.capitalize()} one {noun} and report the result."}
    if rng.random() < 0.95:
        function["parameters"] = arguments_schema(rng)
    else:  # a tool without arguments, in both spellings
        function["parameters"] = rng.choice(({}, {"type": "object", "properties": {}}))
    return {"type": "function", "function": function}


def _question(rng: random.Random, names: list[str]) -> str:
    if rng.random() < 0.15:
        return rng.choice(_TALK)
    name = rng.choice(names) if rng.random() < 0.85 else "translate_poem"  # the last one is never declared
    verb, noun = _words(name)
    detail = rng.choice(_DETAILS)
    if rng.random() < 0.1:
        detail = "; ".join(rng.choice(_DETAILS) for _ in range(12))  # long arguments
    return rng.choice(_ASKS).format(verb=verb, noun=noun, who=rng.choice(_PEOPLE), detail=detail)


def _history(rng: random.Random, names: list[str], turns: int) -> list[dict[str, Any]]:
    """Earlier turns with calls and results, their ids canonical or, as through other clients, foreign."""
    make_id = rng.choice(ID_STYLES)
    messages: list[dict[str, Any]] = []
    for index in range(turns):
        name = rng.choice(names)
        call_id = make_id(name, index)
        arguments = json.dumps({"title": rng.choice(_DETAILS), "limit": index}, ensure_ascii=False)
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        result = {"ok": rng.random() < 0.9, "id": rng.randint(1, 999), "who": rng.choice(_PEOPLE)}
        messages += [
            {"role": "user", "content": _question(rng, [name])},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call_id, "content": json.dumps(result, ensure_ascii=False)},
            {"role": "assistant", "content": f"Done: {name}, number {result['id']}."},
        ]
    return messages


def _words(name: str) -> tuple[str, str]:
    verb, _, noun = name.replace("-", "_").partition("_")
    return verb, noun


ID_STYLES: tuple[Callable[[str, int], str], ...] = (
    lambda name, index: f"functions.{name}:{index}",
    lambda name, index: f"call_{index:02d}a8Zk3Q",
    lambda name, index: f"toolu_01{index:04d}XyZ",
    lambda name, index: f"functions_{name}_{index}",
    lambda name, index: f"{index:08x}-3c1e-4d2b-9f00-5a6b7c8d9e0f",
)
"""The canonical form, and those of other servers and clients."""
