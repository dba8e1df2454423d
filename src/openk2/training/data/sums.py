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


def sum_command(r: Dice, *, further: bool = False) -> Value:
    """A sum told as a command. `further`: also as the held-out requests never say it, each sign as often as the others."""
    a, b = spoken_number(r), spoken_number(r)
    if further:
        sign = r.choice("+-*/")
        said = r.choice([said for said, other in _MATH_COMMANDS + _FURTHER_COMMANDS if other == sign])
    else:
        said, sign = r.choice(_MATH_COMMANDS)
    left, right = (b, a) if "from" in said else (a, b)
    return Value(
        f"{left.value} {sign} {right.value}", said.replace("{a}", a.surface).replace("{b}", b.surface), verbatim=False
    )


def sum_noun(r: Dice, *, further: bool = False) -> Value:
    """A sum told as a noun. `further`: see `sum_command`."""
    a, b = spoken_number(r), spoken_number(r)
    said, form = r.choice(_MATH_NOUNS + _FURTHER_NOUNS if further else _MATH_NOUNS)
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
_FURTHER_COMMANDS = (
    ("put {a} and {b} together", "+"), ("add up {a} and {b}", "+"), ("increase {a} by {b}", "+"), ("count {a} and {b} together", "+"), ("raise {a} by {b}", "+"), ("add {b} on top of {a}", "+"),
    ("reduce {a} by {b}", "-"), ("lower {a} by {b}", "-"), ("deduct {a} from {b}", "-"), ("subtract {a} from {b}", "-"), ("decrease {a} by {b}", "-"), ("remove {a} from {b}", "-"),
    ("take {a} times {b}", "*"), ("multiply out {a} and {b}", "*"), ("scale {a} by {b}", "*"), ("take {b} lots of {a}", "*"), ("multiply {b} onto {a}", "*"),
    ("split {a} into {b} parts", "/"), ("split {a} by {b}", "/"), ("share {a} among {b}", "/"), ("divide {a} into {b} parts", "/"), ("divide {a} among {b} people", "/"),
)  # fmt: skip
_FURTHER_NOUNS = (
    ("{a} and {b} together", "{a} + {b}"), ("the total of {a} and {b}", "{a} + {b}"), ("{a} more than {b}", "{b} + {a}"), ("{a} less than {b}", "{b} - {a}"), ("{a} less {b}", "{a} - {b}"),
    ("{a} by {b}", "{a} * {b}"), ("three times {a}", "3 * {a}"), ("the square of {a}", "{a} ** 2"), ("the cube of {a}", "{a} ** 3"), ("the ratio of {a} to {b}", "{a} / {b}"), ("{a} per {b}", "{a} / {b}"),
    ("a fifth of {a}", "{a} / 5"), ("a tenth of {a}", "{a} / 10"), ("the remainder of {a} by {b}", "{a} % {b}"), ("the root of {a}", "sqrt({a})"), ("the average of {a} and {b}", "({a} + {b}) / 2"),
    ("the mean of {a} and {b}", "({a} + {b}) / 2"), ("{a} raised to {b}", "{a} ** {b}"),
)  # fmt: skip
_OPERATIONS = (
    ("+", ("plus", "plus", "plus", "added to")),
    ("-", ("minus", "minus", "minus", "take away")),
    ("*", ("times", "times", "multiplied by", "x")),
    ("/", ("divided by", "divided by", "over")),
)
