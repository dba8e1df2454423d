"""Sums for the agent's `calculate`: as people say them, and as expressions."""

from __future__ import annotations

from openk2.training.data.dice import Dice
from openk2.training.data.value import SPOKEN, Value, plain


def spoken_number(rng: Dice) -> Value:
    """A number of a sum, now and then as a word."""
    n = rng.choice((rng.randint(1, 20), rng.randint(2, 100), rng.randint(10, 999), rng.randint(100, 9999)))
    if n in SPOKEN and rng.random() < 0.12:
        return Value(n, SPOKEN[n], verbatim=False)
    if rng.random() < 0.1:
        text = f"{rng.randint(0, 99)}.{rng.choice((rng.randint(1, 9), rng.randint(11, 99)))}"
        return Value(text, text)
    return Value(n, str(n))


def arithmetic(rng: Dice) -> Value:
    """A sum as people say it (`12 plus 30`, which becomes `12 + 30`) or type it (which is copied)."""
    a, b, c = spoken_number(rng), spoken_number(rng), spoken_number(rng)
    (sign, words), (other, more) = rng.choice(_OPERATIONS), rng.choice(_OPERATIONS)
    style = rng.random()
    if style < 0.45:
        return Value(f"{a.value} {sign} {b.value}", f"{a.surface} {rng.choice(words)} {b.surface}", verbatim=False)
    if style < 0.6:
        return Value(
            f"{a.value} {sign} {b.value} {other} {c.value}",
            f"{a.surface} {rng.choice(words)} {b.surface} {rng.choice(more)} {c.surface}",
            verbatim=False,
        )
    x, y, z = a.value, b.value, c.value
    return plain(
        rng.choice(
            (
                f"{x} {sign} {y}",
                f"{x} {sign} {y}",
                f"{x}{sign}{y}",
                f"{x} {sign} {y} {other} {z}",
                f"({x} {sign} {y}) {other} {z}",
                f"{x} {sign} ({y} {other} {z})",
                f"{x}{sign}({y}{other}{z})",
                f"{x}{sign}{y}{other}{z}",
                f"{x} ** {rng.randint(2, 4)}",
                f"sqrt({x})",
                f"{x} % {y}",
            )
        )
    )


def sum_command(r: Dice) -> Value:
    """A sum told as a command."""
    a, b = spoken_number(r), spoken_number(r)
    said, sign = r.choice(_MATH_COMMANDS)
    left, right = (b, a) if "from" in said else (a, b)
    return Value(
        f"{left.value} {sign} {right.value}", said.replace("{a}", a.surface).replace("{b}", b.surface), verbatim=False
    )


def sum_noun(r: Dice) -> Value:
    """A sum told as a noun."""
    a, b = spoken_number(r), spoken_number(r)
    said, form = r.choice(_MATH_NOUNS)
    if "%" in said:
        a = Value(a.value, str(a.value))
    return Value(
        form.replace("{a}", str(a.value)).replace("{b}", str(b.value)),
        said.replace("{a}", a.surface).replace("{b}", b.surface),
        verbatim=False,
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
