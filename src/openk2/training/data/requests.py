"""Turning a tool and values into the words of a request and the arguments it asks for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from openk2.training.data.dice import Dice
from openk2.training.data.frames import Slot, Tool
from openk2.training.data.value import Value
from openk2.training.data.values import Values

_CHOICE = re.compile(r"\(([^()]*)\)")
_IMPLIED = re.compile(r"\[(\w+)=([^\]]*)\]")
_SLOT = re.compile(r"(\bon )?\{(\w+)(?:@(\w+))?\}")
"""A slot, with the `on ` before it, which goes before `tomorrow`."""
_BEFORE = (
    "please {}", "can you {}", "could you {}", "could you please {}", "can you please {}", "I need you to {}", "I want you to {}", "I want to {}", "I'd like to {}",
    "would you {}", "hey, {}", "hi, {}", "ok, {}", "now {}", "help me {}", "I need to {}", "would you mind, {}", "let's {}", "go ahead and {}", "quickly {}", "time to {}",
    "hello, can you {}", "I have to {}", "will you {}", "just {}", "you should {}", "kindly {}", "try to {}",
)  # fmt: skip
_QUESTIONS = (
    "can ",
    "could ",
    "would ",
    "will ",
    "what",
    "which",
    "how",
    "where",
    "when",
    "who",
    "is ",
    "are ",
    "do ",
    "does ",
    "did ",
    "any ",
    "have ",
    "should ",
    "may ",
    "hello, can",
)
_ASIDES = (
    "Sorry to bother you.", "It's urgent.", "I'm in a hurry.", "My boss is waiting.", "I don't have much time.", "It's for a friend.", "I hope you can help.", "We talked about it yesterday.",
    "I tried it myself but failed.", "No rush.", "This is important.", "I have a question.", "I'm new here.", "Good morning.", "It's me again.", "You know what I mean.", "I promised it.",
    "I almost forgot.", "My colleague asked me.", "It should not take long.", "Let me know when it's done.", "I'm on the road.", "Nobody else can do it.",
)  # fmt: skip
_AFTER = (
    " please",
    ", please",
    " for me",
    " now",
    ", thanks",
    " right away",
    " asap",
    " if you can",
    " thanks",
    " quickly",
)


@dataclass(frozen=True)
class Request:
    """Words, and the one call that they ask for."""

    text: str
    tool: Tool
    values: dict[str, Value]
    """By slot, the given ones."""
    value_first: bool = False
    """The words begin with a value, whose case must stay."""

    @property
    def arguments(self) -> dict[str, Any]:
        """By parameter name, in sorted order."""
        return {
            key: self.values[slot].value
            for slot, key in sorted(self.tool.keys.items(), key=lambda item: item[1])
            if slot in self.values
        }

    @property
    def arguments_json(self) -> str:
        return dump(self.arguments)


def dump(value: Any) -> str:
    """JSON in the form the model writes: Python's default separators, non-ASCII kept."""
    return json.dumps(value, ensure_ascii=False)


def expand(text: str, rng: Dice) -> str:
    """Resolve the choices `(a|b)` of a pattern, innermost first."""
    while "(" in text:
        text, n = _CHOICE.subn(lambda m: rng.choice(m.group(1).split("|")), text)
        if not n:
            break
    return re.sub(r"\s+", " ", text).strip()


def add_phrase(phrase: str, surface: str, rng: Dice) -> str:
    """`on {}` and `Friday` -> `on Friday`; but `on {}` and `tomorrow` -> `tomorrow`."""
    phrase = expand(phrase, rng)
    if phrase == "on {}" and surface.startswith(_RELATIVE_DAYS):
        return surface
    return phrase.replace("{}", surface)


_RELATIVE_DAYS = ("today", "tomorrow", "next ", "this ")


def draw_value(slot: Slot, values: Values) -> tuple[Value, str]:
    """A value of `slot` and the phrase that adds it to a request."""
    rng = values.rng
    if slot.kind == "bool":
        true = rng.random() < 0.6 or not slot.negative
        phrase = expand(rng.choice(slot.phrases if true else slot.negative), rng)
        return Value(true, phrase, verbatim=False), phrase
    if slot.options:
        option = rng.choice(slot.options)
        surface = option.replace("_", " ")
        if rng.random() < 0.08:
            surface = surface.capitalize()
        value = Value(option, surface, verbatim=False)
    else:
        value = values.draw(slot.kind)
    return value, add_phrase(rng.choice(slot.phrases), value.surface, rng) if slot.phrases else ""


def make_request(
    tool: Tool,
    values: Values,
    *,
    omit: str | None = None,
    fixed: dict[str, Value] | None = None,
    plain: bool = False,
    optional: float = 0.35,
) -> Request:
    """A request for one call of `tool`.

    `omit`: a slot that the words must not give. `fixed`: values that are already decided. `plain`: no politeness or
    capital letter, for use inside a longer sentence. `optional`: chance that an optional slot is given.
    """
    rng = values.rng
    fixed = fixed or {}
    slots = {s.name: s for s in tool.slots}
    asks = tool.frame.asks
    for _ in range(30):
        ask = asks[int(rng.random() * len(asks))]
        text = expand(ask.text, rng)
        implied = dict(_IMPLIED.findall(text))
        used = [(name, kind) for _, name, kind in _SLOT.findall(text)]
        if omit and any(name == omit for name, _ in used):
            text = _without(text, slots[omit], tool, rng)
            used = [(name, kind) for name, kind in used if name != omit]
        mentioned = {*(name for name, _ in used), *implied}
        if mentioned <= slots.keys() and omit not in mentioned and not (implied.keys() & fixed.keys()):
            break
    else:
        raise ValueError(f"tool {tool.name}: no request pattern leaves out {omit!r}")
    text = _IMPLIED.sub("", text)
    value_first = text.startswith("{")
    given: dict[str, Value] = {}
    for name, raw in implied.items():
        given[name] = Value(_typed(raw, slots[name]), raw, verbatim=False)
    surfaces: dict[str, str] = {}
    for name, kind in used:
        if name not in given:
            given[name] = fixed.get(name) or (values.draw(kind) if kind else draw_value(slots[name], values)[0])
            surfaces[name] = given[name].surface
    text = _SLOT.sub(lambda m: add_phrase(f"{m.group(1) or ''}{{}}", surfaces.get(m.group(2), ""), rng), text)
    extra: list[str] = []
    for slot in slots.values():
        if slot.name in given or slot.name == omit:
            continue
        if slot.name in fixed:
            given[slot.name] = fixed[slot.name]
            extra.append(add_phrase(rng.choice(slot.phrases), fixed[slot.name].surface, rng))
        elif slot.required or (slot.phrases and rng.random() < optional):
            value, phrase = draw_value(slot, values)
            given[slot.name] = value
            extra.append(phrase)
    rng.shuffle(extra)
    for phrase in extra:
        joint = "" if phrase.startswith((",", ":")) else " "
        text += joint + phrase
    text = re.sub(r"\s+", " ", text).strip().replace(" ,", ",").replace(" ?", "?")
    for slot in slots.values():
        if slot.kind == "money" and slot.name in given and rng.random() < 0.35:
            text = text.replace(f"{given[slot.name].surface} dollars", f"${given[slot.name].surface}")
    return Request(text if plain else polish(text, ask.imperative, rng, value_first), tool, given, value_first)


def _without(text: str, slot: Slot, tool: Tool, rng: Dice) -> str:
    """The pattern without a slot: `weather in {city}` -> `weather`, `call {contact}` -> `call a contact`."""
    gone = re.sub(
        rf"(?:^| )(?:in|for|at|to|into|of|from|on|with|by|as|about|near|around|called|named|titled|saying|that|under)(?: the)? \{{{slot.name}(?:@\w+)?\}}(?=$| (?:and|on|at|for|in|to|by)\b)",
        "",
        text,
    )
    if gone != text and gone.strip():
        return gone.strip()
    thing = spaced(tool.keys[slot.name])
    return re.sub(rf"\{{{slot.name}(?:@\w+)?\}}", rng.choice(("some ", "a ", "the ", "some ")) + thing, text)


def spaced(key: str) -> str:
    """`userName` and `user_name` -> `user name`."""
    return "".join(" " + c.lower() if c.isupper() else " " if c == "_" else c for c in key).strip()


def _typed(raw: str, slot: Slot) -> Any:
    kind = slot.schema().get("type")
    if kind == "boolean":
        return raw == "true"
    if kind == "integer":
        return int(raw)
    return float(raw) if kind == "number" else raw


def polish(text: str, imperative: bool, rng: Dice, value_first: bool = False) -> str:
    """Politeness, a capital letter and an end mark, each only sometimes. `value_first`: the text begins with a value, whose case must stay."""
    if imperative and rng.random() < 0.4:
        text = rng.choice(_BEFORE).replace("{}", text)
    elif imperative and rng.random() < 0.14 and not text.endswith(("?", ".", "!")):
        text += rng.choice(_AFTER)
    elif not imperative and rng.random() < 0.06:
        text = rng.choice(("hey, ", "hi, ", "hello, ", "ok, ", "quick question: ", "tell me, ", "so, ")) + text
    if not value_first and rng.random() < 0.6 and text[:1].islower():
        text = text[:1].upper() + text[1:]
    if text.endswith(("?", ".", "!")):
        return text
    if rng.random() < 0.05:
        return rng.choice((f"{rng.choice(_ASIDES)} {text}", f"{text}. {rng.choice(_ASIDES)}"))
    if text.lower().startswith(_QUESTIONS):
        return text + ("?" if rng.random() < 0.7 else "")
    return text + ("." if rng.random() < 0.4 else "")
