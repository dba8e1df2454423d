"""Frames: what a tool means, independent of its spelling, with the ways people ask for it.

A frame is either hand-written (`domains/*.txt` and `everyday/*.txt`, everyday language) or composed from word lists (`composed.py`).
`Tool.spell` draws one concrete declaration from a frame: its name, its parameter names, its descriptions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from openk2.chat.messages import ToolSpec
from openk2.training.data.dice import Dice
from openk2.training.data.lexicon import read_domains
from openk2.training.data.values import Values

_ARRAYS = {"names": "string", "words": "string", "products": "string", "emails": "string", "ints": "integer"}
_NUMBERS = ("number", "money")
_INTEGERS = ("int", "small", "id", "percent")


@dataclass(frozen=True)
class Slot:
    """A parameter of a frame."""

    name: str
    """How request patterns refer to it."""
    keys: tuple[str, ...]
    """Spellings of the parameter name."""
    kind: str
    """A kind of `Values.draw`, or `enum:a,b,c`, or `bool`."""
    descriptions: tuple[str, ...]
    phrases: tuple[str, ...]
    """Ways to add it to a request, `{}` standing for the value. For `bool`: those that mean true."""
    negative: tuple[str, ...] = ()
    """For `bool`: the ways that mean false."""
    required: bool = True
    default: Any = None
    keep_description: bool = False
    """The requests name it by words of the description only."""

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(self.kind[5:].split(",")) if self.kind.startswith("enum:") else ()

    def schema(self) -> dict[str, Any]:
        """JSON schema of the value, without a description."""
        if self.options:
            return {"enum": list(self.options), "type": "string"}
        if self.kind == "bool":
            return {"type": "boolean"}
        if self.kind in _ARRAYS:
            return {"items": {"type": _ARRAYS[self.kind]}, "type": "array"}
        if self.kind in _NUMBERS:
            return {"type": "number"}
        return {"type": "integer"} if self.kind in _INTEGERS or self.kind.startswith("int:") else {"type": "string"}


@dataclass(frozen=True)
class Ask:
    """A request pattern: `(a|b)` are choices, `{slot}` values (`{slot@kind}`: of another kind), `[slot=value]` an argument that the words imply."""

    text: str
    imperative: bool
    """True: begins with a verb, so that `please` or `can you` may stand before it."""

    @cached_property
    def mentions(self) -> frozenset[str]:
        """Every slot that one of its choices can mention."""
        return frozenset(a or b for a, b in re.findall(r"\{(\w+)|\[(\w+)=", self.text))


@dataclass(frozen=True)
class Frame:
    """The meaning of a tool."""

    domain: str
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    slots: tuple[Slot, ...]
    asks: tuple[Ask, ...]
    results: tuple[tuple[str, str], ...]
    """Fields of its result: (name, kind of value). Empty: the tool only acknowledges."""

    def slot(self, name: str) -> Slot:
        return next(s for s in self.slots if s.name == name)


@dataclass(frozen=True)
class Tool:
    """A frame spelled out as a declaration."""

    frame: Frame
    spec: ToolSpec
    keys: Mapping[str, str]
    """Parameter name of each slot kept by this declaration."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def slots(self) -> list[Slot]:
        return [s for s in self.frame.slots if s.name in self.keys]

    @classmethod
    def spell(cls, frame: Frame, rng: Dice, affix: str = "", examples: Values | None = None) -> Tool:
        """One declaration of `frame`.

        `affix`: a word to put before the name. `examples`: where to draw values that a description now and then gives as
        an example, which the model must not take for the value asked for.
        """
        if frame.domain != "chain" and any(s.kind == "id" for s in frame.slots) and rng.random() < 0.35:
            frame = replace(frame, slots=tuple(replace(s, kind="digits") if s.kind == "id" else s for s in frame.slots))
        camel = rng.random() < 0.2
        name = rng.choice(frame.names)
        if affix:
            name = f"{affix}_{name}"
        described = rng.random() < 0.85
        slots = [s for s in frame.slots if s.required or rng.random() < 0.75]
        if len(slots) < len(frame.slots) and not any(ask.mentions <= {s.name for s in slots} for ask in frame.asks):
            slots = list(frame.slots)
        keys: dict[str, str] = {}
        properties: dict[str, Any] = {}
        for slot in slots:
            free = [k for k in slot.keys if k not in keys.values()] or [slot.name]
            key = free[0] if rng.random() < 0.3 else rng.choice(free)
            keys[slot.name] = key = camel_case(key) if camel else key
            schema = slot.schema()
            if described or slot.keep_description:
                schema["description"] = rng.choice(slot.descriptions)
                if examples and "type" in schema and not slot.options and slot.kind != "bool" and rng.random() < 0.07:
                    example = (
                        json.dumps(examples.draw(slot.kind).value, ensure_ascii=False).strip('"').replace("\\", "")
                    )
                    schema["description"] += rng.choice((", e.g. ", ", for example ", " such as ", ", like ")) + example
            if slot.default is not None and rng.random() < 0.5:
                schema["default"] = slot.default
            properties[key] = schema
        parameters: dict[str, Any] = {"type": "object", "properties": dict(sorted(properties.items()))}
        required = [keys[s.name] for s in slots if s.required]
        if required or rng.random() < 0.5:
            parameters["required"] = required
        if rng.random() < 0.06:
            parameters["additionalProperties"] = False
        description = rng.choice(frame.descriptions)
        dressing = rng.random()
        if dressing < 0.25:
            description = description.rstrip(".")
        elif dressing < 0.31:
            description = rng.choice(_DRESSINGS).replace(
                "{}", description.rstrip(".")[:1].lower() + description.rstrip(".")[1:]
            )
        return cls(frame, ToolSpec.function(camel_case(name) if camel else name, description, parameters), keys)


_DRESSINGS = (
    "Use this to {}.",
    "Use it when the user wants to {}.",
    "Tool to {}.",
    "Call this to {}.",
    "Function: {}.",
    "API: {}.",
    "Lets you {}.",
)


def camel_case(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _split(text: str, mark: str = ";") -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(mark) if part.strip())


def _parse_slot(line: str) -> Slot:
    """`- name! : keys : kind : descriptions : phrases [/ negative phrases] [: default]`; `?` marks an optional slot."""
    head, keys, kind, descriptions, phrases, *default = (
        part.strip() for part in re.split(r"\s:\s", line[1:].strip() + " ")
    )
    positive, _, negative = phrases.partition(" / ")
    value: Any = default[0] if default else None
    if value is not None and kind.startswith(_INTEGERS):
        value = int(value)
    if kind == "bool" and value is not None:
        value = value == "true"
    return Slot(
        name=head[:-1],
        keys=_split(keys, ","),
        kind=kind,
        descriptions=_split(descriptions),
        phrases=_split(positive),
        negative=_split(negative),
        required=head.endswith("!"),
        default=value,
        keep_description=kind in ("langcode", "currencycode"),
    )


def parse_frames(domain: str, text: str) -> list[Frame]:
    """Frames of one file. A frame begins with a line `@ names`; then `: descriptions`, `- slot`, `> imperative`, `? other`, `= results`."""
    frames: list[Frame] = []
    for line in text.splitlines():
        mark, rest = line[:1], line[1:].strip()
        if mark == "@":
            frames.append(Frame(domain, tuple(rest.split()), (), (), (), ()))
        elif mark in ("", "#"):
            continue
        else:
            frame = frames[-1]
            if mark == ":":
                frame = replace(frame, descriptions=_split(rest))
            elif mark == "-":
                frame = replace(frame, slots=(*frame.slots, _parse_slot(line)))
            elif mark in ">?":
                frame = replace(frame, asks=(*frame.asks, *(Ask(a, mark == ">") for a in _split(rest))))
            elif mark == "=":
                frame = replace(
                    frame, results=tuple((k, v) for k, v in (f.split(None, 1) for f in re.split(r",\s+", rest)))
                )
            else:
                raise ValueError(f"{domain}: a frame line begins with one of @ : - > ? = #, not with {line!r}")
            frames[-1] = frame
    return frames


@lru_cache(maxsize=1)
def domain_frames() -> tuple[Frame, ...]:
    """All hand-written frames. A file may hold several domains, each opened by a line `# domain NAME`."""
    frames: list[Frame] = []
    for text in (*read_domains("domains").values(), *read_domains("everyday").values()):
        domain = ""
        block: list[str] = []
        for line in [*text.splitlines(), "# domain "]:
            if line.startswith("# domain"):
                frames.extend(parse_frames(domain, "\n".join(block)))
                domain, block = line[8:].strip(), []
            else:
                block.append(line)
    return tuple(frames)
