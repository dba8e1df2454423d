"""Naming the mode of an answer, and what it took, in every API's usage."""

from __future__ import annotations

from typing import Any

from openk2.chat.messages import Usage


def expert_fields(usage: Usage) -> dict[str, Any]:
    """Fields of a usage object: none for an answer on the trained number of experts."""
    use = usage.experts
    if use is None:
        return {}
    per_token = None if use.per_token is None else round(use.per_token, 3)
    return {"experts": {"mode": use.mode, "per_token": per_token}}
