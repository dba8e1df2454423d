"""What is asked of a deployment: context, batch, requests a day."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from openk2.errors import ConfigError
from openk2.planner.nearest import nearest

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, kw_only=True)
class Load:
    """One kind of request, and how many of them."""

    context_tokens: int
    """The longest request, prompt and answer together: memory is planned for it."""
    batch: int = 1
    """Requests that are answered at the same time, over the whole deployment."""
    prompt_tokens: int = 1000
    """Of a mean request."""
    output_tokens: int = 1000
    """Of a mean request."""
    cached_fraction: float = 0.0
    """Of a prompt's tokens: found in the prefix cache."""
    requests_per_day: float = 0.0
    utilization: float = 0.6
    """Share of its peak rate at which a deployment runs over a day; a day has hours without requests."""
    requests_per_task: float = 1.0
    """Requests that an agent's task takes, for the cost of a task."""

    def __post_init__(self) -> None:
        def check(name: str, ok: bool, rule: str) -> None:
            if not ok:
                raise ConfigError(f"{name} must be {rule}, not {getattr(self, name)}", param=name)

        check("context_tokens", self.context_tokens >= 1, "at least 1")
        check("batch", self.batch >= 1, "at least 1")
        check("prompt_tokens", self.prompt_tokens >= 1, "at least 1")
        check("output_tokens", self.output_tokens >= 1, "at least 1")
        check("cached_fraction", 0 <= self.cached_fraction < 1, "at least 0 and below 1")
        check("requests_per_day", self.requests_per_day >= 0, "at least 0")
        check("utilization", 0 < self.utilization <= 1, "above 0 and at most 1")
        check("requests_per_task", self.requests_per_task > 0, "above 0")

    @property
    def mean_context_tokens(self) -> float:
        """Tokens in the cache of a request in the middle of its answer, at most the longest one's."""
        return min(self.prompt_tokens + self.output_tokens / 2, float(self.context_tokens))

    @property
    def uncached_prompt_tokens(self) -> int:
        return max(1, round(self.prompt_tokens * (1 - self.cached_fraction)))


BINARY = {"": 1, "k": 1024, "m": 1024**2}
DECIMAL = {"": 1, "k": 1000, "m": 1000**2, "b": 1000**3}
LARGEST_COUNT = 1e15
"""A whole number is exact in a float up to here, and nothing that is planned has more."""


def read_tokens(text: str, *, param: str = "context") -> int:
    """A window such as 131072 or 128k; here k is 1,024, as in the models' cards."""
    return round(_number(text, BINARY, param, "a number of tokens such as 131072 or 128k"))


def read_count(text: str, *, param: str) -> float:
    """A count such as 100000, 100k or 1.5m; here k is 1,000."""
    return _number(text, DECIMAL, param, "a count such as 100000 or 100k")


def _number(text: str, factors: dict[str, int], param: str, rule: str) -> float:
    match = re.fullmatch(r"\s*(-?\d+(?:[_,]\d{3})*(?:\.\d+)?)\s*([a-z]?)\s*", text.lower())
    if match is None or match[2] not in factors:
        raise ConfigError(f"{param} must be {rule}, not {text!r}", param=param)
    value = float(match[1].replace("_", "").replace(",", "")) * factors[match[2]]
    if value < 0:
        raise ConfigError(f"{param} must not be negative, but is {text}; the nearest valid choice is 0", param=param)
    if value > LARGEST_COUNT:
        raise ConfigError(f"{param} must be at most {LARGEST_COUNT:g}, but is {text[:40]}", param=param)
    return value


LOAD_KEYS = {
    "requests": "requests_per_day",
    "in": "prompt_tokens",
    "out": "output_tokens",
    "cached": "cached_fraction",
    "batch": "batch",
    "utilization": "utilization",
    "requests_per_task": "requests_per_task",
}
"""How `--load` spells the fields."""


def read_load(text: str, *, context_tokens: int) -> Load:
    """`requests=100k,in=1000,out=2000,cached=50%,batch=32`: requests a day and the tokens of each.

    Raises ConfigError for an unknown key (with the nearest), a malformed value or a negative one.
    """
    values: dict[str, int | float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        key = key.strip().lower()
        if not equals or key not in LOAD_KEYS:
            near = nearest(key, LOAD_KEYS)
            hint = f"; the nearest is {near}=" if near else ""
            raise ConfigError(
                f"load has no {part!r}{hint}. It has {', '.join(f'{k}=' for k in LOAD_KEYS)}", param="load"
            )
        if value.endswith("%"):
            number = read_count(value[:-1], param=key) / 100
        else:
            number = read_count(value, param=key)
        integral = LOAD_KEYS[key] in ("prompt_tokens", "output_tokens", "batch")
        if integral and number != int(number):
            raise ConfigError(
                f"{key} must be a whole number, not {value}; the nearest is {round(number)}", param="load"
            )
        values[LOAD_KEYS[key]] = int(number) if integral else number
    assert set(values) <= {field.name for field in fields(Load)}
    load = Load(context_tokens=context_tokens, **values)  # type: ignore[arg-type]
    if load.prompt_tokens + load.output_tokens > context_tokens:
        raise ConfigError(
            f"a request of {load.prompt_tokens} + {load.output_tokens} tokens does not fit a context of "
            f"{context_tokens}; raise --context or lower in= and out=",
            param="load",
        )
    return load
