"""Values of arguments: what the user says (`surface`) and what the call must carry (`value`)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from openk2.training.data.lexicon import Lexicon

NUMBER_WORDS = dict(
    zip(
        "one two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty sixty ninety".split(),
        (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 20, 30, 40, 50, 60, 90),
        strict=True,
    )
)
_NUMBER_ITEMS = tuple(NUMBER_WORDS.items())
_MONTHS = "January February March April May June July August September October November December".split()
_WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_LANGUAGES = (
    ("French", "fr"), ("German", "de"), ("Spanish", "es"), ("Italian", "it"), ("Portuguese", "pt"), ("Dutch", "nl"), ("Polish", "pl"), ("Swedish", "sv"),
    ("Japanese", "ja"), ("Korean", "ko"), ("Chinese", "zh"), ("Arabic", "ar"), ("Hindi", "hi"), ("Turkish", "tr"), ("Greek", "el"), ("Czech", "cs"),
    ("Danish", "da"), ("Finnish", "fi"), ("Russian", "ru"), ("English", "en"), ("Ukrainian", "uk"), ("Hungarian", "hu"),
)  # fmt: skip
_CURRENCIES = (
    ("dollars", "USD"), ("euros", "EUR"), ("pounds", "GBP"), ("yen", "JPY"), ("francs", "CHF"), ("US dollars", "USD"), ("rupees", "INR"),
    ("yuan", "CNY"), ("kronor", "SEK"), ("Canadian dollars", "CAD"), ("Australian dollars", "AUD"), ("pesos", "MXN"), ("zloty", "PLN"),
)  # fmt: skip
_CODES = ("USD", "EUR", "GBP", "JPY", "CHF", "INR", "CNY", "SEK", "CAD", "AUD", "MXN", "PLN", "NOK", "DKK", "BRL", "ZAR", "KRW")
_UNITS = (
    "miles km kilometers meters feet inches cm yards pounds kg kilograms ounces grams stones liters gallons cups pints milliliters celsius fahrenheit "
    "kelvin hours minutes seconds days acres hectares knots mph"
).split()
_EXTENSIONS = "txt pdf md csv json docx xlsx png jpg py js html zip log yaml".split()
_KNOWN_FILES = "README.md README.md LICENSE Makefile Dockerfile pyproject.toml setup.py main.py app.py requirements.txt index.html notes.txt package.json config.yaml utils.py .gitignore todo.txt CHANGELOG.md".split()
_FOLDERS = "docs src data reports backup images home notes tmp public config archive assets tests music photos projects invoices".split()
_DOMAINS = "example.com mail.org corp.net acme.io test.dev shop.com post.net uni.edu".split()
_FOODS = (
    "milk,bread,eggs,butter,apples,bananas,rice,pasta,cheese,coffee,tea,tomatoes,olive oil,chicken,toilet paper,batteries,dog food,shampoo,oat milk,"
    "paper towels,headphones,a phone charger,running shoes,dish soap,onions,cat litter,light bulbs,orange juice,yogurt,sugar"
).split(",")
_COUNTRIES = (
    "France,Germany,Spain,Italy,Portugal,Norway,Sweden,Finland,Denmark,Poland,Austria,Greece,Turkey,Egypt,Kenya,Nigeria,Ghana,Morocco,South Africa,India,Nepal,China,Japan,Vietnam,Thailand,"
    "Indonesia,Australia,New Zealand,Canada,Mexico,Brazil,Argentina,Chile,Peru,Colombia,Cuba,Iceland,Ireland,Scotland,Ukraine,Hungary,Croatia,Estonia"
).split(",")
_DISHES = (
    "lasagna,pancakes,chicken curry,tomato soup,apple pie,ramen,paella,risotto,tacos,banana bread,pad thai,goulash,falafel,chili,beef stew,caesar salad,pumpkin soup,"
    "brownies,omelette,pizza dough,sushi,dumplings,ratatouille,hummus,waffles,fried rice,cheesecake"
).split(",")
_SERVICES = "nginx,postgres,redis,web,api,worker,billing,auth,search,gateway,frontend,backend,checkout,mailer,scheduler,kafka,payments,login,cron".split(",")
_TABLES = "users,orders,customers,products,invoices,payments,sessions,employees,events,logs,accounts,tickets,items,reviews".split(",")
_TICKERS = "AAPL MSFT TSLA AMZN GOOG NVDA META NFLX IBM INTC".split()
_SPORTS = "football,basketball,tennis,hockey,baseball,cricket,rugby,volleyball,handball,golf,cycling,running,swimming,yoga,rowing,boxing,hiking".split(",")
_GENRES = "jazz,rock,pop,classical,blues,techno,folk,hip hop,reggae,metal,country,soul,ambient,lo-fi,funk,disco,salsa,opera".split(",")
_CUISINES = "italian,sushi,thai,mexican,indian,chinese,vegan,greek,korean,burgers,pizza,ramen,tapas,vietnamese,turkish,seafood".split(",")
_ROOMS = "kitchen,living room,bedroom,bathroom,office,garage,hallway,kids room,guest room,basement,attic,balcony,dining room,study,nursery,garden,patio,porch".split(",")
_DEVICES = "light,lamp,fan,heater,tv,speaker,lights,coffee machine,air conditioner,humidifier,blinds,radiator,plug,ceiling fan,dishwasher,oven,vacuum,projector".split(",")
_SUBJECT_TEXTS = (
    "I will be late,the meeting is moved to Friday,dinner is ready,please call me back,I am on my way,see you tomorrow,the report is done,happy birthday,can we talk later,"
    "the build is broken,we are out of milk,I can't make it today,the package arrived,let's meet at noon,I left the keys inside,good luck with the exam,the server is down,"
    "thanks for the help,running ten minutes behind,don't forget the tickets,the door is open,lunch is at one,we won the deal,I finished the draft,the train is delayed,"
    "call the dentist,buy milk,pick up the kids,water the plants,pay the rent,take out the trash,renew my passport,feed the cat,submit the tax form,book the hotel,walk the dog,"
    "charge the car,fix the sink,wash the car,return the library books,call grandma,send the invoice,clean the kitchen,order new filters,update the slides,review the contract"
).split(",")
_PHRASES = (
    "good morning,how are you,where is the station,thank you very much,I would like a coffee,see you later,the weather is nice,how much does it cost,I am hungry,"
    "where is the bathroom,my name is Anna,good night,what time is it,I love you,happy new year,have a nice day,can you help me,I am lost,two beers please,the food was great,hello,"
    "goodbye,see you soon,I don't understand,welcome home,the cat is black"
).split(",")


@dataclass(frozen=True)
class Value:
    """An argument value and the words that stand for it in a request."""

    value: Any
    surface: str
    verbatim: bool = True
    """False where the call carries something else than the words said (a language code, a number said as a word)."""


Maker = Callable[["Values"], Value]


class Values:
    """Draws values of each kind from one part's words."""

    def __init__(self, rng: random.Random, lex: Lexicon):
        self.rng = rng
        self.lex = lex

    def draw(self, kind: str) -> Value:
        """A value of `kind`; kinds are the methods below without their underscore, and `int:LOW-HIGH`."""
        if kind.startswith("int:"):
            low, high = kind[4:].split("-")
            return self._spoken(self.rng.randint(int(low), int(high)))
        if kind.startswith("pick:"):
            return _plain(self.rng.choice(kind[5:].split(",")))
        made = getattr(self, "_" + kind)()
        return made if isinstance(made, Value) else _plain(made)

    def _until_mine(self, make: Callable[[], str]) -> str:
        for _ in range(200):
            text = make()
            if self.lex.mine(text):
                return text
        return text

    def _spoken(self, n: int) -> Value:
        if n in _SPOKEN and self.rng.random() < 0.3:
            return Value(n, _SPOKEN[n], verbatim=False)
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
        text = self._until_mine(lambda: f"{r.randint(0, 400)}.{r.choice('1234567895')}" if r.random() < 0.5 else f"{r.randint(1, 90)}.{r.randint(10, 99)}")
        return Value(float(text), str(float(text)))

    def _money(self) -> Value:
        r = self.rng
        n = r.choice((r.randint(1, 99), r.randint(5, 95) * 10, r.randint(2, 90) * 50, round(r.uniform(1, 300), 2)))
        return Value(n, str(n))

    def _percent(self) -> Value:
        return self._spoken(self.rng.choice((5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 95, 100, self.rng.randint(1, 100))))

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
        host = r.choice(_DOMAINS) if r.random() < 0.6 else f"{self.lex.nonce(r)}.{r.choice(('com', 'org', 'net', 'io'))}"
        return self._until_mine(lambda: f"{user}{r.choice(('', '', r.randint(1, 99)))}@{host}")

    def _phone(self) -> str:
        r = self.rng
        return self._until_mine(lambda: r.choice((f"555-{r.randint(1000, 9999)}", f"+{r.randint(1, 99)} {r.randint(100, 999)} {r.randint(1000, 9999)}")))

    def _code(self) -> str:
        r = self.rng

        def make() -> str:
            letters = "".join(r.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(r.choice((1, 2, 2, 3))))
            digits = "".join(r.choice("0123456789") for _ in range(r.choice((2, 3, 4, 4, 5))))
            return r.choice((f"{letters}-{digits}", f"{letters}{digits}", f"{letters}-{digits}", f"#{digits}", f"{letters.lower()}_{digits}"))

        return self._until_mine(make)

    def _file(self) -> str:
        r = self.rng
        if r.random() < 0.12 and self.lex.mine(known := r.choice(_KNOWN_FILES)):
            return known
        stem = r.choice((self._word(), self._slug(), self._word() + str(r.randint(1, 99))))
        return f"{stem}.{r.choice(_EXTENSIONS)}"

    def _folder(self) -> str:
        r = self.rng
        parts = [r.choice(_FOLDERS) if r.random() < 0.5 else self._word() for _ in range(r.choice((1, 1, 2, 2, 3)))]
        return r.choice(("", "", "/")) + "/".join(parts)

    def _path(self) -> str:
        return self._file() if self.rng.random() < 0.4 else f"{self._folder()}/{self._file()}"

    def _url(self) -> str:
        r = self.rng
        return f"https://{self.lex.nonce(r)}.{r.choice(('com', 'org', 'io', 'net'))}" + r.choice(("", f"/{self._word()}", f"/{self._word()}/{r.randint(1, 99)}"))

    def _host(self) -> str:
        r = self.rng
        return r.choice((f"{self._word()}-{r.randint(1, 20):02d}", self._slug(), f"10.0.{r.randint(0, 255)}.{r.randint(1, 254)}"))

    def _branch(self) -> str:
        r = self.rng
        return r.choice(("main", "develop", f"feature/{self._word()}", f"fix-{self._word()}", f"release-{r.randint(1, 9)}.{r.randint(0, 9)}", self._slug()))

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
            return r.choice(_WEEKDAYS)
        if n < 0.6:
            return r.choice(("today", "tomorrow", "tomorrow", "next week", "this weekend", "next " + r.choice(_WEEKDAYS)))
        return f"{r.choice(_MONTHS)} {r.randint(1, 28)}"

    def _month(self) -> str:
        return self.rng.choice(_MONTHS)

    def _time(self) -> str:
        r = self.rng
        hour, minute = r.randint(0, 23), r.choice((0, 0, 5, 10, 15, 20, 30, 30, 40, 45, 50))
        style = r.random()
        if style < 0.6:
            return f"{hour:02d}:{minute:02d}"
        if style < 0.75:
            return f"{hour % 12 + 1}:{minute:02d}"
        return f"{hour % 12 + 1}{r.choice((' am', ' pm', 'am', 'pm'))}" if style < 0.95 else r.choice(("noon", "midnight"))

    # longer text
    def _title(self) -> str:
        r = self.rng
        words = [r.choice(self.lex.common) if r.random() < 0.6 else self._word() for _ in range(r.choice((2, 2, 3, 3, 4)))]
        return " ".join(w.capitalize() for w in words) if r.random() < 0.6 else " ".join(words)

    def _quoted(self) -> Value:
        """A title that may stand in quotation marks."""
        text = self._title()
        return Value(text, self.rng.choice((text, f'"{text}"', f"'{text}'", f'"{text}"')))

    def _text(self) -> Value:
        """A message: a hand-written sentence or arbitrary words, often quoted."""
        r = self.rng
        if r.random() < 0.5:
            text = r.choice(_SUBJECT_TEXTS)
        else:
            text = " ".join(r.choice(self.lex.common) if r.random() < 0.75 else self._word() for _ in range(r.randint(2, 6)))
        return Value(text, r.choice((text, f'"{text}"', f'"{text}"')))

    def _said(self) -> Value:
        """A sentence without quotation marks, for `that {x}` and `to {x}`."""
        r = self.rng
        if r.random() < 0.7:
            return _plain(r.choice(_SUBJECT_TEXTS))
        return _plain(" ".join(r.choice(self.lex.common) for _ in range(r.randint(2, 5))))

    def _phrase(self) -> Value:
        r = self.rng
        text = r.choice(_PHRASES) if r.random() < 0.5 else " ".join(r.choice(self.lex.common) for _ in range(r.randint(1, 4)))
        return Value(text, r.choice((f'"{text}"', f"'{text}'", text)))

    def _topic(self) -> str:
        r = self.rng
        words = [self._word() if r.random() < 0.6 else r.choice(self.lex.common)]
        if r.random() < 0.6:
            words.insert(0, r.choice(self.lex.adjectives) if r.random() < 0.5 else r.choice(self.lex.common))
        return " ".join(words)

    # choices of daily life
    def _language(self) -> str:
        return self.rng.choice(_LANGUAGES)[0]

    def _langcode(self) -> Value:
        name, code = self.rng.choice(_LANGUAGES)
        return Value(code, name, verbatim=False)

    def _currency(self) -> str:
        return self.rng.choice(_CODES)

    def _currencycode(self) -> Value:
        name, code = self.rng.choice(_CURRENCIES)
        return Value(code, name, verbatim=False)

    def _unit(self) -> str:
        return self.rng.choice(_UNITS)

    def _product(self) -> str:
        return self.rng.choice(_FOODS) if self.rng.random() < 0.6 else self._topic()

    def _genre(self) -> str:
        return self.rng.choice(_GENRES)

    def _cuisine(self) -> str:
        return self.rng.choice(_CUISINES)

    def _room(self) -> str:
        return self.rng.choice(_ROOMS) if self.rng.random() < 0.8 else self._word() + " room"

    def _device(self) -> str:
        r = self.rng
        name = r.choice(_DEVICES) if r.random() < 0.8 else self._word()
        return f"{r.choice(_ROOMS)} {name}" if r.random() < 0.5 else name

    def _country(self) -> str:
        return self.rng.choice(_COUNTRIES)

    def _dish(self) -> str:
        return self.rng.choice(_DISHES) if self.rng.random() < 0.7 else self._topic()

    def _song(self) -> Value:
        return self._quoted()

    def _artist(self) -> str:
        r = self.rng.random()
        return self._person() if r < 0.4 else ("the " if r < 0.5 else "") + self._word() + "s" if r < 0.6 else self._title()

    def _service(self) -> str:
        r = self.rng
        return r.choice(_SERVICES) if r.random() < 0.5 else f"{self._word()}{r.choice(('', '-api', '-service', '-worker', '-web', '-db'))}"

    def _table(self) -> str:
        return self.rng.choice(_TABLES) if self.rng.random() < 0.5 else f"{self._word()}s"

    def _ticker(self) -> str:
        r = self.rng
        return r.choice(_TICKERS) if r.random() < 0.4 else "".join(r.choice("ABCDEFGHIKLMNOPRSTUVXZ") for _ in range(r.choice((3, 4, 4))))

    def _airport(self) -> str:
        return "".join(self.rng.choice("ABCDEFGHIKLMNOPRSTUVXYZ") for _ in range(3)) if self.rng.random() < 0.3 else self._city()

    def _sport(self) -> str:
        return self.rng.choice(_SPORTS)

    def _team(self) -> str:
        return self.rng.choice(self.lex.cities) + self.rng.choice((" United", " City", " Tigers", " Rovers", "")) if self.rng.random() < 0.6 else f"the {self._word().capitalize()}s"

    def _command(self) -> str:
        r = self.rng
        return r.choice(("npm install", "npm test", "make build", "pytest -q", "ls -la", "git status", "python main.py", f"./{self._word()}.sh", f"python {self._file()}", f"make {self._word()}", "docker ps"))

    def _sql(self) -> Value:
        r = self.rng
        text = r.choice((f"SELECT * FROM {self._table()}", f"SELECT COUNT(*) FROM {self._table()}", f"SELECT name FROM {self._table()} LIMIT {r.randint(1, 50)}"))
        return Value(text, text)

    def _channel(self) -> str:
        r = self.rng
        return r.choice(("#", "#", "")) + r.choice(("general", "random", "support", "dev", "sales", "marketing", "alerts", "design", self._word(), self._slug()))

    def _dayname(self) -> str:
        return self.rng.choice(_WEEKDAYS)

    # the agent's own tools
    def _timezone(self) -> Value:
        place, zone = self.rng.choice(_ZONES)
        return Value(zone, place, verbatim=False)

    def _filelang(self) -> Value:
        name, extension = self.rng.choice(_FILE_LANGUAGES)
        return Value(extension, name, verbatim=False)

    def _pattern(self) -> Value:
        r = self.rng
        n = r.random()
        if n < 0.35:
            text = r.choice(_MARKS)
        elif n < 0.5:
            text = f"{self._word()}_{self._word()}"
        elif n < 0.6:
            text = self._word().capitalize() + self._word().capitalize()
        elif n < 0.66:
            text = r.choice((f"def {self._word()}", f"import {self._word()}", f"class {self._word().capitalize()}", f"{self._word()}()"))
        elif n < 0.8:
            text = " ".join(r.choice(self.lex.common) for _ in range(r.choice((1, 2, 2, 3))))
            return Value(text, r.choice((f'"{text}"', f"'{text}'")))
        else:
            text = self._word() if n < 0.95 else self._word().upper()
        return Value(text, text if r.random() < 0.8 else r.choice((f'"{text}"', f"'{text}'", f"`{text}`")))

    def _expression(self) -> Value:
        return arithmetic(self.rng)

    def _mathcommand(self) -> Value:
        """A sum told as a command."""
        r = self.rng
        a, b = spoken_number(r), spoken_number(r)
        said, sign = r.choice(_MATH_COMMANDS)
        left, right = (b, a) if "from" in said else (a, b)
        return Value(f"{left.value} {sign} {right.value}", said.replace("{a}", a.surface).replace("{b}", b.surface), verbatim=False)

    def _mathnoun(self) -> Value:
        """A sum told as a noun."""
        r = self.rng
        a, b = spoken_number(r), spoken_number(r)
        said, form = r.choice(_MATH_NOUNS)
        if "%" in said:
            a = Value(a.value, str(a.value))
        return Value(form.replace("{a}", str(a.value)).replace("{b}", str(b.value)), said.replace("{a}", a.surface).replace("{b}", b.surface), verbatim=False)

    def _total(self) -> str:
        return str(self.rng.choice((self.rng.randint(1, 5000), round(self.rng.uniform(0, 500), 2))))

    def _clock(self) -> str:
        r = self.rng
        zone = r.choice(("UTC (UTC+00:00)", "CET (UTC+01:00)", "JST (UTC+09:00)", "EST (UTC-05:00)", "CEST (UTC+02:00)", "IST (UTC+05:30)", "PDT (UTC-07:00)", "AEST (UTC+10:00)"))
        return f"{self._iso()} {r.randint(0, 23):02d}:{r.randint(0, 59):02d}:{r.randint(0, 59):02d} {zone}, {r.choice(_WEEKDAYS)}"

    # lists
    def _names(self) -> Value:
        return self._several(self._first)

    def _words(self) -> Value:
        return self._several(self._word)

    def _products(self) -> Value:
        return self._several(lambda: self.rng.choice(_FOODS))

    def _emails(self) -> Value:
        return self._several(self._email)

    def _ints(self) -> Value:
        items = [self.rng.randint(1, 99) for _ in range(self.rng.randint(2, 4))]
        return Value(items, _enumerate([str(i) for i in items], self.rng))

    def _several(self, make: Callable[[], str]) -> Value:
        items = list(dict.fromkeys(make() for _ in range(self.rng.choice((2, 2, 3)))))
        return Value(items, _enumerate(items, self.rng))


def _plain(text: str) -> Value:
    return Value(text, text)


def _enumerate(items: list[str], rng: random.Random) -> str:
    if len(items) == 1:
        return items[0]
    return ", ".join(items[:-1]) + rng.choice((" and ", " and ", ", ")) + items[-1]


_SPOKEN = {n: word for word, n in _NUMBER_ITEMS}


def spoken_number(rng: random.Random) -> Value:
    """A number of a sum, now and then as a word."""
    n = rng.choice((rng.randint(1, 20), rng.randint(2, 100), rng.randint(10, 999), rng.randint(100, 9999)))
    if n in _SPOKEN and rng.random() < 0.12:
        return Value(n, _SPOKEN[n], verbatim=False)
    if rng.random() < 0.1:
        text = f"{rng.randint(0, 99)}.{rng.choice((rng.randint(1, 9), rng.randint(11, 99)))}"
        return Value(text, text)
    return Value(n, str(n))


def arithmetic(rng: random.Random) -> Value:
    """A sum as people say it (`12 plus 30`, which becomes `12 + 30`) or type it (which is copied)."""
    a, b, c = spoken_number(rng), spoken_number(rng), spoken_number(rng)
    (sign, words), (other, more) = rng.choice(_OPERATIONS), rng.choice(_OPERATIONS)
    style = rng.random()
    if style < 0.45:
        return Value(f"{a.value} {sign} {b.value}", f"{a.surface} {rng.choice(words)} {b.surface}", verbatim=False)
    if style < 0.6:
        return Value(f"{a.value} {sign} {b.value} {other} {c.value}", f"{a.surface} {rng.choice(words)} {b.surface} {rng.choice(more)} {c.surface}", verbatim=False)
    x, y, z = a.value, b.value, c.value
    return _plain(
        rng.choice(
            (f"{x} {sign} {y}", f"{x} {sign} {y}", f"{x}{sign}{y}", f"{x} {sign} {y} {other} {z}", f"({x} {sign} {y}) {other} {z}", f"{x} {sign} ({y} {other} {z})", f"{x}{sign}({y}{other}{z})", f"{x}{sign}{y}{other}{z}", f"{x} ** {rng.randint(2, 4)}", f"sqrt({x})", f"{x} % {y}")  # fmt: skip
        )
    )


_MATH_COMMANDS = (
    ("add {a} and {b}", "+"), ("add {a} to {b}", "+"), ("sum {a} and {b}", "+"), ("sum up {a} and {b}", "+"), ("multiply {a} by {b}", "*"), ("multiply {a} with {b}", "*"),
    ("multiply {a} and {b}", "*"), ("divide {a} by {b}", "/"), ("subtract {a} from {b}", "-"), ("take {a} away from {b}", "-"),
)  # fmt: skip
_MATH_NOUNS = (
    ("the sum of {a} and {b}", "{a} + {b}"), ("the product of {a} and {b}", "{a} * {b}"), ("the difference between {a} and {b}", "{a} - {b}"), ("the quotient of {a} and {b}", "{a} / {b}"),
    ("{a} squared", "{a} ** 2"), ("{a} cubed", "{a} ** 3"), ("{a} to the power of {b}", "{a} ** {b}"), ("the square root of {a}", "sqrt({a})"), ("half of {a}", "{a} / 2"),
    ("twice {a}", "2 * {a}"), ("double {a}", "2 * {a}"), ("a third of {a}", "{a} / 3"), ("a quarter of {a}", "{a} / 4"), ("{a} modulo {b}", "{a} % {b}"),
    ("{a} percent of {b}", "{a} / 100 * {b}"), ("{a}% of {b}", "{a} / 100 * {b}"), ("{a}% of {b}", "{a} / 100 * {b}"),
)  # fmt: skip
_OPERATIONS = (
    ("+", ("plus", "plus", "plus", "added to")),
    ("-", ("minus", "minus", "minus", "take away")),
    ("*", ("times", "times", "multiplied by", "x")),
    ("/", ("divided by", "divided by", "over")),
)
_MARKS = "TODO TODO TODO FIXME FIXME HACK XXX NOTE BUG DEPRECATED WARNING TBD OPTIMIZE print password assert raise lambda async await return localhost debug import test main config error deprecated api_key".split()
_FILE_LANGUAGES = (
    ("Python", "py"), ("Python", "py"), ("python", "py"), ("Python", "py"), ("JavaScript", "js"), ("TypeScript", "ts"), ("Rust", "rs"), ("Go", "go"), ("Java", "java"),
    ("C", "c"), ("C++", "cpp"), ("Markdown", "md"), ("JSON", "json"), ("YAML", "yaml"), ("HTML", "html"), ("CSS", "css"), ("Ruby", "rb"), ("text", "txt"), ("shell", "sh"),
    ("SQL", "sql"), ("CSV", "csv"), ("TOML", "toml"), (".py", "py"), (".md", "md"), (".js", "js"), (".txt", "txt"), ("py", "py"), ("md", "md"), ("js", "js"), ("json", "json"),
)  # fmt: skip
_ZONES = tuple(
    (place, zone)
    for zone, places in (
        ("Europe/Paris", "Paris,France,Lyon"), ("Europe/London", "London,England,the UK"), ("Europe/Berlin", "Berlin,Germany,Munich,Hamburg"), ("Europe/Madrid", "Madrid,Spain,Barcelona"),
        ("Europe/Rome", "Rome,Italy,Milan"), ("Europe/Vienna", "Vienna,Austria"), ("Europe/Zurich", "Zurich,Switzerland,Geneva"), ("Europe/Oslo", "Oslo,Norway"),
        ("Europe/Stockholm", "Stockholm,Sweden"), ("Europe/Helsinki", "Helsinki,Finland"), ("Europe/Copenhagen", "Copenhagen,Denmark"), ("Europe/Dublin", "Dublin,Ireland"),
        ("Europe/Lisbon", "Lisbon,Portugal"), ("Europe/Athens", "Athens,Greece"), ("Europe/Warsaw", "Warsaw,Poland"), ("Europe/Prague", "Prague"), ("Europe/Budapest", "Budapest,Hungary"),
        ("Europe/Brussels", "Brussels,Belgium"), ("Europe/Amsterdam", "Amsterdam,the Netherlands"), ("Europe/Moscow", "Moscow"), ("Europe/Kyiv", "Kyiv"), ("Europe/Istanbul", "Istanbul"),
        ("Asia/Tokyo", "Tokyo,Japan,Osaka,Tokyo"), ("Asia/Seoul", "Seoul,Korea"), ("Asia/Shanghai", "Shanghai,Beijing,China"), ("Asia/Hong_Kong", "Hong Kong"), ("Asia/Singapore", "Singapore"),
        ("Asia/Bangkok", "Bangkok,Thailand"), ("Asia/Jakarta", "Jakarta"), ("Asia/Manila", "Manila"), ("Asia/Kolkata", "India,Mumbai,Delhi,Kolkata"), ("Asia/Dubai", "Dubai"),
        ("Asia/Karachi", "Karachi"), ("Asia/Tehran", "Tehran"), ("Asia/Taipei", "Taipei"), ("Africa/Cairo", "Cairo,Egypt"), ("Africa/Nairobi", "Nairobi,Kenya"), ("Africa/Lagos", "Lagos,Nigeria"),
        ("Africa/Johannesburg", "Johannesburg"), ("Australia/Sydney", "Sydney"), ("Australia/Melbourne", "Melbourne"), ("Australia/Perth", "Perth"), ("Pacific/Auckland", "Auckland,New Zealand"),
        ("America/New_York", "New York,Boston,Miami,New York"), ("America/Chicago", "Chicago,Texas"), ("America/Denver", "Denver"), ("America/Los_Angeles", "Los Angeles,San Francisco,Seattle,California"),
        ("America/Toronto", "Toronto"), ("America/Vancouver", "Vancouver"), ("America/Mexico_City", "Mexico City,Mexico"), ("America/Sao_Paulo", "Sao Paulo"),
        ("America/Buenos_Aires", "Buenos Aires"), ("America/Lima", "Lima"), ("America/Bogota", "Bogota"), ("UTC", "UTC,UTC,UTC"), ("Europe/Paris", "Europe/Paris"), ("Asia/Tokyo", "Asia/Tokyo"),
    )
    for place in places.split(",")
)  # fmt: skip
