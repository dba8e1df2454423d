"""Sampling settings: what a server's own defaults may say."""

from __future__ import annotations

import pytest

from openk2.config import SamplingParams
from openk2.errors import ConfigError


def test_defaults_are_read_from_json() -> None:
    read = SamplingParams.from_generation_config('{"temperature": 0, "top_p": 0.9, "top_k": 5}')
    assert read == SamplingParams(temperature=0, top_p=0.9, top_k=5)
    assert SamplingParams.from_generation_config("{}") == SamplingParams()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("temperature=1", "JSON object"),
        ("[]", "JSON object"),
        ('{"max_tokens": 5}', "max_tokens"),
        ('{"temperature": 3}', "between 0 and 2"),
        ('{"temperature": "0.5"}', "a number"),
        ('{"top_p": true}', "a number"),
        ('{"top_k": 1.5}', "a number"),
    ],
)
def test_wrong_defaults_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        SamplingParams.from_generation_config(text)
