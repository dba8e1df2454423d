"""What chat completions and completions have in common: sampling, the number of choices, streaming."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from openk2.config.modes import MODES
from openk2.config.sampling import SamplingParams
from openk2.errors import RequestError
from openk2.server.fields import MAX_STOP_STRINGS, Fields, checked_number, wrong_type, wrong_value

MAX_CHOICES = 8
MAX_LOGIT_BIAS = 100

_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")


def read_sampling(fields: Fields, limits: Sequence[str] = ("max_completion_tokens", "max_tokens")) -> SamplingParams:
    """`limits`: names of the most tokens to generate, the first one given counts.

    Raises RequestError naming the field, also for settings that cannot be honoured and would change the answer."""
    fields.reject(
        "include_stop_str_in_output", "cannot be honoured: a stop string is never part of an answer", harmless=(False,)
    )
    given = [name for name in limits if fields.get(name) is not None]
    max_tokens = fields.integer(given[0], 1) if given else None
    min_tokens = fields.integer("min_tokens", 0) or 0
    if max_tokens is not None and min_tokens > max_tokens:
        raise wrong_value(fields.at("min_tokens"), f"it must be at most {given[0]!r}, {max_tokens}, not {min_tokens}")
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_number_between(fields, "temperature", 0, 2),
        top_p=_number_between(fields, "top_p", 0, 1, above_minimum=True),
        top_k=_read_top_k(fields),
        min_p=_number_between(fields, "min_p", 0, 1),
        frequency_penalty=_number_between(fields, "frequency_penalty", -2, 2),
        presence_penalty=_number_between(fields, "presence_penalty", -2, 2),
        repetition_penalty=_number_between(fields, "repetition_penalty", 0, 2, above_minimum=True),
        logit_bias=_read_logit_bias(fields),
        seed=fields.integer("seed", -(2**63), 2**63 - 1),
        stop=_read_stop(fields),
        stop_token_ids=fields.integers("stop_token_ids", 0),
        min_tokens=min_tokens,
        ignore_eos=fields.boolean("ignore_eos") or False,
        mode=fields.choice("mode", MODES),
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


def _read_logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    """An object of token ids, as strings, and what is added to their logits."""
    fields.mapping("logit_bias")
    biases: dict[str, Any] = fields.get("logit_bias") or {}
    read = []
    for key, value in biases.items():
        path = f"{fields.at('logit_bias')}.{key}"
        if not _TOKEN_ID.fullmatch(key):
            raise wrong_value(path, f"keys are token ids, not {key!r}")
        bias = checked_number(value, path)
        if abs(bias) > MAX_LOGIT_BIAS:
            raise wrong_value(path, f"it must be between -{MAX_LOGIT_BIAS} and {MAX_LOGIT_BIAS}, not {bias:g}")
        read.append((int(key), bias))
    return tuple(read)


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
