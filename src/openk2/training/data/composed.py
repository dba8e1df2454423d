"""Frames composed from word lists: any verb on any noun with any parameters, so that nothing can be memorised."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from openk2.training.data.dice import Dice
from openk2.training.data.frames import Ask, Frame, Slot
from openk2.training.data.lexicon import Lexicon, Split, Synset, hand_written_words, hash_says_held, read_words

_CUSTOM_KINDS = (
    "word", "word", "name", "name", "code", "int", "int", "number", "bool", "enum", "quoted", "title", "slug", "date", "email", "person", "path", "words", "ints", "id", "city", "small", "percent", "topic", "digits",
)  # fmt: skip
_NAMED = (
    "with {k} {v}", "with {k} {v}", "{k} {v}", "with the {k} {v}", "with {k} set to {v}", "with {v} as the {k}", "where the {k} is {v}", ", {k}: {v}", ", {k} = {v}", "using {k} {v}",
    "and {k} {v}", ", the {k} is {v}", ", {k} should be {v}", "of {k} {v}", ", {v} as {k}", ", use {v} as {k}", "whose {k} is {v}", "for {k} {v}", ", make the {k} {v}", ", set {k} to {v}", ", {k}={v}",
)  # fmt: skip
_SUFFIXES = ("", "", "", "", "_name", "_id", "_code", "_type", "_level", "_mode", "_key")
_IRREGULAR = {
    "get": "got", "find": "found", "read": "read", "see": "seen", "show": "shown", "make": "made", "build": "built", "buy": "bought", "write": "written", "draw": "drawn", "set": "set",
    "send": "sent", "tell": "told", "begin": "begun", "run": "run", "put": "put", "shut": "shut", "hold": "held", "cut": "cut", "stick": "stuck", "split": "split", "sow": "sown", "weave": "woven",
    "knit": "knit", "freeze": "frozen", "bend": "bent", "grind": "ground", "lend": "lent", "take": "taken", "throw": "thrown", "bring": "brought", "pay": "paid", "quit": "quit", "sew": "sewn",
    "withdraw": "withdrawn", "break": "broken", "let": "let", "forecast": "forecast", "void": "voided", "rescind": "rescinded", "spin": "spun", "shred": "shredded", "ring": "rung", "give": "given",
}  # fmt: skip
_DOUBLED = {"get", "put", "set", "stop", "trim", "drop", "ship", "plan", "run", "ban", "map", "pin", "tag", "spot", "zip", "wrap", "shut", "begin", "cancel", "skim", "log", "chat", "dim", "swap", "expel", "annul", "submit", "rev", "scrap", "shred", "split", "spin", "sign", "rub", "scrub", "bet"}  # fmt: skip
_DOUBLED -= {"sign"}

# Sentence forms by class of verb. {v}: verb, {d}: past participle, {g}: -ing form, {n}: noun.
_COMMANDS = ("{v} (the|the|a|my|our|this|that) {n}", "{v} {n}", "{v} the {n} (please|)", "{v} (my|the|a) {n}")
_ANY = (
    "the {n} (needs to|should|must|has to) be {d}", "I (want|need) the {n} {d}", "get the {n} {d}", "I (want|need|would like) to {v} (the|a|my) {n}", "is it possible to {v} the {n}", "{n}: {v} it",
    "how do I {v} the {n}", "any chance to {v} the {n}", "time to {v} the {n}", "we (have|need) to {v} (the|a) {n}", "{g} the {n} would help", "the {n} needs {g}",
)  # fmt: skip
_BY_CLASS = {
    "get": ("what is the {n}", "what does the {n} (say|look like)", "I (want|need) to see the {n}", "tell me about the {n}", "show me the {n}", "what about the {n}", "how is the {n}", "do we have a {n}", "any {n}", "{n} info"),
    "make": ("I need a (new|) {n}", "we need another {n}", "there should be a {n}", "give me a (new|) {n}", "a {n} (please|)", "new {n}", "a new {n} would be nice"),
    "drop": ("I (don't|no longer) need the {n}", "we (don't|no longer) want the {n}", "the {n} is no longer needed", "the {n} can go", "no more {n}"),
    "change": ("the {n} is wrong, {v} it", "something is off with the {n}, {v} it", "the {n} is not right, please {v} it"),
    "send": ("someone should get the {n}, {v} it", "{v} out the {n}"),
    "start": ("the {n} is not running, {v} it", "{v} up the {n}", "I want the {n} to be {d}"),
    "stop": ("the {n} is too much, {v} it", "I have had enough of the {n}, {v} it", "the {n} is stuck, {v} it"),
}  # fmt: skip
_RESULT_FIELDS = (
    ("status", "pick:open,closed,active,pending,ready,late,idle,done"), ("count", "int"), ("owner", "person"), ("price", "money"), ("date", "iso"), ("city", "city"), ("name", "name"), ("total", "int"),
    ("size", "int"), ("level", "percent"), ("email", "email"), ("code", "code"), ("value", "number"), ("updated", "iso"), ("title", "title"), ("score", "number"), ("time", "time"),
)  # fmt: skip


@lru_cache(maxsize=2)
def typed_slots(split: Split) -> tuple[Slot, ...]:
    """The parameters of `params.txt` with the spellings of this part."""
    common = hand_written_words() | frozenset(read_words("nouns.txt").split())
    slots = []
    for line in read_words("params.txt").splitlines():
        spellings, kind, descriptions, phrases = (part.strip() for part in line.split(" : ", 3))
        keys = [k for k in spellings.split(",") if k]
        rare = [k for k in keys if not common.issuperset(k.split("_"))]
        held = [k for k in rare if hash_says_held(k)] or rare[-1:]
        mine = tuple(k for k in keys if (k in held) == (split == "held"))
        if mine:
            slots.append(
                Slot(
                    mine[0],
                    mine,
                    kind,
                    tuple(d.strip() for d in descriptions.split(";")),
                    tuple(p.strip() for p in phrases.split(";")),
                )
            )
    return tuple(slots)


def participle(verb: str) -> str:
    """`look up` -> `looked up`."""
    head, _, rest = verb.partition(" ")
    if head in _IRREGULAR:
        head = _IRREGULAR[head]
    elif head.endswith("e"):
        head += "d"
    elif head.endswith("y") and head[-2] not in "aeiou":
        head = head[:-1] + "ied"
    else:
        head += (head[-1] if head in _DOUBLED else "") + "ed"
    return f"{head} {rest}".strip()


def gerund(verb: str) -> str:
    """`look up` -> `looking up`."""
    head, _, rest = verb.partition(" ")
    if head.endswith("e") and not head.endswith(("ee", "ye")):
        head = head[:-1]
    elif head in _DOUBLED:
        head += head[-1]
    return f"{head}ing {rest}".strip()


def third_person(verb: str) -> str:
    head, _, rest = verb.partition(" ")
    if head.endswith(("s", "sh", "ch", "x", "z")):
        head += "es"
    elif head.endswith("y") and head[-2] not in "aeiou":
        head = head[:-1] + "ies"
    else:
        head += "s"
    return f"{head} {rest}".strip()


_INVENTED_VERBS = 0.35
"""Share of composed training tools whose verb means nothing: only the same word in the request tells them apart."""

_INVENTED_NOUNS = 0.25
_INVENTED_KEYS = 0.3
"""Shares of further invented words in training, where the held-out part has words of its own: nouns of composed tools,
and keys of typed parameters, so that a value's kind is read off the description and not off a key seen before."""


@dataclass(frozen=True)
class Seed:
    """What a composed frame is about: two tools of a set must differ in the verb's meaning or in the noun."""

    synset: Synset
    noun: str


def draw_noun(rng: Dice, lex: Lexicon) -> str:
    if lex.split == "train" and rng.random() < _INVENTED_NOUNS:
        return lex.nonce(rng)
    n = rng.random()
    if n < 0.3:
        return lex.nonce(rng)
    if n < 0.75:
        return rng.choice(lex.nouns)
    first = lex.nonce(rng) if rng.random() < 0.3 else rng.choice(lex.nouns if rng.random() < 0.6 else lex.adjectives)
    return f"{first} {rng.choice(lex.nouns)}"


def draw_seed(rng: Dice, lex: Lexicon) -> Seed:
    synset = rng.choice(lex.synsets)
    if lex.split == "train" and rng.random() < _INVENTED_VERBS:
        synset = Synset(synset.kind, tuple(lex.nonce(rng) for _ in range(rng.choice((1, 2)))))
    return Seed(synset, draw_noun(rng, lex))


def near_seed(seed: Seed, rng: Dice, lex: Lexicon) -> Seed:
    """A distractor: the same noun with a verb of another class, or the same verb on another noun."""
    if rng.random() < 0.5:
        others = [s for s in rng.sample(lex.synsets, min(8, len(lex.synsets))) if s.kind != seed.synset.kind]
        if others:
            return Seed(others[0], seed.noun)
    return Seed(seed.synset, draw_noun(rng, lex))


def custom_slot(rng: Dice, lex: Lexicon, taken: set[str], required: bool) -> Slot:
    """A parameter with an arbitrary name, always named in the request."""
    kind = rng.choice(_CUSTOM_KINDS)
    while True:
        word = lex.nonce(rng) if rng.random() < 0.4 else rng.choice(lex.nouns)
        if word not in taken:
            break
    words = word
    key = word
    if kind not in ("bool", "int", "number", "small", "percent", "words", "ints", "date"):
        key += rng.choice(_SUFFIXES)
        words = key.replace("_", " ")
    elif rng.random() < 0.2:
        other = rng.choice(lex.adjectives)
        key, words = f"{other}_{word}", f"{other} {word}"
    taken.add(word)
    described = False
    descriptions: tuple[str, ...] = (
        words.capitalize(),
        f"The {words} to use",
        f"{words.capitalize()} of it",
        f"Which {words}",
    )
    if rng.random() < 0.2:  # the key says nothing, the description does
        key, described = lex.nonce(rng), True
        while rng.random() < 0.3:
            short = f"{rng.choice('abcdefghknpqrstvwxyz')}{rng.randint(1, 9)}"
            if lex.mine(short) and short not in taken:
                key = short
                break
        taken.add(key)
        descriptions = (f"The {words}", words.capitalize())
    if kind == "bool":
        positive = tuple(
            p.replace("{k}", words)
            for p in ("with {k}", "with {k} on", ", {k} on", ", enable {k}", ", turn {k} on", ", {k} enabled")
        )
        negative = tuple(
            p.replace("{k}", words)
            for p in ("without {k}", "with {k} off", ", {k} off", ", disable {k}", ", no {k}", ", {k} disabled")
        )
        return Slot(
            key,
            (key,),
            kind,
            (f"Whether to use {words}", *descriptions[:1]),
            positive,
            negative,
            required,
            None,
            described,
        )
    if kind == "enum":
        pool = lex.adjectives if rng.random() < 0.6 else lex.nouns
        options = list(
            dict.fromkeys(rng.choice(pool) if rng.random() < 0.75 else lex.nonce(rng) for _ in range(rng.randint(2, 4)))
        )
        if rng.random() < 0.2:
            options = [o.upper() for o in options]
        kind = "enum:" + ",".join(options)
    phrases = tuple(rng.choice(_NAMED).replace("{k}", words).replace("{v}", "{}") for _ in range(3))
    return Slot(key, (key,), kind, descriptions, phrases, (), required, None, described)


def _slots(rng: Dice, lex: Lexicon, most: int | None) -> tuple[Slot, ...]:
    number = rng.choices((0, 1, 2, 3, 4), (7, 36, 31, 18, 8))[0]
    if most is not None:
        number = rng.randint(0, most)
    typed = list(typed_slots(lex.split))
    taken: set[str] = set()
    kinds: set[str] = set()
    out: list[Slot] = []
    for i in range(number):
        required = (i == 0 and rng.random() < 0.9) or rng.random() < 0.6
        if rng.random() < 0.55 and typed:
            slot = typed.pop(rng.randrange(len(typed)))
            keys = tuple(k for k in slot.keys if k not in taken)
            family = _family(slot.kind) + slot.phrases[0].partition(" ")[0]
            if not keys or family in kinds:
                continue
            kinds.add(family)
            key, invented = rng.choice(keys), lex.split == "train" and rng.random() < _INVENTED_KEYS
            if invented:
                key = lex.nonce(rng)
            taken.add(key)
            words = key.replace("_", " ")
            # An invented color or language could be either: it needs its name.
            shown_by_look = lex.split == "train" or not slot.kind.startswith(("pick:", "language", "room", "products"))
            phrases = (
                slot.phrases
                if shown_by_look and rng.random() < 0.7
                else tuple(rng.choice(_NAMED).replace("{k}", words).replace("{v}", "{}") for _ in range(2))
            )
            slot = replace(slot, keep_description=slot.keep_description or invented)
            out.append(replace(slot, name=key, keys=(key,), phrases=phrases, required=required))
        else:
            out.append(custom_slot(rng, lex, taken, required))
    return tuple(out)


def _family(kind: str) -> str:
    """Kinds whose bare values could be mistaken for one another."""
    if kind in ("small", "percent", "money", "int") or kind.startswith("int:"):
        return kind if kind in ("money", "percent") else "count"
    return {
        "iso": "iso",
        "date": "day",
        "topic": "free",
        "text": "free",
        "quoted": "free",
        "name": "free",
        "said": "free",
    }.get(kind, kind)


def compose(seed: Seed, rng: Dice, lex: Lexicon, most_slots: int | None = None, opaque_share: float = 0.1) -> Frame:
    """A frame for `seed` with random parameters (at most `most_slots`) and request patterns.

    `opaque_share`: chance of a name that does not say what the tool does.
    """
    verbs, noun = seed.synset.verbs, seed.noun
    named, described = rng.choice(verbs), rng.choice(verbs)
    slug = noun.replace(" ", "_")
    verb_slug = named.replace(" ", "_")
    name = rng.choice((f"{verb_slug}_{slug}", f"{verb_slug}_{slug}", f"{verb_slug}_{slug}", f"{slug}_{verb_slug}"))
    opaque = rng.random() < opaque_share
    if opaque:
        name = rng.choice((lex.nonce(rng), f"{lex.nonce(rng)}_{lex.nonce(rng)}", f"{slug}_{lex.nonce(rng)}"))
    v = described.capitalize()
    article = "an" if noun[0] in "aeiou" else "a"
    description = rng.choice(
        (
            f"{v} {article} {noun}.",
            f"{v} the {noun}.",
            f"{third_person(described).capitalize()} {article} {noun}.",
            f"Use it to {described} {article} {noun}.",
            f"{v} {article} {noun} in the system.",
        )
    )
    told = [described] if opaque else [named, named, described]
    if lex.split == "train" and rng.random() >= opaque_share:
        told.append(rng.choice(verbs))
    asks = []
    for _ in range(4):
        verb = rng.choice(told)
        n = rng.random()
        form = (
            rng.choice(_COMMANDS)
            if n < 0.62
            else rng.choice(_ANY)
            if n < 0.82
            else rng.choice(_BY_CLASS[seed.synset.kind])
        )
        if "{v}" not in form and "{g}" not in form and "{d}" not in form and seed.synset.verbs[0] not in _PLAIN_VERBS:
            form = rng.choice(_COMMANDS)
        text = (
            form.replace("{v}", verb).replace("{d}", participle(verb)).replace("{g}", gerund(verb)).replace("{n}", noun)
        )
        asks.append(Ask(text, form in _COMMANDS))
    results = (
        tuple(rng.sample(_RESULT_FIELDS, rng.choice((1, 1, 2))))
        if seed.synset.kind == "get"
        else ((("id", "code"),) if rng.random() < 0.3 else ())
    )
    return Frame(f"composed:{noun}", (name,), (description,), _slots(rng, lex, most_slots), tuple(asks), results)


_PLAIN_VERBS = frozenset(
    "get find check list view read describe create build generate delete clear cancel discard prune purge dissolve".split()
)
"""First verbs of the sets whose class forms (`what is the {n}`, `I need a {n}`) ask for just that."""
