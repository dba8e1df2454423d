"""Draws values of arguments by kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openk2.training.data import tables
from openk2.training.data.dice import Dice
from openk2.training.data.lexicon import Lexicon
from openk2.training.data.sums import arithmetic, sum_command, sum_noun
from openk2.training.data.value import SPOKEN, Value, enumeration, plain


class Values:
    """Draws values of each kind from one part's words."""

    def __init__(self, rng: Dice, lex: Lexicon):
        self.rng = rng
        self.lex = lex

    def draw(self, kind: str) -> Value:
        """A value of `kind`; kinds are the methods below without their underscore, and `int:LOW-HIGH`."""
        if kind.startswith("int:"):
            low, high = kind[4:].split("-")
            return self._spoken(self.rng.randint(int(low), int(high)))
        if kind.startswith("pick:"):
            return plain(self._known(kind[5:].split(",")))
        made = getattr(self, "_" + kind)()
        return made if isinstance(made, Value) else plain(made)

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

    # numbers
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
        return self._spoken(
            self.rng.choice(
                (
                    5,
                    10,
                    15,
                    20,
                    25,
                    30,
                    35,
                    40,
                    45,
                    50,
                    55,
                    60,
                    65,
                    70,
                    75,
                    80,
                    85,
                    90,
                    95,
                    100,
                    self.rng.randint(1, 100),
                )
            )
        )

    # words
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

    def _email(self) -> str:
        r = self.rng
        user = r.choice((self._first().lower(), f"{self._first().lower()}.{self._word()}", self._word()))
        host = (
            r.choice(tables.DOMAINS)
            if r.random() < 0.6
            else f"{self.lex.nonce(r)}.{r.choice(('com', 'org', 'net', 'io'))}"
        )
        return self._until_mine(lambda: f"{user}{r.choice(('', '', r.randint(1, 99)))}@{host}")

    def _phone(self) -> str:
        r = self.rng
        return self._until_mine(
            lambda: r.choice(
                (f"555-{r.randint(1000, 9999)}", f"+{r.randint(1, 99)} {r.randint(100, 999)} {r.randint(1000, 9999)}")
            )
        )

    def _code(self) -> str:
        r = self.rng

        def make() -> str:
            letters = "".join(r.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(r.choice((1, 2, 2, 3))))
            digits = "".join(r.choice("0123456789") for _ in range(r.choice((2, 3, 4, 4, 5))))
            return r.choice(
                (
                    f"{letters}-{digits}",
                    f"{letters}{digits}",
                    f"{letters}-{digits}",
                    f"#{digits}",
                    f"{letters.lower()}_{digits}",
                )
            )

        return self._until_mine(make)

    def _file(self) -> str:
        r = self.rng
        if r.random() < 0.12 and self.lex.mine(known := r.choice(tables.KNOWN_FILES)):
            return known
        stem = r.choice((self._word(), self._slug(), self._word() + str(r.randint(1, 99))))
        return f"{stem}.{r.choice(tables.EXTENSIONS)}"

    def _folder(self) -> str:
        r = self.rng
        parts = [
            r.choice(tables.FOLDERS) if r.random() < 0.5 else self._word() for _ in range(r.choice((1, 1, 2, 2, 3)))
        ]
        return r.choice(("", "", "/")) + "/".join(parts)

    def _path(self) -> str:
        return self._file() if self.rng.random() < 0.4 else f"{self._folder()}/{self._file()}"

    def _url(self) -> str:
        r = self.rng
        return f"https://{self.lex.nonce(r)}.{r.choice(('com', 'org', 'io', 'net'))}" + r.choice(
            ("", f"/{self._word()}", f"/{self._word()}/{r.randint(1, 99)}")
        )

    def _host(self) -> str:
        r = self.rng
        return r.choice(
            (f"{self._word()}-{r.randint(1, 20):02d}", self._slug(), f"10.0.{r.randint(0, 255)}.{r.randint(1, 254)}")
        )

    def _branch(self) -> str:
        r = self.rng
        return r.choice(
            (
                "main",
                "develop",
                f"feature/{self._word()}",
                f"fix-{self._word()}",
                f"release-{r.randint(1, 9)}.{r.randint(0, 9)}",
                self._slug(),
            )
        )

    def _version(self) -> str:
        r = self.rng
        return f"{r.choice(('', 'v'))}{r.randint(0, 9)}.{r.randint(0, 20)}.{r.randint(0, 20)}"

    # dates and times
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

    # longer text
    def _title(self) -> str:
        r = self.rng
        words = [
            r.choice(self.lex.common) if r.random() < 0.6 else self._word() for _ in range(r.choice((2, 2, 3, 3, 4)))
        ]
        return " ".join(w.capitalize() for w in words) if r.random() < 0.6 else " ".join(words)

    def _quoted(self) -> Value:
        """A title that may stand in quotation marks."""
        text = self._title()
        return Value(text, self.rng.choice((text, f'"{text}"', f"'{text}'", f'"{text}"')))

    def _text(self) -> Value:
        """A message: a hand-written sentence or arbitrary words, often quoted."""
        r = self.rng
        if r.random() < 0.5:
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

    def _topic(self) -> str:
        r = self.rng
        words = [self._word() if r.random() < 0.6 else r.choice(self.lex.common)]
        if r.random() < 0.6:
            words.insert(0, r.choice(self.lex.adjectives) if r.random() < 0.5 else r.choice(self.lex.common))
        return " ".join(words)

    # choices of daily life
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

    def _service(self) -> str:
        r = self.rng
        return (
            r.choice(tables.SERVICES)
            if r.random() < 0.5
            else f"{self._word()}{r.choice(('', '-api', '-service', '-worker', '-web', '-db'))}"
        )

    def _table(self) -> str:
        return self.rng.choice(tables.TABLES) if self.rng.random() < 0.5 else f"{self._word()}s"

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

    def _command(self) -> str:
        r = self.rng
        return r.choice(
            (
                "npm install",
                "npm test",
                "make build",
                "pytest -q",
                "ls -la",
                "git status",
                "python main.py",
                f"./{self._word()}.sh",
                f"python {self._file()}",
                f"make {self._word()}",
                "docker ps",
            )
        )

    def _sql(self) -> Value:
        r = self.rng
        text = r.choice(
            (
                f"SELECT * FROM {self._table()}",
                f"SELECT COUNT(*) FROM {self._table()}",
                f"SELECT name FROM {self._table()} LIMIT {r.randint(1, 50)}",
            )
        )
        return Value(text, text)

    def _channel(self) -> str:
        r = self.rng
        return r.choice(("#", "#", "")) + r.choice(
            (
                "general",
                "random",
                "support",
                "dev",
                "sales",
                "marketing",
                "alerts",
                "design",
                self._word(),
                self._slug(),
            )
        )

    def _dayname(self) -> str:
        return self.rng.choice(tables.WEEKDAYS)

    # the agent's own tools
    def _timezone(self) -> Value:
        place, zone = self.rng.choice(tables.ZONES)
        return Value(zone, place, verbatim=False)

    def _filelang(self) -> Value:
        name, extension = self.rng.choice(tables.FILE_LANGUAGES)
        return Value(extension, name, verbatim=False)

    def _pattern(self) -> Value:
        r = self.rng
        n = r.random()
        if n < 0.35:
            text = r.choice(tables.MARKS)
        elif n < 0.5:
            text = f"{self._word()}_{self._word()}"
        elif n < 0.6:
            text = self._word().capitalize() + self._word().capitalize()
        elif n < 0.66:
            text = r.choice(
                (
                    f"def {self._word()}",
                    f"import {self._word()}",
                    f"class {self._word().capitalize()}",
                    f"{self._word()}()",
                )
            )
        elif n < 0.8:
            text = " ".join(r.choice(self.lex.common) for _ in range(r.choice((1, 2, 2, 3))))
            return Value(text, r.choice((f'"{text}"', f"'{text}'")))
        else:
            text = self._word() if n < 0.95 else self._word().upper()
        return Value(text, text if r.random() < 0.8 else r.choice((f'"{text}"', f"'{text}'", f"`{text}`")))

    def _expression(self) -> Value:
        return arithmetic(self.rng)

    def _mathcommand(self) -> Value:
        return sum_command(self.rng)

    def _mathnoun(self) -> Value:
        return sum_noun(self.rng)

    def _total(self) -> str:
        return str(self.rng.choice((self.rng.randint(1, 5000), round(self.rng.uniform(0, 500), 2))))

    def _clock(self) -> str:
        r = self.rng
        zone = r.choice(
            (
                "UTC (UTC+00:00)",
                "CET (UTC+01:00)",
                "JST (UTC+09:00)",
                "EST (UTC-05:00)",
                "CEST (UTC+02:00)",
                "IST (UTC+05:30)",
                "PDT (UTC-07:00)",
                "AEST (UTC+10:00)",
            )
        )
        return f"{self._iso()} {r.randint(0, 23):02d}:{r.randint(0, 59):02d}:{r.randint(0, 59):02d} {zone}, {r.choice(tables.WEEKDAYS)}"

    # lists
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
