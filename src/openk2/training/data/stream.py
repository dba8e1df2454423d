"""The endless stream of conversations: which tools, which turns, in which proportions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from openk2.chat.messages import Message, ToolSpec
from openk2.training.data.builtin import builtin_tools
from openk2.training.data.chains import Link, chain, compose_link, everyday_links
from openk2.training.data.composed import Seed, compose, custom_slot, draw_seed, near_seed
from openk2.training.data.dice import Dice
from openk2.training.data.frames import Frame, Tool, domain_frames
from openk2.training.data.lexicon import Lexicon, Split, lexicon, read_words
from openk2.training.data.requests import make_request
from openk2.training.data.scenarios import (
    code,
    error,
    follow_up,
    missing,
    no_fit,
    parallel_different,
    parallel_same,
    single,
    small_talk,
)
from openk2.training.data.script import Conversation, Script
from openk2.training.data.values import Values

KINDS = (
    "single",
    "follow_up",
    "parallel_same",
    "parallel_different",
    "chain",
    "error",
    "missing",
    "no_fit",
    "chat",
    "choice",
    "code",
)

_STAGE_KINDS: tuple[dict[str, float], ...] = (
    {"single": 1.0},
    {"single": 0.5, "choice": 0.35, "no_fit": 0.08, "follow_up": 0.07},
    {
        "choice": 2.5,
        "single": 0.37,
        "parallel_same": 0.11,
        "parallel_different": 0.13,
        "chain": 0.08,
        "error": 0.06,
        "missing": 0.08,
        "no_fit": 0.11,
        "chat": 0.06,
    },
    {
        "choice": 0.5,
        "single": 0.6,
        "follow_up": 0.06,
        "parallel_same": 0.17,
        "parallel_different": 0.22,
        "chain": 0.35,
        "error": 0.06,
        "missing": 0.22,
        "no_fit": 0.18,
        "chat": 0.07,
        "code": 0.3,
    },
)
"""Weights of the kinds of first turns, by stage; `choice` is a conversation of its own (see `_write_choice`)."""
_STAGE_TOOLS = ((1,), (1, 2, 2, 3), (1, 2, 2, 3, 3, 4), (1, 2, 3, 3, 4, 5, 6))
_STAGE_TURNS = ((2, 3, 4), (2, 3, 4), (1, 2, 3, 4), (2, 3, 5, 7))
"""Declarations take most of a conversation's tokens: more turns are more decisions in as many tokens."""
_COMPOSED = 0.5
"""Share of the sets of tools that are composed throughout: the harder ones, where nothing can be known beforehand."""
_STAGE_BUILTIN = (0.1, 0.12, 0.15, 0.45)
_CHOICE_TURNS = {"single": 0.7, "no_fit": 0.12, "parallel_different": 0.12, "parallel_same": 0.06}
_LATER = (
    "single",
    "single",
    "single",
    "single",
    "follow_up",
    "follow_up",
    "no_fit",
    "parallel_same",
    "parallel_different",
    "missing",
    "error",
    "chat",
)
_SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful assistant with tools.",
    "Be brief.",
    "You help with daily tasks.",
    "Use the tools when needed.",
    "You are an assistant that calls tools.",
    "Answer briefly and use the tools.",
)


@lru_cache(maxsize=2)
def small_talk_lines(split: Split) -> tuple[tuple[tuple[str, ...], str], ...]:
    """(ways to say it, answer) of `smalltalk.txt`; training has those of `smalltalk_train.txt` besides."""
    pairs = []
    asked: tuple[str, ...] = ()
    texts = (read_words("smalltalk.txt"), *((read_words("smalltalk_train.txt"),) if split == "train" else ()))
    for line in "\n".join(texts).splitlines():
        if line.startswith("="):
            pairs.append((asked, line[1:].strip()))
        else:
            asked = tuple(line.split("|"))
    return tuple(pairs)


@lru_cache(maxsize=1)
def rivals() -> dict[str, frozenset[str]]:
    """By first name of a hand-written tool: those that mean nearly the same."""
    found: dict[str, set[str]] = {}
    for line in read_words("rivals.txt").splitlines():
        names = line.split()
        for name in names:
            found.setdefault(name, set()).update(names)
    return {name: frozenset(others - {name}) for name, others in found.items()}


@lru_cache(maxsize=1)
def frames_by_domain() -> dict[str, tuple[Frame, ...]]:
    domains: dict[str, list[Frame]] = {}
    for frame in domain_frames():
        domains.setdefault(frame.domain, []).append(frame)
    return {domain: tuple(frames) for domain, frames in domains.items()}


class _Plan:
    """The tools of one conversation and how to speak beside them."""

    def __init__(
        self,
        rng: Dice,
        lex: Lexicon,
        number: int,
        kind: str,
        builtin: float,
        composed: float,
        most_slots: int | None = None,
        opaque: float = 0.1,
        near: float = 0.6,
    ):
        """`most_slots`: leave out tools with more parameters. `opaque`: share of the composed names that say nothing.

        `near`: share of the composed tools that have the verb or the noun of another.
        """
        self.rng, self.lex, self.values = rng, lex, Values(rng, lex)
        self.most_slots, self.opaque, self.near = most_slots, opaque, near
        self.link: tuple[Link, Tool, Tool] | None = None
        tools: list[Tool] = []
        self.seeds: list[Seed] = []
        if kind == "chain":
            link = (
                rng.choice(everyday_links()) if lex.split == "train" and rng.random() < 0.3 else compose_link(rng, lex)
            )
            first, second = Tool.spell(link.first, rng), Tool.spell(link.second, rng)
            if first.name != second.name:
                self.link = (link, first, second)
                tools += [first, second]
                number = max(number, 2)
        elif rng.random() < builtin:
            own = builtin_tools(lex.split)
            tools = list(own) if rng.random() < 0.6 else rng.sample(own, rng.randint(1, min(4, len(own))))
            number = len(tools) + (rng.choice((0, 0, 0, 1, 2)) if len(tools) < 5 else 0)
        if kind in ("parallel_different",):
            number = max(number, 2)
        self._fill(tools, number, composed)
        rng.shuffle(tools)
        self.tools = tools

    def _fill(self, tools: list[Tool], number: int, composed: float) -> None:
        rng, lex = self.rng, self.lex
        names = {t.name for t in tools}
        meanings = {t.frame.names[0] for t in tools}
        everyday = lex.split == "train" and rng.random() >= composed
        domain: tuple[Frame, ...] = ()
        for _ in range(40):
            if len(tools) >= number:
                return
            if everyday and rng.random() < 0.93:
                domain = domain or rng.choice(tuple(frames_by_domain().values()))
                frame = rng.choice(domain if rng.random() < 0.55 else domain_frames())
                if self.most_slots is not None and len(frame.slots) > self.most_slots:
                    continue
                if frame.names[0] in meanings or meanings & rivals().get(frame.names[0], frozenset()):
                    continue
                if self.most_slots is None and rng.random() < 0.12:
                    frame = replace(
                        frame,
                        slots=(*frame.slots, custom_slot(rng, lex, {k for s in frame.slots for k in s.keys}, False)),
                    )
                meanings.add(frame.names[0])
            else:
                seed = (
                    near_seed(rng.choice(self.seeds), rng, lex)
                    if self.seeds and rng.random() < self.near
                    else draw_seed(rng, lex)
                )
                if any(s.noun == seed.noun and s.synset.kind == seed.synset.kind for s in self.seeds):
                    continue
                self.seeds.append(seed)
                frame = compose(seed, rng, lex, self.most_slots, self.opaque)
            tool = Tool.spell(frame, rng, lex.nonce(rng) if rng.random() < 0.04 else "", self.values)
            if tool.name not in names:
                names.add(tool.name)
                tools.append(tool)

    def elsewhere(self) -> str:
        """A request that none of the tools can do."""
        rng, lex = self.rng, self.lex
        values = self.values
        if lex.split == "train" and rng.random() < 0.6:
            declared = {t.frame.names[0] for t in self.tools}
            near = [f for t in self.tools for f in frames_by_domain().get(t.frame.domain, ())]
            for _ in range(20):
                frame = rng.choice(near) if near and rng.random() < 0.4 else rng.choice(domain_frames())
                if frame.names[0] not in declared and not (declared & rivals().get(frame.names[0], frozenset())):
                    return make_request(Tool.spell(frame, rng), values).text
        if self.seeds and rng.random() < 0.4:
            nouns = {s.noun for s in self.seeds}
            seed = near_seed(rng.choice(self.seeds), rng, lex)
            while seed.noun in nouns:
                seed = Seed(seed.synset, draw_seed(rng, lex).noun)
        else:
            seed = draw_seed(rng, lex)
        return make_request(Tool.spell(compose(seed, rng, lex), rng), values).text


def _write(kind: str, rng: Dice, lex: Lexicon, stage: int, turns: int, builtin: float | None = None) -> Conversation:
    if kind == "choice":
        return _write_choice(rng, lex, stage)
    if kind in ("chat", "code") and rng.random() < (0.5 if kind == "chat" else 0.8):
        number = 0
    else:
        number = rng.choice(_STAGE_TOOLS[stage])
    plan = _Plan(
        rng,
        lex,
        number,
        kind,
        (_STAGE_BUILTIN[stage] if number and builtin is None else builtin or 0.0) if number else 0.0,
        _COMPOSED,
    )
    script = Script(plan.tools, plan.values, lex)
    if rng.random() < 0.2:
        script.messages.append(Message("system", rng.choice(_SYSTEM)))
    kinds = ["single", kind] if kind == "follow_up" else [kind]
    for _ in range(turns - 1):
        if stage == 0:
            kinds.append("single")
        elif stage == 1:
            kinds.append(rng.choice(("single", "single", "single", "follow_up", "no_fit")))
        else:
            kinds.append(rng.choice(_LATER) if plan.tools else rng.choice((kind, "chat", "no_fit")))
    for i, step in enumerate(kinds):
        script.ending = i == len(kinds) - 1
        _turn(step, script, plan)
    return Conversation(kind, tuple(t.spec for t in plan.tools), tuple(script.messages))


def _write_choice(rng: Dice, lex: Lexicon, stage: int) -> Conversation:
    """Many short requests over one set of small tools: the most choices in the fewest tokens.

    Half of the sets have no parameters at all, and many names that cannot be guessed from the request: the description has to be
    found, and the name that follows it.
    """
    number = rng.choice((2, 3, 3, 4, 4, 5, 6))
    if rng.random() < 0.5:
        plan = _Plan(rng, lex, number, "choice", 0.0, 1.0, most_slots=0, opaque=0.5, near=0.35)
    else:
        plan = _Plan(rng, lex, number, "choice", 1.5 * _STAGE_BUILTIN[stage], 0.45, most_slots=1)
    script = Script(plan.tools, plan.values, lex, brief=True)
    kinds = rng.choices(*zip(*_CHOICE_TURNS.items(), strict=True), k=rng.randint(4, 8))
    for i, kind in enumerate(kinds):
        script.ending = i == len(kinds) - 1
        _turn(kind, script, plan)
    return Conversation("choice", tuple(t.spec for t in plan.tools), tuple(script.messages))


def _turn(kind: str, script: Script, plan: _Plan) -> None:
    if kind == "chat":
        small_talk(script, small_talk_lines(plan.lex.split))
    elif kind == "code":
        code(script)
    elif kind == "no_fit":
        no_fit(script, plan.elsewhere)
    elif kind == "chain" and plan.link:
        chain(script, *plan.link)
    else:
        {
            "follow_up": follow_up,
            "parallel_same": parallel_same,
            "parallel_different": parallel_different,
            "missing": missing,
            "error": error,
        }.get(kind, single)(script)


def conversations(seed: int, split: Split = "train", stage: int = 3, *, joined: bool = True) -> Iterator[Conversation]:
    """An endless, reproducible stream.

    `stage` 0: one tool, single calls; 1: up to three tools, choice; 2: every kind, up to four tools; 3: up to six tools, longer.
    `split` `held` uses only tool names, parameter names, values and verbs that `train` never contains.
    `joined`: with words joined from the tokenizer's own pieces.
    """
    rng = Dice(f"{seed}/{split}/{stage}")
    lex = lexicon(split, joined)
    kinds, weights = zip(*_STAGE_KINDS[stage].items(), strict=True)
    while True:
        kind = rng.choices(kinds, weights)[0]
        turns = 0  # `choice` has a number of its own
        if kind != "choice":
            turns = rng.choice(_STAGE_TURNS[stage])
        yield _write(kind, rng, lex, stage, turns)


def held_cases(
    seed: int, n: int, kind: str = "single", stage: int = 3
) -> Iterator[tuple[tuple[ToolSpec, ...], tuple[Message, ...], Message]]:
    """`n` cases (tools, messages so far, expected assistant message) of `kind` from the held-out part.

    `kind`: one of `KINDS`, or `builtin`: single calls of the agent's own tools in phrasings that `train` never contains.
    Kinds of several assistant turns (`choice`, `chain`, `error`, `missing`) give one case for each of them.
    """
    rng = Dice(f"{seed}/cases/{kind}")
    lex = lexicon("held")
    given = 0
    while given < n:
        made = _write("single" if kind == "builtin" else kind, rng, lex, stage, 1, 1.0 if kind == "builtin" else 0.0)
        for i, message in enumerate(made.messages):
            if message.role == "assistant" and given < n:
                if kind in ("single", "builtin", "parallel_same", "parallel_different") and not message.tool_calls:
                    continue
                given += 1
                yield made.tools, made.messages[:i], message


def texts_for_tokenizer(seed: int, n: int) -> Iterator[str]:
    """`n` texts for learning a vocabulary: declarations, requests, arguments, answers, and lists of plain English words."""
    rng = Dice(f"{seed}/texts")
    stream = conversations(seed, "train", 3, joined=False)
    words = [w for name in ("common.txt", "nouns.txt", "adjectives.txt") for w in read_words(name).split()]
    given = 0
    while given < n:
        made = next(stream)
        texts = (
            [m.text for m in made.messages if m.text]
            + [c.arguments for m in made.messages for c in m.tool_calls]
            + [c.id for m in made.messages for c in m.tool_calls]
        )
        if made.tools:
            texts.append(
                json.dumps(
                    [dict(t.declaration) for t in made.tools], ensure_ascii=False, separators=(",", ":"), sort_keys=True
                )
            )
        texts.append(" ".join(rng.choice(words) for _ in range(12)))
        for text in texts:
            if given < n:
                given += 1
                yield text
