"""How the next token is chosen, for one request."""

from __future__ import annotations

import json
from dataclasses import dataclass

from openk2.config.modes import MODES, Mode
from openk2.errors import ConfigError, RequestError

_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What a `generation_config.json` may say."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling settings of one request. `None` means: the checkpoint's `generation_config.json`, then the default."""

    max_tokens: int | None = None
    """Most tokens to generate; None fills the window."""
    temperature: float | None = None
    """0 is greedy. Default 0.6, the model card's recommendation."""
    top_p: float | None = None
    top_k: int | None = None
    """Keep the k most likely tokens; None or 0 keeps all."""
    min_p: float | None = None
    """Drop tokens less likely than min_p times the most likely one."""
    frequency_penalty: float | None = None
    """Taken from the logit of each token of the answer, as often as it stands there; None or 0 takes nothing."""
    presence_penalty: float | None = None
    """The same, once for each token that stands in the answer."""
    repetition_penalty: float | None = None
    """Divides positive logits, and multiplies negative ones, of the tokens of prompt and answer; None or 1 does not."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit)"""
    seed: int | None = None
    """With a seed, results do not depend on scheduling; without one, a fresh seed is drawn for each request."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; never part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer as the model's own ends of a turn do, and with `ignore_eos` in place of them."""
    min_tokens: int = 0
    """Fewest tokens: before them no stop string and no token ends the answer, unless a grammar leaves only its end."""
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    """Of a raw continuation: leave control tokens out of its text. In a chat they never are part of it."""
    logprobs: int | None = None
    """Tell the log probability of each token, and of so many of the most likely ones; None tells nothing."""
    prompt_logprobs: int | None = None
    """The same of the prompt's tokens. A raw continuation then begins with its prompt."""
    mode: Mode | None = None
    """How many routed experts a generated token takes: reflex 3 to 5, deliberative the trained number, auto as many as
    have most of the router's weight. None is deliberative."""
    topk: int | None = None
    """So many routed experts for each generated token, in place of a mode."""

    def __post_init__(self) -> None:
        def check(name: str, ok: bool, rule: str) -> None:
            if not ok:
                raise RequestError(f"{name} must be {rule}, not {getattr(self, name)!r}", param=name)

        check("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1")
        check("temperature", self.temperature is None or 0 <= self.temperature <= 2, "between 0 and 2")
        check("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1")
        check("top_k", self.top_k is None or self.top_k >= 0, "at least 0")
        check("min_p", self.min_p is None or 0 <= self.min_p <= 1, "between 0 and 1")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            check(name, value is None or -2 <= value <= 2, "between -2 and 2")
        repetition = self.repetition_penalty
        check("repetition_penalty", repetition is None or 0 < repetition <= 2, "above 0 and at most 2")
        check("min_tokens", self.min_tokens >= 0, "at least 0")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            check(name, value is None or 0 <= value <= 20, "between 0 and 20")
        check("stop", len(self.stop) <= 4 and all(self.stop), "at most 4 non-empty strings")
        check("mode", self.mode is None or self.mode in MODES, f"one of {', '.join(MODES)}")
        check("topk", self.topk is None or self.topk >= 1, "at least 1")
        check("topk", self.topk is None or self.mode is None, "left out where there is a mode")

    @classmethod
    def from_generation_config(cls, text: str) -> SamplingParams:
        """Settings in the spelling of `generation_config.json`. Raises ConfigError for others, and for wrong values."""
        try:
            values = json.loads(text)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise ConfigError(f'sampling settings are a JSON object such as {{"temperature": 0.3}}, not {text!r}')
        for name, value in values.items():
            if name not in _DEFAULTS:
                raise ConfigError(
                    f"sampling settings have no {name!r}; they may have {', '.join(_DEFAULTS)}", param=name
                )
            numbers: tuple[type, ...] = (int,) if name == "top_k" else (int, float)
            if isinstance(value, bool) or not isinstance(value, numbers):
                raise ConfigError(f"{name} must be a number, not {value!r}", param=name)
        try:
            return cls(**values)
        except RequestError as error:
            raise ConfigError(str(error), param=error.param) from None
