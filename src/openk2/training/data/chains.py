"""Two tools of which the second needs what the first returns."""

from __future__ import annotations

import random
from dataclasses import dataclass

from openk2.training.data.composed import custom_slot, draw_noun, typed_slots
from openk2.training.data.frames import Ask, Frame, Slot, Tool
from openk2.training.data.lexicon import Lexicon
from openk2.training.data.requests import Request, expand, make_request, polish
from openk2.training.data.scenarios import Script, as_content, invent_result
from openk2.training.data.values import Value

_KEY_KINDS = ("name", "person", "email", "city", "quoted", "phone", "title")
_LINKS = (("id", "code"), ("id", "id"), ("code", "code"), ("number", "id"), ("email", "email"), ("path", "path"), ("url", "url"), ("city", "city"), ("key", "slug"))


@dataclass(frozen=True)
class Link:
    """A pair of frames: `first` returns `field`, which is the `slot` of `second`."""

    first: Frame
    second: Frame
    field: str
    slot: str
    joints: tuple[str, ...]
    """Requests; `{first}` stands for the words asking for the first tool, `{with}` for what its arguments add."""


def compose_link(rng: random.Random, lex: Lexicon) -> Link:
    """A lookup and an action on the same noun."""
    noun = draw_noun(rng, lex)
    slug = noun.replace(" ", "_")
    lookups = [s for s in lex.synsets if s.kind == "get"]
    actions = [s for s in lex.synsets if s.kind not in ("get", "make")]
    look, act = rng.choice(lookups), rng.choice(actions)
    look_verb, act_verb = rng.choice(look.verbs), rng.choice(act.verbs)
    field_name, field_kind = rng.choice(_LINKS)
    field = field_name if lex.split == "train" and rng.random() < 0.4 else f"{slug}_{field_name}"
    key_kind = rng.choice(_KEY_KINDS)
    key_name = {"name": "name", "person": rng.choice(("owner", "user", "person")), "email": "email", "city": "city", "quoted": "title", "phone": "phone", "title": "title"}[key_kind]
    mine = {k: s for s in typed_slots(lex.split) for k in s.keys}
    if key_name not in mine and lex.split == "held":
        key_name = lex.nonce(rng)
    phrases = {"person": ("of {}", "for {}"), "city": ("in {}", "from {}"), "email": ("of {}", "with email {}"), "phone": ("with number {}", "for {}")}.get(key_kind, ("named {}", "called {}", "{}"))
    if key_name not in ("name", "owner", "user", "person", "email", "city", "title", "phone"):
        phrases = (f"with {key_name} {{}}",)
    key = Slot(key_name, (key_name,), key_kind, (f"{key_name.capitalize()} of the {noun}",), phrases)
    first = Frame(
        "chain",
        (f"{look_verb.replace(' ', '_')}_{slug}",),
        (f"{look_verb.capitalize()} the {field.replace('_', ' ')} of a {noun}.", f"{look_verb.capitalize()} a {noun}; returns its {field_name}.", f"{look_verb.capitalize()} a {noun} by {key_name}."),
        (key,),
        (Ask(f"{look_verb} (the|a) {noun}", True),),
        ((field, field_kind), *((("status", "pick:open,active,ready"),) if rng.random() < 0.3 else ())),
    )
    target = Slot(field, (field,), field_kind, (f"{field_name.capitalize()} of the {noun}", f"The {field.replace('_', ' ')}"), ("{}", f"with {field.replace('_', ' ')} {{}}"))
    slots = [target]
    if rng.random() < 0.35:
        slots.append(custom_slot(rng, lex, {slug, key_name, field}, True))
    second = Frame("chain", (f"{act_verb.replace(' ', '_')}_{slug}",), (f"{act_verb.capitalize()} a {noun}.", f"{act_verb.capitalize()} the {noun} with this {field_name}."), tuple(slots), (Ask(f"{act_verb} the {noun}", True),), ())
    joints = (
        f"{{first}} (and|and then|, then|then) {act_verb} it {{more}}",
        f"{act_verb} the {noun} {{with}} {{more}}",
        f"{{first}} to {act_verb} it {{more}}",
        f"(get|find|look up) the {field.replace('_', ' ')} of the {noun} {{with}} and {act_verb} it {{more}}",
        f"first {{first}}, then {act_verb} it {{more}}",
        f"{act_verb} the {noun} {{with}} {{more}}, I don't know its {field_name}",
    )
    return Link(first, second, field, field, joints)


def chain(script: Script, link: Link, first: Tool, second: Tool) -> None:
    """Call the first tool, read a field of its result, call the second tool with it."""
    rng, values = script.rng, script.values
    one = make_request(first, values, plain=True, optional=0.0)
    two = make_request(second, values, plain=True, optional=0.1, omit=link.slot)
    lead = expand(link.first.asks[0].text, rng)
    phrase = " ".join(rng.choice(first.frame.slot(s).phrases).replace("{}", v.surface) for s, v in one.values.items())
    ask = two.text
    more = ask[len(link.second.asks[0].text) :].strip() if ask.startswith(link.second.asks[0].text) else ""
    joint = expand(rng.choice(link.joints), rng)
    text = joint.replace("{first}", f"{lead} {phrase}").replace("{with}", phrase).replace("{more}", more)
    text = " ".join(text.split()).replace(" ,", ",")
    script.user(polish(text, True, rng))
    (call,) = script.call((first.name, one.arguments_json))
    kind = dict(link.first.results)[link.field]
    found = values.draw(kind)
    result, _ = invent_result(one, script)
    result = {**result, link.field: found.value}
    script.result(call, as_content(result, rng))
    final = Request(text, second, {**two.values, link.slot: Value(found.value, str(found.value), verbatim=False)})
    (again,) = script.call((second.name, final.arguments_json))
    answer, sentence = invent_result(final, script)
    script.result(again, as_content(answer, rng))
    script.say(sentence)
    script.last = None


