"""A claim of the public guide, what it is held against, and the verdict that follows.

The claims stand in `planner/data/claims/*.toml`, one file per topic. Each is held against exactly one of four things:

- `quantity`: what a function of `quantity` or `deployment` computes; the verdict follows from the two numbers;
- `found`: a number that a named source states (a config, a report); likewise;
- `cited`: a measurement of others, which arithmetic cannot repeat: "cited elsewhere" where the source has the guide's
  figure, "wrong" where it has another;
- `verdict`: judged by a person, with the reason in `note`: words, flags, and what nothing public can settle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from openk2.errors import ConfigError
from openk2.planner.claims.quantity import Quantity

FOLDER = Path(__file__).parents[1] / "data" / "claims"
TOPICS = (
    "versions",
    "architecture",
    "speed-ups",
    "memory",
    "bandwidth",
    "cache",
    "training",
    "benchmarks",
    "hardware",
    "cost",
    "flags",
    "licence",
    "community",
)
"""The files, in the order of the page."""


class Verdict(StrEnum):
    """From the best to what cannot be told."""

    RIGHT = "right"
    APPROXIMATE = "approximate"
    WRONG = "wrong"
    CITED = "cited elsewhere"
    NOT_CHECKABLE = "not checkable"


@dataclass(frozen=True, kw_only=True)
class Call:
    """Which function computes a value, and of what."""

    quantity: str
    given: Mapping[str, Any] = field(default_factory=dict)
    """Its arguments."""
    about: str = ""
    """What the value is, where it stands beside a claim's own."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim, in our words, with the guide's figure."""

    id: str
    topic: str
    lines: tuple[int, ...]
    """Of the guide's text."""
    about: str
    guide: str
    """The guide's figure as it writes it."""
    figure: tuple[float, float] | None = None
    """The same as numbers, lowest and highest, in the unit of what it is held against; None for words."""
    unit: str = ""
    """Of `figure`, where no function gives it."""
    quantity: Call | None = None
    found: float | str | None = None
    cited: float | None = None
    verdict: Verdict | None = None
    within_bound: Verdict | None = None
    """Where the value is the most that can be: the verdict on a figure within it. One beyond it is wrong."""
    at_best: Verdict = Verdict.RIGHT
    """A number that is right may say the wrong thing; the note tells why."""
    right_within: float = 0.03
    """Relative distance up to which a figure is right; figures are rounded."""
    approximate_within: float = 0.15
    also: tuple[Call, ...] = ()
    """More that belongs to the picture."""
    source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        ways = sum(one is not None for one in (self.quantity, self.found, self.cited))
        is_numeric = self.quantity is not None or isinstance(self.found, float) or self.cited is not None
        is_judged = self.verdict is not None
        read = self.found is not None or self.cited is not None
        for is_broken, complaint in (
            (ways > 1, "is held against more than one thing"),
            (is_numeric and is_judged, "has a verdict of its own beside a number"),
            (not is_numeric and not is_judged, "is held against nothing"),
            (is_numeric and self.figure is None, "has no figure"),
            ((is_judged or self.at_best is not Verdict.RIGHT) and not self.note, "does not say why"),
            (read and not self.source, "names no source"),
            (not self.lines, "names no line of the guide"),
        ):
            if is_broken:
                raise ConfigError(f"claim {self.id} {complaint}", param=self.id)


@dataclass(frozen=True, kw_only=True)
class CheckedClaim:
    """A claim with what it was held against."""

    claim: Claim
    value: float | str | None
    unit: str
    formula: str
    """How the value was computed, with its numbers; empty where it was read."""
    error: float | None
    """(figure - value) / value, of the figure's nearer end; None for words, and where the value is 0."""
    verdict: Verdict
    also: tuple[tuple[str, Quantity], ...]


def relative_error(figure: tuple[float, float], value: float) -> float:
    """Of the nearer end of [low, high]; 0 for a value inside it."""
    low, high = figure
    if low <= value <= high:
        return 0.0
    nearer = low if value < low else high
    return (nearer - value) / abs(value) if value else float("inf")


def judge(claim: Claim, value: float) -> Verdict:
    """The verdict that follows from the guide's figure and `value`."""
    assert claim.figure is not None
    error = relative_error(claim.figure, value)
    if claim.cited is not None:
        return Verdict.CITED if abs(error) <= claim.right_within else Verdict.WRONG
    if claim.within_bound is not None:
        return Verdict.WRONG if error > claim.right_within else claim.within_bound
    if abs(error) <= claim.right_within:
        return claim.at_best
    if abs(error) <= claim.approximate_within:
        return max(Verdict.APPROXIMATE, claim.at_best, key=list(Verdict).index)
    return Verdict.WRONG


def check_claim(claim: Claim, quantities: Mapping[str, Callable[..., Quantity]]) -> CheckedClaim:
    """Compute what the claim is held against, and judge. Raises ConfigError for a quantity that does not exist."""

    def compute(call: Call) -> Quantity:
        if call.quantity not in quantities:
            raise ConfigError(f"claim {claim.id}: no quantity {call.quantity!r}", param=claim.id)
        return quantities[call.quantity](**call.given)

    value: float | str | None = claim.cited if claim.cited is not None else claim.found
    unit, formula = claim.unit, ""
    if claim.quantity is not None:
        computed = compute(claim.quantity)
        value, unit, formula = computed.value, computed.unit, computed.formula
    has_numbers = isinstance(value, float) and value != 0 and claim.figure is not None
    return CheckedClaim(
        claim=claim,
        value=value,
        unit=unit,
        formula=formula,
        error=relative_error(claim.figure, value) if has_numbers else None,  # type: ignore[arg-type]
        verdict=claim.verdict or judge(claim, value),  # type: ignore[arg-type]
        also=tuple((call.about, compute(call)) for call in claim.also),
    )


def read_claims(folder: Path = FOLDER) -> tuple[Claim, ...]:
    """All claims, in the order of `TOPICS` and of their files.

    Raises ConfigError for an unknown key, a claim that is held against nothing, or an id used twice.
    """
    import tomllib

    claims: list[Claim] = []
    for topic in TOPICS:
        entries = tomllib.loads((folder / f"{topic}.toml").read_text(encoding="utf-8"))["claim"]
        claims += [_read_claim(topic, raw) for raw in entries]
    ids = [claim.id for claim in claims]
    twice = {name for name in ids if ids.count(name) > 1}
    if twice:
        raise ConfigError(f"claims share an id: {', '.join(sorted(twice))}", param="claims")
    return tuple(claims)


def _read_claim(topic: str, raw: Mapping[str, Any]) -> Claim:
    values = dict(raw)
    unknown = set(values) - {one.name for one in fields(Claim)} - {"given"}
    if unknown:
        raise ConfigError(f"claim {values.get('id')}: unknown keys {', '.join(sorted(unknown))}", param="claims")
    figure = values.get("figure")
    if figure is not None:
        low, high = figure if isinstance(figure, list) else (figure, figure)
        values["figure"] = (float(low), float(high))
    if "quantity" in values:
        values["quantity"] = Call(quantity=values["quantity"], given=values.pop("given", {}))
    for key in ("found", "cited"):
        if isinstance(values.get(key), int):
            values[key] = float(values[key])
    for key in ("verdict", "at_best", "within_bound"):
        if key in values:
            values[key] = Verdict(values[key])
    values["lines"] = tuple(values["lines"])
    values["also"] = tuple(Call(**call) for call in values.get("also", ()))
    return Claim(topic=topic, **values)
