"""Long conversations: many turns over the same few tools, in which late turns need values of early ones.

Their chance is their own (`Dice` of another name than `stream.conversations`' and `held_cases`'), so that those give what
they gave before. The tools are a pair as in `chains`: one looks a field up by a key, the other takes the field. What was
looked up is remembered here, and later turns ask for the second tool by the key, by the beginning of the value, or just
ask what the value was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from openk2.training.data.chains import Link, compose_link, lookup_words
from openk2.training.data.composed import compose, draw_seed
from openk2.training.data.dice import Dice
from openk2.training.data.frames import Tool
from openk2.training.data.lexicon import Split, lexicon
from openk2.training.data.requests import Request, add_phrase, make_request, polish
from openk2.training.data.scenarios import finish, follow_up, parallel_same, single
from openk2.training.data.script import Conversation, Script, as_content, invent_result, report
from openk2.training.data.value import Value
from openk2.training.data.values import Values

_TURNS = {"look_up": 0.4, "by_key": 0.28, "by_beginning": 0.1, "told": 0.07, "other": 0.15}
_FURTHER_TOOLS = (1, 1, 2, 3)
_SHORTEST_BEGINNING = 3
"""Characters of a value that a request names it by."""
_BEFORE = ("", "", ", you looked it up before", " with the {field} from before", ", you know its {field}")


@dataclass(frozen=True)
class _Found:
    """What a lookup brought."""

    key: Value
    slot: str
    """Of the lookup's frame, that the key is the value of."""
    value: Value


class _Writer:
    """One long conversation."""

    def __init__(self, rng: Dice, split: Split) -> None:
        lex = lexicon(split)
        self.rng, self.values = rng, Values(rng, lex)
        self.link, self.first, self.second = self._pair()
        names = {self.first.name, self.second.name}
        further: list[Tool] = []
        wanted = rng.choice(_FURTHER_TOOLS)
        while len(further) < wanted:
            tool = Tool.spell(compose(draw_seed(rng, lex), rng, lex, 2), rng, examples=self.values)
            if tool.name not in names:
                names.add(tool.name)
                further.append(tool)
        self.script = Script(further, self.values, lex)
        self.found: list[_Found] = []
        self.act = self.link.second.asks[0].text

    def _pair(self) -> tuple[Link, Tool, Tool]:
        while True:
            link = compose_link(self.rng, self.values.lex)
            first, second = Tool.spell(link.first, self.rng), Tool.spell(link.second, self.rng)
            if first.name != second.name and len(link.first.slots) == 1:
                return link, first, second

    def write(self, characters: int) -> Conversation:
        kinds, weights = zip(*_TURNS.items(), strict=True)
        written = seen = 0
        while written < characters:
            kind = self.rng.choices(kinds, weights)[0] if self.found else "look_up"
            getattr(self, "_" + kind)()
            messages = self.script.messages
            written += sum(len(m.text) + sum(len(c.arguments) for c in m.tool_calls) for m in messages[seen:])
            seen = len(messages)
        tools = [self.first, self.second, *self.script.tools]
        self.rng.shuffle(tools)
        return Conversation("long", tuple(t.spec for t in tools), tuple(self.script.messages))

    def _look_up(self) -> None:
        script, rng = self.script, self.rng
        one = make_request(self.first, self.values, plain=True, optional=0.0)
        ((slot, key),) = one.values.items()
        if any(known.key.value == key.value or known.key.surface == key.surface for known in self.found):
            return self._other()
        script.user(polish(lookup_words(self.link, one, rng), True, rng))
        (call,) = script.call((self.first.name, one.arguments_json))
        value = self.values.draw(dict(self.link.first.results)[self.link.field]).value
        result, _ = invent_result(one, script)
        result = {**result, self.link.field: value}
        script.result(call, as_content(result, rng))
        script.say(report(result))
        self.found.append(_Found(key, slot, Value(value, str(value), verbatim=False)))
        script.last = None

    def _by_key(self) -> None:
        known = self.rng.choice(self.found)
        before = self.rng.choice(_BEFORE).replace("{field}", self.link.field.replace("_", " "))
        self._use(known, f"{self._key(known)}{before}")

    def _by_beginning(self) -> None:
        known = self.rng.choice(self.found)
        text = known.value.value
        if not isinstance(text, str) or len(text) < 2 * _SHORTEST_BEGINNING:
            return self._by_key()
        beginning = text[: self.rng.randint(_SHORTEST_BEGINNING, len(text) // 2)]
        if sum(str(other.value.value).startswith(beginning) for other in self.found) > 1:
            return self._by_key()
        field = self.link.field.replace("_", " ")
        self._use(known, f"whose {field} {self.rng.choice(('begins', 'starts'))} with {beginning}")

    def _use(self, known: _Found, words: str) -> None:
        """A call of the second tool with the value of an earlier turn."""
        two = make_request(self.second, self.values, plain=True, optional=0.1, omit=self.link.slot)
        more = two.text[len(self.act) :]
        text = " ".join(f"{self.act} {words}{more}".split()).replace(" ,", ",")
        self.script.user(polish(text, True, self.rng))
        finish(self.script, [Request(text, self.second, {**two.values, self.link.slot: known.value})])
        self.script.last = None

    def _told(self) -> None:
        known = self.rng.choice(self.found)
        field = self.link.field.replace("_", " ")
        noun = self.act.partition(" the ")[2]
        asked = self.rng.choice(("what was the {f} of the {n} {k}", "tell me again the {f} of the {n} {k}"))
        text = asked.replace("{f}", field).replace("{n}", noun).replace("{k}", self._key(known))
        self.script.user(polish(text, False, self.rng))
        self.script.say(report({self.link.field: known.value.value}))
        self.script.last = None

    def _key(self, known: _Found) -> str:
        return add_phrase(self.rng.choice(self.first.frame.slot(known.slot).phrases), known.key.surface, self.rng)

    def _other(self) -> None:
        """An ordinary turn, over the further tools."""
        self.rng.choice((single, single, follow_up, parallel_same))(self.script)


def long_conversations(seed: int, characters: int, split: Split = "train") -> Iterator[Conversation]:
    """An endless, reproducible stream of conversations of kind `long`, each of at least so many characters of turns."""
    rng = Dice(f"{seed}/long/{split}")
    while True:
        yield _Writer(rng, split).write(characters)
