"""What chat completions and completions have in common: sampling, the number of choices, streaming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from openk2.config.sampling import SamplingParams
from openk2.errors import RequestError
from openk2.server.fields import MAX_STOP_STRINGS, Fields, wrong_type, wrong_value

MAX_CHOICES = 8


def read_sampling(fields: Fields, limits: Sequence[str] = ("max_completion_tokens", "max_tokens")) -> SamplingParams:
    """`limits`: names of the most tokens to generate, the first one given counts.

    Raises RequestError naming the field, also for settings that cannot be honoured and would change the answer."""
    fields.reject("min_tokens", "is not supported by this server; leave it out or send 0", harmless=(0,))
    fields.reject("logit_bias", "is not supported by this server; leave it out", harmless=({},))
    given = [name for name in limits if fields.get(name) is not None]
    return SamplingParams(
        max_tokens=fields.integer(given[0], 1) if given else None,
        temperature=_number_between(fields, "temperature", 0, 2),
        top_p=_number_between(fields, "top_p", 0, 1, above_minimum=True),
        top_k=_read_top_k(fields),
        min_p=_number_between(fields, "min_p", 0, 1),
        frequency_penalty=_number_between(fields, "frequency_penalty", -2, 2),
        presence_penalty=_number_between(fields, "presence_penalty", -2, 2),
        repetition_penalty=_number_between(fields, "repetition_penalty", 0, 2, above_minimum=True),
        seed=fields.integer("seed", -(2**63), 2**63 - 1),
        stop=_read_stop(fields),
        ignore_eos=fields.boolean("ignore_eos") or False,
    )


def _number_between(
    fields: Fields, key: str, minimum: float, maximum: float, *, above_minimum: bool = False
) -> float | None:
    value = fields.number(key)
    if value is not None and not (minimum <= value <= maximum and (value > minimum or not above_minimum)):
        rule = f"above {minimum} and at most {maximum}" if above_minimum else f"between {minimum} and {maximum}"
        raise wrong_value(fields.at(key), f"it must be {rule}, not {value:g}")
    return value


def _read_top_k(fields: Fields) -> int | None:
    """-1, as other engines write it, and 0 keep every token."""
    value = fields.integer("top_k", -1)
    return 0 if value == -1 else value


def _read_stop(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    if isinstance(value, str):
        if not value:
            raise wrong_value("stop[0]", "it must not be empty")
        return (value,)
    if value is not None and not isinstance(value, list):
        raise wrong_type("stop", "a string or an array of strings", value)
    return fields.strings("stop", MAX_STOP_STRINGS)


def read_num_choices(fields: Fields) -> int:
    return fields.integer("n", 1, MAX_CHOICES) or 1


def choice_sampling(sampling: SamplingParams, n: int) -> list[SamplingParams]:
    """Of each of n independent choices: with a seed, choice i samples with seed + i."""
    seed = sampling.seed
    return [sampling if seed is None else replace(sampling, seed=seed + i) for i in range(n)]


def read_stream_options(fields: Fields, stream: bool) -> bool:
    options = fields.mapping("stream_options")
    if options is None:
        return False
    if not stream:
        raise RequestError("'stream_options' is only allowed with 'stream': true.", param="stream_options")
    return options.boolean("include_usage") or False
