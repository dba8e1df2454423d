"""Values of everyday kinds: numbers, words and names, places, dates and times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openk2.training.data import tables
from openk2.training.data.dice import Dice
from openk2.training.data.lexicon import Lexicon
from openk2.training.data.value import SPOKEN, Value


class BasicValues:
    """Draws from one part's words. A method `_KIND` makes a value of that kind, or the text of a plain one."""

    def __init__(self, rng: Dice, lex: Lexicon):
        self.rng = rng
        self.lex = lex

    def _known(self, options: Sequence[str]) -> str:
        """One of a closed class such as colors; the held-out part, which must not share them, invents a member."""
        return self.rng.choice(options) if self.lex.split == "train" else self.lex.nonce(self.rng)

    def _until_mine(self, make: Callable[[], str]) -> str:
        for _ in range(200):
            text = make()
            if self.lex.mine(text):
                return text
        return text

    def _spoken(self, n: int) -> Value:
        if n in SPOKEN and self.rng.random() < 0.3:
            return Value(n, SPOKEN[n], verbatim=False)
        return Value(n, str(n))

    def _int(self) -> Value:
        r = self.rng
        n = r.choice((r.randint(1, 12), r.randint(2, 60), r.randint(10, 500), r.randint(100, 9999)))
        while n > 20 and not self.lex.mine(str(n)):
            n += 1
        return self._spoken(n)

    def _small(self) -> Value:
        return self._spoken(self.rng.randint(1, 12))

    def _id(self) -> Value:
        return Value(n := int(self._until_mine(lambda: str(self.rng.randint(10, 99999)))), str(n))

    def _digits(self) -> str:
        """A number that is a name: an order, a postal code."""
        return self._until_mine(lambda: str(self.rng.randint(100, 99999)))

    def _number(self) -> Value:
        r = self.rng
        if r.random() < 0.35:
            return self._int()
        text = self._until_mine(
            lambda: (
                f"{r.randint(0, 400)}.{r.choice('1234567895')}"
                if r.random() < 0.5
                else f"{r.randint(1, 90)}.{r.randint(10, 99)}"
            )
        )
        return Value(float(text), str(float(text)))

    def _money(self) -> Value:
        r = self.rng
        n = r.choice((r.randint(1, 99), r.randint(5, 95) * 10, r.randint(2, 90) * 50, round(r.uniform(1, 300), 2)))
        return Value(n, str(n))

    def _percent(self) -> Value:
        return self._spoken(self.rng.choice((*range(5, 101, 5), self.rng.randint(1, 100))))

    def _word(self) -> str:
        r = self.rng.random()
        if r < 0.5:
            return self.lex.nonce(self.rng)
        return self.rng.choice(self.lex.nouns if r < 0.75 else self.lex.common)

    def _name(self) -> str:
        """A proper name of a thing: invented, capitalised, or plain."""
        r = self.rng
        word = self._word()
        style = r.random()
        if style < 0.35:
            return word
        if style < 0.6:
            return word.capitalize()
        if style < 0.75:
            return f"{word}-{r.randint(1, 99)}"
        if style < 0.88:
            return f"{r.choice(self.lex.adjectives)} {word}"
        return f"{word.capitalize()} {self._word().capitalize()}"

    def _slug(self) -> str:
        return f"{self._word()}{self.rng.choice(('-', '_', '-'))}{self._word()}"

    def _first(self) -> str:
        name = self.lex.nonce(self.rng).capitalize() if self.rng.random() < 0.25 else self.rng.choice(self.lex.people)
        return name.lower() if self.rng.random() < 0.05 else name

    def _person(self) -> str:
        r = self.rng
        if r.random() < 0.5:
            return self._first()
        last = self.lex.nonce(r).capitalize() if r.random() < 0.25 else r.choice(self.lex.surnames)
        return f"{self._first()} {last}"

    def _city(self) -> str:
        name = self.lex.nonce(self.rng).capitalize() if self.rng.random() < 0.25 else self.rng.choice(self.lex.cities)
        return name.lower() if self.rng.random() < 0.06 else name

    def _place(self) -> str:
        r = self.rng.random()
        if r < 0.5:
            return self._city()
        if r < 0.75:
            return f"{self._word().capitalize()} {self.rng.choice(('Street', 'Road', 'Square', 'Station', 'Park', 'Airport', 'Museum', 'Avenue', 'Hotel'))}"
        return f"{self.rng.randint(1, 200)} {self._word().capitalize()} {self.rng.choice(('Street', 'Road', 'Lane', 'Avenue'))}"

    def _phone(self) -> str:
        r = self.rng
        return self._until_mine(
            lambda: r.choice(
                (f"555-{r.randint(1000, 9999)}", f"+{r.randint(1, 99)} {r.randint(100, 999)} {r.randint(1000, 9999)}")
            )
        )

    def _iso(self) -> str:
        r = self.rng
        return self._until_mine(lambda: f"{r.randint(2023, 2027)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}")

    def _date(self) -> str:
        return self._iso() if self.rng.random() < 0.6 else self._day()

    def _day(self) -> str:
        r = self.rng
        n = r.random()
        if n < 0.35:
            return r.choice(tables.WEEKDAYS)
        if n < 0.6:
            return r.choice(
                ("today", "tomorrow", "tomorrow", "next week", "this weekend", "next " + r.choice(tables.WEEKDAYS))
            )
        return f"{r.choice(tables.MONTHS)} {r.randint(1, 28)}"

    def _month(self) -> str:
        return self.rng.choice(tables.MONTHS)

    def _time(self) -> str:
        r = self.rng
        hour, minute = r.randint(0, 23), r.choice((0, 0, 5, 10, 15, 20, 30, 30, 40, 45, 50))
        style = r.random()
        if style < 0.6:
            return f"{hour:02d}:{minute:02d}"
        if style < 0.75:
            return f"{hour % 12 + 1}:{minute:02d}"
        return (
            f"{hour % 12 + 1}{r.choice((' am', ' pm', 'am', 'pm'))}" if style < 0.95 else r.choice(("noon", "midnight"))
        )

    def _dayname(self) -> str:
        return self.rng.choice(tables.WEEKDAYS)

    def _title(self) -> str:
        r = self.rng
        words = [
            r.choice(self.lex.common) if r.random() < 0.6 else self._word() for _ in range(r.choice((2, 2, 3, 3, 4)))
        ]
        return " ".join(w.capitalize() for w in words) if r.random() < 0.6 else " ".join(words)

    def _topic(self) -> str:
        r = self.rng
        words = [self._word() if r.random() < 0.6 else r.choice(self.lex.common)]
        if r.random() < 0.6:
            words.insert(0, r.choice(self.lex.adjectives) if r.random() < 0.5 else r.choice(self.lex.common))
        return " ".join(words)
