"""Draws values of arguments by kind."""

from __future__ import annotations

from collections.abc import Callable

from openk2.training.data import tables
from openk2.training.data.value import Value, enumeration, plain
from openk2.training.data.value_technical import TechnicalValues


class Values(TechnicalValues):
    """Values of each kind; here, beside `draw`: messages, choices of daily life, and lists."""

    def draw(self, kind: str) -> Value:
        """A value of `kind`; kinds are the methods without their underscore, and `int:LOW-HIGH`."""
        if kind.startswith("int:"):
            low, high = kind[4:].split("-")
            return self._spoken(self.rng.randint(int(low), int(high)))
        if kind.startswith("pick:"):
            return plain(self._known(kind[5:].split(",")))
        made = getattr(self, "_" + kind)()
        return made if isinstance(made, Value) else plain(made)

    def _quoted(self) -> Value:
        """A title that may stand in quotation marks."""
        text = self._title()
        return Value(text, self.rng.choice((text, f'"{text}"', f"'{text}'", f'"{text}"')))

    def _text(self) -> Value:
        """A message: a hand-written sentence or arbitrary words, often quoted."""
        r = self.rng
        if self.lex.pieces and r.random() < 0.4:
            # Every word a piece of copying practice: these lend the rare tokens most of their occurrences.
            text = " ".join(self.lex.joined(r) for _ in range(r.randint(4, 10)))
        elif r.random() < 0.5:
            text = r.choice(tables.SUBJECT_TEXTS)
        else:
            text = " ".join(
                r.choice(self.lex.common) if r.random() < 0.75 else self._word() for _ in range(r.randint(2, 6))
            )
        return Value(text, r.choice((text, f'"{text}"', f'"{text}"')))

    def _said(self) -> Value:
        """A sentence without quotation marks, for `that {x}` and `to {x}`."""
        r = self.rng
        if r.random() < 0.7:
            return plain(r.choice(tables.SUBJECT_TEXTS))
        return plain(" ".join(r.choice(self.lex.common) for _ in range(r.randint(2, 5))))

    def _phrase(self) -> Value:
        r = self.rng
        text = (
            r.choice(tables.PHRASES)
            if r.random() < 0.5
            else " ".join(r.choice(self.lex.common) for _ in range(r.randint(1, 4)))
        )
        return Value(text, r.choice((f'"{text}"', f"'{text}'", text)))

    def _language(self) -> str:
        return self._known([name for name, _ in tables.LANGUAGES])

    def _langcode(self) -> Value:
        name, code = self.rng.choice(tables.LANGUAGES)
        return Value(code, name, verbatim=False)

    def _currency(self) -> str:
        return self.rng.choice(tables.CODES)

    def _currencycode(self) -> Value:
        name, code = self.rng.choice(tables.CURRENCIES)
        return Value(code, name, verbatim=False)

    def _unit(self) -> str:
        return self.rng.choice(tables.UNITS)

    def _product(self) -> str:
        return self._known(tables.FOODS) if self.rng.random() < 0.6 else self._topic()

    def _genre(self) -> str:
        return self._known(tables.GENRES)

    def _cuisine(self) -> str:
        return self._known(tables.CUISINES)

    def _room(self) -> str:
        return self._known(tables.ROOMS) if self.rng.random() < 0.8 else self._word() + " room"

    def _device(self) -> str:
        r = self.rng
        name = r.choice(tables.DEVICES) if r.random() < 0.8 else self._word()
        return f"{r.choice(tables.ROOMS)} {name}" if r.random() < 0.5 else name

    def _country(self) -> str:
        return self._known(tables.COUNTRIES)

    def _dish(self) -> str:
        return self.rng.choice(tables.DISHES) if self.rng.random() < 0.7 else self._topic()

    def _song(self) -> Value:
        return self._quoted()

    def _artist(self) -> str:
        r = self.rng.random()
        return (
            self._person()
            if r < 0.4
            else ("the " if r < 0.5 else "") + self._word() + "s"
            if r < 0.6
            else self._title()
        )

    def _ticker(self) -> str:
        r = self.rng
        return (
            r.choice(tables.TICKERS)
            if r.random() < 0.4
            else "".join(r.choice("ABCDEFGHIKLMNOPRSTUVXZ") for _ in range(r.choice((3, 4, 4))))
        )

    def _airport(self) -> str:
        return (
            "".join(self.rng.choice("ABCDEFGHIKLMNOPRSTUVXYZ") for _ in range(3))
            if self.rng.random() < 0.3
            else self._city()
        )

    def _sport(self) -> str:
        return self._known(tables.SPORTS)

    def _team(self) -> str:
        return (
            self.rng.choice(self.lex.cities) + self.rng.choice((" United", " City", " Tigers", " Rovers", ""))
            if self.rng.random() < 0.6
            else f"the {self._word().capitalize()}s"
        )

    def _names(self) -> Value:
        return self._several(self._first)

    def _words(self) -> Value:
        return self._several(self._word)

    def _products(self) -> Value:
        return self._several(lambda: self._known(tables.FOODS))

    def _emails(self) -> Value:
        return self._several(self._email)

    def _ints(self) -> Value:
        items = [self.rng.randint(1, 99) for _ in range(self.rng.randint(2, 4))]
        return Value(items, enumeration([str(i) for i in items], self.rng))

    def _several(self, make: Callable[[], str]) -> Value:
        items = list(dict.fromkeys(make() for _ in range(self.rng.choice((2, 2, 3)))))
        return Value(items, enumeration(items, self.rng))
