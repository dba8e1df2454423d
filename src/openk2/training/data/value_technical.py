"""Values of people who work with computers: addresses, files, code, and what the agent's own tools take."""

from __future__ import annotations

from openk2.training.data import tables
from openk2.training.data.sums import arithmetic, sum_command, sum_noun
from openk2.training.data.value import Value
from openk2.training.data.value_basics import BasicValues


class TechnicalValues(BasicValues):
    def _email(self) -> str:
        r = self.rng
        user = r.choice((self._first().lower(), f"{self._first().lower()}.{self._word()}", self._word()))
        host = (
            r.choice(tables.DOMAINS)
            if r.random() < 0.6
            else f"{self.lex.nonce(r)}.{r.choice(('com', 'org', 'net', 'io'))}"
        )
        return self._until_mine(lambda: f"{user}{r.choice(('', '', r.randint(1, 99)))}@{host}")

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
        training = self.lex.split == "train"
        if training and r.random() < 0.12 and self.lex.mine(bare := r.choice(tables.BARE_FILES)):
            return bare
        if r.random() < 0.12 and self.lex.mine(known := r.choice(tables.KNOWN_FILES)):
            return known
        stem = r.choice((self._word(), self._slug(), self._word() + str(r.randint(1, 99))))
        return f"{stem}.{r.choice(tables.MORE_EXTENSIONS if training and r.random() < 0.4 else tables.EXTENSIONS)}"

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

    def _service(self) -> str:
        r = self.rng
        return (
            r.choice(tables.SERVICES)
            if r.random() < 0.5
            else f"{self._word()}{r.choice(('', '-api', '-service', '-worker', '-web', '-db'))}"
        )

    def _table(self) -> str:
        return self.rng.choice(tables.TABLES) if self.rng.random() < 0.5 else f"{self._word()}s"

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

    def _timezone(self) -> Value:
        place, zone = self.rng.choice(tables.ZONES)
        if self.lex.split == "train" and self.rng.random() < 0.12:
            place = zone
        return Value(zone, place, verbatim=False)

    def _filelang(self) -> Value:
        r = self.rng
        name, extension = r.choice(tables.FILE_LANGUAGES)
        if self.lex.split == "train" and r.random() < 0.6:
            # A name must be known by heart: each as often as the others, and as people write it, without capitals.
            name, extension = r.choice(sorted({*tables.FILE_LANGUAGES, *tables.MORE_FILE_LANGUAGES}))
            name = name.lower() if r.random() < 0.5 else name
        return Value(extension, name, verbatim=False)

    def _pattern(self) -> Value:
        r = self.rng
        if self.lex.split == "train" and r.random() < 0.35:
            text = self._identifier()
            return Value(text, text if r.random() < 0.8 else r.choice((f'"{text}"', f"'{text}'", f"`{text}`")))
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

    def _identifier(self) -> str:
        """What programs and their messages are full of: names of several words and signs, for training only."""
        r = self.rng
        several = [self._word() for _ in range(r.choice((2, 2, 3, 3, 4)))]
        big = "".join(w.capitalize() for w in several)
        return r.choice(
            (
                big,
                big + r.choice(("Error", "Exception", "Warning", "Test", "Handler", "Config", "Id", "Factory")),
                several[0] + "".join(w.capitalize() for w in several[1:]),
                "_".join(several),
                "_".join(several).upper(),
                "_" + "_".join(several),
                ".".join(several[:2]) + r.choice(("", "()", "(")),
                "-".join(several),
                " ".join(several),
                f"{several[0]} = {r.choice((r.randint(0, 999), 'None', 'True', 'null'))}",
                f"{several[0]}[{r.randint(0, 9)}]",
                f"@{several[0]}",
                f"E{r.randint(100, 9999)}",
                f"{r.randint(10, 99999)}",
                self._email(),
                self._url(),
                self._version(),
            )
        )

    def _expression(self) -> Value:
        return arithmetic(self.rng)

    def _mathcommand(self) -> Value:
        return sum_command(self.rng, further=self.lex.split == "train")

    def _mathnoun(self) -> Value:
        return sum_noun(self.rng, further=self.lex.split == "train")

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
