"""Word lists of the generator and their division into a training part and a held-out part.

A word belongs to the held-out part when a stable hash of it says so and when no hand-written sentence of the
training data uses it; everything else is training. Evaluations on the held-out part therefore measure whether
the model uses tools whose names, parameters and values it has never read.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Literal

from openk2.training.data.dice import Dice

Split = Literal["train", "held"]

_HELD_SHARE = 6
"""One word in this many is held out."""

_ONSETS = (
    "b c d f g h j k l m n p r s t v w z bl br cl cr dr fl fr gl gr kr pl pr sk sl sn sp st tr th sh ch qu x y".split()
)
_NUCLEI = "a e i o u a e i o u ai ea ee io oa oo ou au".split()
_CODAS = ["", "", "", "", "n", "r", "s", "l", "m", "t", "k", "x", "nd", "rk", "st", "lt", "p", "d"]

_JOINED = 0.8
"""Share of training's invented words that are joined from `pieces.txt`. Syllables and listed words reach few of the
tokens often: one in ten tokens that held-out calls copy was copied in less than one of a hundred training
conversations, and a token that is rarely copied in training is not copied at all."""

_FURTHER_NOUNS, _FURTHER_OTHERS = 3.0, 2.0
"""Joined words for each listed noun, adjective and common word of training, for the same reason."""


def hash_says_held(word: str) -> bool:
    """The stable coin of the division: the same on every machine and Python version."""
    return zlib.crc32(word.lower().encode()) % _HELD_SHARE == 0


def read_words(name: str) -> str:
    """Text of a word file without its comment lines."""
    text = resources.files(__package__).joinpath("words", name).read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def read_domains(folder_name: Literal["domains", "everyday"]) -> dict[str, str]:
    """The hand-written frame files of a folder, by file name.

    Words of `domains` are never held out. `everyday` came later and is for training alone: it has no held-out word, so
    that the held-out cases stayed what they were.
    """
    folder = resources.files(__package__).joinpath(folder_name)
    return {
        f.name: f.read_text(encoding="utf-8")
        for f in sorted(folder.iterdir(), key=lambda f: f.name)
        if f.name.endswith(".txt")
    }


@lru_cache(maxsize=1)
def hand_written_words() -> frozenset[str]:
    """Every word of the hand-written frames and sentences; none of them can be held out."""
    texts = [*read_domains("domains").values(), read_words("smalltalk.txt"), read_words("builtin.txt")]
    return frozenset(w for text in texts for w in re.findall(r"[a-z]+", text.lower()))


@dataclass(frozen=True)
class Synset:
    """Verbs of one meaning. `kind` (get, make, drop, change, send, start, stop) selects the sentence forms."""

    kind: str
    verbs: tuple[str, ...]
    """Phrasal verbs with a space: `look up`."""


@dataclass(frozen=True)
class Lexicon:
    """The word lists of one part."""

    split: Split
    synsets: tuple[Synset, ...]
    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    people: tuple[str, ...]
    surnames: tuple[str, ...]
    cities: tuple[str, ...]
    common: tuple[str, ...]
    pieces: tuple[str, ...]
    """What the tokenizer of k2-nano has tokens for; empty in the held-out part."""
    listed: frozenset[str]
    """Every word of the lists of both parts, which no invented word may equal."""

    def mine(self, text: str) -> bool:
        """Does a composed string (a code, a date, an invented word) belong to this part?"""
        return (hash_says_held(text) and text not in hand_written_words()) == (self.split == "held")

    def nonce(self, rng: Dice) -> str:
        """An invented lower-case word of this part: pronounceable, or (in training) joined from pieces."""
        if self.pieces and rng.random() < _JOINED:
            return self.joined(rng)
        while True:
            word = "".join(rng.choice(_ONSETS) + rng.choice(_NUCLEI) for _ in range(rng.choice((1, 2, 2, 2, 3))))
            word += rng.choice(_CODAS)
            if len(word) > 3 and self.mine(word):
                return word

    def joined(self, rng: Dice) -> str:
        """An invented word of one to three pieces."""
        while True:
            word = "".join(rng.choice(self.pieces) for _ in range(rng.choice((1, 2, 2, 3))))
            if 3 < len(word) < 15 and word not in self.listed and self.mine(word):
                return word


def _part(words: list[str], split: Split, guard: frozenset[str]) -> tuple[str, ...]:
    held = split == "held"
    return tuple(dict.fromkeys(w for w in words if (hash_says_held(w) and w.lower() not in guard) == held))


def _listed_words() -> frozenset[str]:
    files = ("verbs", "nouns", "adjectives", "people", "surnames", "cities", "multicities", "common")
    return frozenset(w for name in files for w in re.findall(r"[a-z]+", read_words(f"{name}.txt").lower()))


@lru_cache(maxsize=3)
def lexicon(split: Split, joined: bool = True) -> Lexicon:
    """The lists of `split`, read once; in training, with words joined from pieces unless `joined` is False."""
    guard = hand_written_words()
    synsets = []
    for line in read_words("verbs.txt").splitlines():
        kind, _, words = line.partition("|")
        verbs = tuple(w.replace("_", " ") for w in words.split())
        rare = not any(part in guard for verb in verbs for part in verb.split())
        # A set is held as a whole, and only if it is hashed so by its line: a synonym must not leak from the other part.
        held = rare and (zlib.crc32(words.strip().encode()) % 3 == 0)
        if held == (split == "held"):
            synsets.append(Synset(kind.strip(), verbs))
    synset_words = frozenset(p for line in read_words("verbs.txt").splitlines() for p in re.split(r"[\s_|]+", line))
    nouns = [w for w in read_words("nouns.txt").split() if w not in synset_words]
    part = Lexicon(
        split=split,
        synsets=tuple(synsets),
        nouns=_part(nouns, split, guard),
        adjectives=_part(read_words("adjectives.txt").split(), split, guard),
        people=_part(read_words("people.txt").split(), split, guard),
        surnames=_part(read_words("surnames.txt").split(), split, guard),
        cities=_part(read_words("cities.txt").split() + read_words("multicities.txt").strip().split("|"), split, guard),
        common=_part(read_words("common.txt").split(), split, guard),
        pieces=tuple(read_words("pieces.txt").split()) if joined and split == "train" else (),
        listed=_listed_words(),
    )
    if not part.pieces:
        return part
    rng = Dice("further words")

    def further(words: tuple[str, ...], share: float) -> tuple[str, ...]:
        return (*words, *(part.joined(rng) for _ in range(int(share * len(words)))))

    return replace(
        part,
        nouns=further(part.nouns, _FURTHER_NOUNS),
        adjectives=further(part.adjectives, _FURTHER_OTHERS),
        common=further(part.common, _FURTHER_OTHERS),
    )
