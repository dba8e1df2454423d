"""Two tools of which the second needs what the first returns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from openk2.training.data.composed import custom_slot, draw_noun, typed_slots
from openk2.training.data.dice import Dice
from openk2.training.data.frames import Ask, Frame, Slot, Tool, domain_frames
from openk2.training.data.lexicon import Lexicon, read_words
from openk2.training.data.requests import Request, add_phrase, draw_value, expand, make_request, polish
from openk2.training.data.script import Script, as_content, invent_result, report
from openk2.training.data.value import Value

_KEY_KINDS = ("name", "person", "email", "city", "quoted", "phone", "title")
_KEY_NAMES = {
    "name": ("name",),
    "person": ("owner", "user", "person"),
    "email": ("email",),
    "city": ("city",),
    "quoted": ("title",),
    "phone": ("phone",),
    "title": ("title",),
}
_KEY_PHRASES = {
    "person": ("of {}", "for {}"),
    "city": ("in {}", "from {}"),
    "email": ("of {}", "with email {}"),
    "phone": ("with number {}", "for {}"),
}
_LINKS = (
    ("id", "code"),
    ("id", "id"),
    ("code", "code"),
    ("number", "id"),
    ("email", "email"),
    ("path", "path"),
    ("url", "url"),
    ("city", "city"),
    ("key", "slug"),
)


@dataclass(frozen=True)
class Link:
    """A pair of frames: `first` returns `field`, which is the `slot` of `second`."""

    first: Frame
    second: Frame
    field: str
    slot: str
    joints: tuple[str, ...]
    """Requests. `{1.slot}`, `{2.slot}`: arguments; `{first}`: the words asking for the first tool alone, `{with}`: what
    its arguments add to them, `{more}`: what the arguments of the second add."""


@lru_cache(maxsize=1)
def everyday_links() -> tuple[Link, ...]:
    """The links of `chains.txt`."""
    frames = {f.names[0]: f for f in domain_frames()}
    links = []
    for line in read_words("chains.txt").splitlines():
        names, _, joints = line.partition(" : ")
        first, field, second, slot = names.split()
        links.append(Link(frames[first], frames[second], field, slot, tuple(j.strip() for j in joints.split(";"))))
    return tuple(links)


def compose_link(rng: Dice, lex: Lexicon) -> Link:
    """A lookup and an action on the same invented noun."""
    noun = draw_noun(rng, lex)
    slug = noun.replace(" ", "_")
    look = rng.choice([s for s in lex.synsets if s.kind == "get"])
    act = rng.choice([s for s in lex.synsets if s.kind not in ("get", "make")])
    look_verb, act_verb = rng.choice(look.verbs), rng.choice(act.verbs)
    field_name, field_kind = rng.choice(_LINKS)
    field = field_name if lex.split == "train" and rng.random() < 0.4 else f"{slug}_{field_name}"
    key = _lookup_key(noun, rng, lex)
    first = Frame(
        "chain",
        (f"{look_verb.replace(' ', '_')}_{slug}",),
        (f"{look_verb.capitalize()} the {field.replace('_', ' ')} of a {noun}.", f"{look_verb.capitalize()} a {noun}, returns its {field_name}.", f"{look_verb.capitalize()} a {noun} by {key.name}."),
        (key,),
        (Ask(f"{look_verb} (the|a) {noun}", True),),
        ((field, field_kind), *((("status", "pick:open,active,ready"),) if rng.random() < 0.3 else ())),
    )  # fmt: skip
    slots = [
        Slot(
            field,
            (field,),
            field_kind,
            (f"{field_name.capitalize()} of the {noun}", f"The {field.replace('_', ' ')}"),
            ("{}", f"with {field.replace('_', ' ')} {{}}"),
        )
    ]
    if rng.random() < 0.35:
        slots.append(custom_slot(rng, lex, {slug, key.name, field}, True))
    descriptions = (f"{act_verb.capitalize()} a {noun}.", f"{act_verb.capitalize()} the {noun} with this {field_name}.")
    second = Frame(
        "chain",
        (f"{act_verb.replace(' ', '_')}_{slug}",),
        descriptions,
        tuple(slots),
        (Ask(f"{act_verb} the {noun}", True),),
        (),
    )
    joints = (
        f"{{first}} (and|and then|, then|then) {act_verb} it {{more}}",
        f"{act_verb} the {noun} {{with}} {{more}}",
        f"{{first}} to {act_verb} it {{more}}",
        f"(get|find|look up) the {field.replace('_', ' ')} of the {noun} {{with}} and {act_verb} it {{more}}",
        f"first {{first}}, then {act_verb} it {{more}}",
        f"{act_verb} the {noun} {{with}} {{more}}, I don't know its {field_name}",
    )
    return Link(first, second, field, field, joints)


def _lookup_key(noun: str, rng: Dice, lex: Lexicon) -> Slot:
    """The parameter that a lookup goes by."""
    kind = rng.choice(_KEY_KINDS)
    name = rng.choice(_KEY_NAMES[kind])
    phrases: tuple[str, ...] = _KEY_PHRASES.get(kind, ("named {}", "called {}", "{}"))
    if lex.split == "held" and not any(name in s.keys for s in typed_slots("held")):
        name = lex.nonce(rng)
        phrases = (f"with {name} {{}}",)
    return Slot(name, (name,), kind, (f"{name.capitalize()} of the {noun}",), phrases)


def chain(script: Script, link: Link, first: Tool, second: Tool) -> None:
    """Call the first tool, read a field of its result, call the second tool with it: in one turn of the user, or in two."""
    rng = script.rng
    joint = expand(rng.choice(link.joints), rng)
    if "{first}" in joint or "{with}" in joint:
        one, two, text = _composed_words(script, link, first, second, joint)
    else:
        one, two, text = _everyday_words(script, first, second, joint)
    parted = "{first}" in joint and rng.random() < 0.25
    rest = text.rpartition(" it")[2]
    verb = link.second.asks[0].text.partition(" the ")[0]
    script.user(
        polish(lookup_words(link, one, rng) if parted else text, True, rng, value_first=joint.startswith("{1."))
    )
    (call,) = script.call((first.name, one.arguments_json))
    found = script.values.draw(dict(link.first.results)[link.field])
    result, _ = invent_result(one, script)
    result = {**result, link.field: found.value}
    script.result(call, as_content(result, rng))
    if parted:
        script.say(report(result))
        script.user(polish(f"{verb} it{rest}", True, rng))
    final = Request(text, second, {**two.values, link.slot: Value(found.value, str(found.value), verbatim=False)})
    (again,) = script.call((second.name, final.arguments_json))
    answer, sentence = invent_result(final, script)
    script.result(again, as_content(answer, rng))
    script.say(sentence)
    script.last = None


def lookup_words(link: Link, one: Request, rng: Dice) -> str:
    """The request for the first tool alone, with the values of `one`."""
    phrase = " ".join(
        add_phrase(rng.choice(one.tool.frame.slot(s).phrases), v.surface, rng) for s, v in one.values.items()
    )
    return f"{expand(link.first.asks[0].text, rng)} {phrase}"


def _composed_words(script: Script, link: Link, first: Tool, second: Tool, joint: str) -> tuple[Request, Request, str]:
    rng, values = script.rng, script.values
    one = make_request(first, values, plain=True, optional=0.0)
    two = make_request(second, values, plain=True, optional=0.1, omit=link.slot)
    words = lookup_words(link, one, rng)
    phrase = " ".join(
        add_phrase(rng.choice(first.frame.slot(s).phrases), v.surface, rng) for s, v in one.values.items()
    )
    more = two.text[len(link.second.asks[0].text) :]
    text = joint.replace("{first}", words).replace("{with}", phrase).replace("{more}", more)
    return one, two, " ".join(text.split()).replace(" ,", ",")


def _everyday_words(script: Script, first: Tool, second: Tool, joint: str) -> tuple[Request, Request, str]:
    given: dict[str, dict[str, Value]] = {"1": {}, "2": {}}
    tools = {"1": first, "2": second}

    def fill(m: re.Match[str]) -> str:
        number, slot = m.groups()
        value, _ = draw_value(tools[number].frame.slot(slot), script.values)
        given[number][slot] = value
        return value.surface

    text = re.sub(r"\{([12])\.(\w+)\}", fill, joint)
    return Request(text, first, given["1"]), Request(text, second, given["2"]), text
