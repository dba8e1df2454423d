"""Conversations, turn by turn: one function for each thing that a turn can teach."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openk2.chat.builtin_tools import BUILTIN_TOOLS
from openk2.training.data.dice import Dice
from openk2.training.data.frames import Slot
from openk2.training.data.functions import function_kinds, spell_function
from openk2.training.data.requests import Request, add_phrase, dump, make_request, polish, spaced
from openk2.training.data.script import NO_TOOL, Script, as_content, invent_result
from openk2.training.data.value import Value

_OWN = 0.45
"""Share of single training turns that ask for one of the agent's own tools, where one is declared."""
_OWN_WEIGHTS = {"current_time": 0.22, "search_files": 0.33, "list_files": 0.16, "read_file": 0.16, "calculate": 0.13}
"""More for those that ask for knowledge: which place has which time zone, which language which extension."""


def single(script: Script) -> None:
    """One request, one call, usually with its result and the answer."""
    rng = script.rng
    tool = rng.choice(script.tools)
    if script.lex.split == "train" and rng.random() < _OWN:
        own = [t for t in script.tools if t.spec in BUILTIN_TOOLS]
        tool = rng.choices(own, [_OWN_WEIGHTS[t.name] for t in own])[0] if own else tool
    request = make_request(tool, script.values)
    script.user(request.text)
    finish(script, [request])
    script.last = request


def finish(script: Script, requests: Sequence[Request]) -> None:
    """The calls for `requests` in one turn, their results, and the sentence about them."""
    calls = script.call(*((r.tool.name, r.arguments_json) for r in requests))
    if script.ending and script.rng.random() < 0.5:
        return
    said: list[str] = []
    for call, request in zip(calls, requests, strict=True):
        result, sentence = invent_result(request, script)
        script.result(call, as_content(result, script.rng))
        if sentence not in said:
            said.append(sentence)
    script.say(" ".join(said))


def follow_up(script: Script) -> None:
    """A short second request that changes one value of the previous one."""
    last = script.last
    if last is None:
        return single(script)
    rng = script.rng
    free = [s for s in last.tool.slots if s.name in last.values and s.kind != "bool" and not s.options]
    strings = [s for s in free if s.phrases or len(last.values) == 1]
    if not strings:
        return single(script)
    slot = rng.choice(strings)
    others = [s for s in last.tool.slots if s.name in last.values and s is not slot]
    value = script.values.draw(slot.kind)
    words = add_phrase(rng.choice(slot.phrases), value.surface, rng).lstrip(",: ") if slot.phrases else value.surface
    if not others and rng.random() < 0.6:
        words = value.surface
    text = rng.choice(
        (
            "and {}",
            "what about {}",
            "how about {}",
            "now {}",
            "the same {}",
            "and now {}",
            "same again {}",
            "also {}",
            "{} too",
            "and {} please",
            "then {}",
            "do it again {}",
        )
    )
    request = Request(
        polish(text.replace("{}", words), False, rng, text.startswith("{")),
        last.tool,
        {**last.values, slot.name: value},
    )
    script.user(request.text)
    finish(script, [request])
    script.last = request


def _joined(requests: Sequence[Request], rng: Dice) -> str:
    """Independent requests in one message."""
    texts = [r.text for r in requests]
    style = rng.random()
    if style < 0.45:
        mark = rng.choice((" and ", " and ", ", and ", " and also ", ", also "))
        text = (", ".join(texts[:-1]) + mark + texts[-1]) if len(texts) > 2 else mark.join(texts)
    elif style < 0.7:
        text = ", ".join(texts)
    elif style < 0.85:
        text = ". ".join(r.text if r.value_first else r.text[:1].upper() + r.text[1:] for r in requests)
    else:
        text = rng.choice(
            ("three things: ", "a few things: ", "two things: ", "I need several things: ", "do these: ", "at once: ")
        ) + rng.choice((", ", "; ")).join(texts)
    return text


def parallel_same(script: Script) -> None:
    """The same tool two to four times in one turn."""
    rng = script.rng
    candidates = [t for t in script.tools if any(s.required and s.kind != "bool" for s in t.slots)]
    if not candidates:
        return parallel_different(script)
    tool = rng.choice(candidates)
    number = rng.choice((2, 2, 2, 3, 3, 4))
    first = make_request(tool, script.values, plain=True, optional=0.15)
    varied = [
        s
        for s in tool.slots
        if s.name in first.values
        and s.kind != "bool"
        and not s.options
        and first.values[s.name].surface in first.text
        and not s.schema().get("items")
    ]
    tails = [
        s
        for s in varied
        if first.text.count(first.values[s.name].surface) == 1 and _can_be_listed(s, first.values[s.name])
    ]
    if tails and rng.random() < 0.65:
        slot = rng.choice(tails)
        surface = first.values[slot.name].surface
        several, seen = [first.values[slot.name]], {dump(first.values[slot.name].value)}
        for _ in range(20):
            value = script.values.draw(slot.kind)
            if len(several) < number and _can_be_listed(slot, value) and dump(value.value) not in seen:
                several.append(value)
                seen.add(dump(value.value))
        words = [v.surface for v in several]
        text = first.text.replace(
            surface, ", ".join(words[:-1]) + rng.choice((" and ", " and ", ", ", " and also ", ", and ")) + words[-1]
        )
        if rng.random() < 0.1 and len(several) == 2:
            text = first.text.replace(surface, f"both {words[0]} and {words[1]}")
        requests = [Request(first.text, tool, {**first.values, slot.name: v}) for v in several]
    else:
        requests = [first]
        for _ in range(12):
            if len(requests) < min(number, 3):
                more = make_request(tool, script.values, plain=True, optional=0.15)
                if all(more.arguments_json != r.arguments_json for r in requests):
                    requests.append(more)
        text = _joined(requests, rng)
    if len(requests) < 2:
        return single(script)
    script.user(
        polish(text, False, rng, value_first=True)
        if rng.random() < 0.5
        else polish(text, True, rng, value_first=first.value_first)
    )
    finish(script, requests)
    script.last = None


_FREE_TEXT = frozenset(
    ("said", "text", "phrase", "title", "quoted", "song", "topic", "artist", "command", "sql", "expression")
)


def _can_be_listed(slot: Slot, value: Value) -> bool:
    """May `A, B and C` stand for several values? Not where the words of one value are open-ended."""
    return slot.kind not in _FREE_TEXT or value.surface[:1] in "\"'"


def parallel_different(script: Script) -> None:
    """Two or three different tools in one turn."""
    rng = script.rng
    if len(script.tools) < 2:
        return single(script)
    number = min(len(script.tools), rng.choice((2, 2, 3, 3, 3)))
    requests = [
        make_request(t, script.values, plain=True, optional=0.15) for t in rng.sample(list(script.tools), number)
    ]
    script.user(polish(_joined(requests, rng), False, rng, value_first=True))
    finish(script, requests)
    script.last = None


def missing(script: Script) -> None:
    """A required argument is not given; the assistant asks for it and the user tells it."""
    rng = script.rng
    for tool in rng.sample(list(script.tools), len(script.tools)):
        slots = [s for s in tool.slots if s.required and not s.options and s.kind != "bool"]
        if not slots:
            continue
        slot = rng.choice(slots)
        try:
            partial = make_request(tool, script.values, omit=slot.name, optional=0.1)
        except ValueError:
            continue
        value = script.values.draw(slot.kind)
        script.user(partial.text)
        script.say(f"Please tell me the {spaced(tool.keys[slot.name])}.")
        words = rng.choice(
            (
                value.surface,
                value.surface,
                "{}",
                "it is {}",
                "{} please",
                "{}, please",
                "use {}",
                "take {}",
                "the {k} is {}",
                "let's say {}",
                "{k}: {}",
            )
        ).replace("{k}", spaced(tool.keys[slot.name]))
        script.user(words.replace("{}", value.surface))
        request = Request(partial.text, tool, {**partial.values, slot.name: value})
        finish(script, [request])
        script.last = request
        return
    single(script)


def error(script: Script) -> None:
    """The tool fails: the assistant repeats the call, corrects it, or explains."""
    rng = script.rng
    request = make_request(rng.choice(script.tools), script.values)
    script.user(request.text)
    (call,) = script.call((request.tool.name, request.arguments_json))
    correctable = [
        (s, k)
        for s, k in request.tool.keys.items()
        if s in request.values and isinstance(request.values[s].value, str) and request.values[s].verbatim
    ]
    style = rng.random()
    if style < 0.3:
        script.result(
            call,
            _error_text(
                rng,
                rng.choice(
                    (
                        "timeout, try again",
                        "temporarily unavailable, please retry",
                        "connection lost, try again",
                        "busy, retry",
                        "rate limit, retry",
                        "server error, try again",
                    )
                ),
            ),
        )
        retried = request
    elif style < 0.65 and correctable:
        slot, key = rng.choice(correctable)
        value = script.values.draw(request.tool.frame.slot(slot).kind)
        told = rng.choice(
            (
                "unknown {k} '{old}', did you mean '{new}'?",
                "no {k} {old}. Did you mean {new}?",
                "{k} not found: {old}; closest match: {new}",
                "invalid {k}, use {new}",
                "{old} does not exist, try {new}",
            )
        )
        script.result(
            call,
            _error_text(
                rng,
                told.replace("{k}", key)
                .replace("{old}", str(request.values[slot].value))
                .replace("{new}", str(value.value)),
            ),
        )
        retried = Request(request.text, request.tool, {**request.values, slot: value})
    else:
        cause = rng.choice(
            (
                "not found",
                "permission denied",
                "no access",
                "not allowed",
                "account locked",
                "quota exceeded",
                "service is down",
                "does not exist",
                "already done",
                f"no {script.values.draw('word').value} left",
                "not available in this region",
                "invalid request",
            )
        )
        script.result(call, _error_text(rng, cause))
        script.say(f"That did not work: {cause}.")
        return
    (again,) = script.call((retried.tool.name, retried.arguments_json))
    result, sentence = invent_result(retried, script)
    script.result(again, as_content(result, rng))
    script.say(sentence)
    script.last = retried


def _error_text(rng: Dice, cause: str) -> str:
    return rng.choice(
        (dump({"error": cause}), f"Error: {cause}", f"error: {cause}", dump({"status": "error", "message": cause}))
    )


def no_fit(script: Script, elsewhere: Callable[[], str]) -> None:
    """A request that no declared tool can do."""
    script.user(elsewhere())
    script.say(NO_TOOL)


def small_talk(script: Script, lines: Sequence[tuple[tuple[str, ...], str]]) -> None:
    rng = script.rng
    asked, answer = rng.choice(lines)
    text = rng.choice(asked)
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.6:
        text += (
            "?"
            if text.lower().startswith(("who", "what", "how", "are", "is ", "do ", "can", "where", "which"))
            else rng.choice(("!", ".", ""))
        )
    script.user(text)
    script.say(answer)


def code(script: Script) -> None:
    """A small Python function is asked for and written."""
    request, answer = spell_function(script.rng.choice(function_kinds()), script.rng)
    script.user(request)
    script.say(answer)
