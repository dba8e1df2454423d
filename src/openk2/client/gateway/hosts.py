"""Hosted services by name, as they stood in November 2026."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    base_url: str
    key_variable: str
    """The environment variable in which the service's own tools look for its key."""
    model: str
    """What it calls Kimi K2-0905, which it is asked for where the command line names no model."""
    continues_text: bool = True
    """Whether it has raw completions."""


HOSTS: Mapping[str, Host] = {
    "moonshot": Host("https://api.moonshot.ai/v1", "MOONSHOT_API_KEY", "kimi-k2-0905-preview", continues_text=False),
    "moonshot-cn": Host("https://api.moonshot.cn/v1", "MOONSHOT_API_KEY", "kimi-k2-0905-preview", continues_text=False),
    "openrouter": Host("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", "moonshotai/kimi-k2-0905"),
    "together": Host("https://api.together.xyz/v1", "TOGETHER_API_KEY", "moonshotai/Kimi-K2-Instruct-0905"),
    "fireworks": Host(
        "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", "accounts/fireworks/models/kimi-k2-instruct-0905"
    ),
    "groq": Host(
        "https://api.groq.com/openai/v1", "GROQ_API_KEY", "moonshotai/kimi-k2-instruct-0905", continues_text=False
    ),
    "deepinfra": Host("https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY", "moonshotai/Kimi-K2-Instruct-0905"),
}
