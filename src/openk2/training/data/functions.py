"""Small Python functions that people ask for, with the code that answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from openk2.training.data.dice import Dice
from openk2.training.data.lexicon import read_words

_ASKS = (
    "write a {p}function {w}", "write a {p}function {w}", "write me a {p}function {w}", "give me a {p}function {w}", "I need a {p}function {w}", "make a {p}function {w}", "show me a {p}function {w}",
    "can you write a {p}function {w}", "could you write a {p}function {w}", "please write a {p}function {w}", "code a {p}function {w}", "implement a {p}function {w}", "create a {p}function {w}",
    "define a {p}function {w}", "I want a {p}function {w}", "how do I write a {p}function {w}", "how would you write a {p}function {w}", "what does a {p}function {w} look like", "a {p}function {w}",
    "{p}function {w}", "write {p}code {w}", "give me {p}code {w}", "write a short {p}program {w}", "help me write a {p}function {w}", "a small {p}function {w} please", "write a simple {p}function {w}",
)  # fmt: skip
_NAMED_ASKS = (
    "write a {p}{t} function", "write a {p}{t} function", "give me a {p}{t} function", "show me a {p}{t} function", "{p}{t} function", "a {p}{t} function please", "write {t} in python", "implement {t} in python",
    "I need a {p}{t} function", "code {t} in python", "{t} in python", "can you write {t} in python", "how do I write {t} in python", "how do I do {t} in python", "make a {p}{t} function",
)  # fmt: skip
_NUMBERS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 50, 60, 100, 365, 1000)


@dataclass(frozen=True)
class FunctionKind:
    """A kind of function. The word `N` in its texts stands for a number that a request names."""

    topics: tuple[str, ...]
    """Names of the algorithm: `fibonacci`, for "a fibonacci function"."""
    purposes: tuple[str, ...]
    """What it does: `to add two numbers`, `that adds two numbers`."""
    checks: tuple[str, ...]
    """Expressions that are true of it, `f` being the function."""
    code: str
    """The definition, without the final newline; its name is the first word after `def`."""


@lru_cache(maxsize=1)
def function_kinds() -> tuple[FunctionKind, ...]:
    """The kinds of `functions.txt`: lines `@ topics`, `> purposes`, `= checks` (each separated by ` ; `), then the code."""
    kinds = []
    for block in read_words("functions.txt").strip().split("\n@ "):
        topics, purposes, checks, code = block.removeprefix("@ ").split("\n", 3)

        def parts(line: str) -> tuple[str, ...]:
            return tuple(part.strip() for part in line.lstrip(">=").split(" ; ") if part.strip())

        kinds.append(FunctionKind(parts(topics), parts(purposes), parts(checks), code.strip("\n")))
    return tuple(kinds)


def spell_function(kind: FunctionKind, rng: Dice) -> tuple[str, str]:
    """A request for `kind`, and the code that answers it."""
    topics = tuple(t for t in kind.topics if t != "-")
    python = rng.choice(("Python ", "python ", "Python ", ""))
    if topics and rng.random() < 0.4:
        text = rng.choice(_NAMED_ASKS).replace("{t}", rng.choice(topics))
        text = text.replace("python", "Python") if rng.random() < 0.5 else text
    else:
        text = rng.choice(_ASKS).replace("{w}", rng.choice(kind.purposes))
    text = text.replace("{p}", python)
    number = str(rng.choice(_NUMBERS))
    name = kind.code.removeprefix("def ").partition("(")[0]
    code = kind.code
    if rng.random() < 0.15:
        wanted = rng.choice(("f", "g", "run", "solve", "compute", "calc", "work", "helper", f"my_{name}", f"{name}_fn"))
        text += rng.choice((f" called {wanted}", f" named {wanted}", f", call it {wanted}"))
        code = re.sub(rf"(?<![.\w]){name}\(", f"{wanted}(", code)
    text, code = (re.sub(r"\bN\b", number, part) for part in (text, code))
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.3:
        text += "?" if text.lower().startswith(("how", "what", "can", "could")) else "."
    return text, f"```python\n{code}\n```"
