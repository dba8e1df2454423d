"""The served model: what is asked of its provider, and when."""

from __future__ import annotations

import pytest

from openk2.chat.scripted import ScriptedProvider
from openk2.errors import OverloadedError, ProviderError
from openk2.server.model_slot import ModelSlot


class Elsewhere(ScriptedProvider):
    """Counts how often it is asked what it would have to ask another machine for."""

    def __init__(self, failure: ProviderError | None = None) -> None:
        super().__init__([])
        self.failure = failure
        self.asked = 0

    @property
    def model(self) -> str:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return "far-away"

    @property
    def max_model_len(self) -> int:
        self.asked += 1
        return 77


def test_name_and_window_are_asked_for_once() -> None:
    provider = Elsewhere()
    slot = ModelSlot(provider)
    for _ in range(3):
        assert slot.resolve("far-away") == slot.names[0] == "far-away"
        assert slot.describe("kimi-k2")["root"] == "far-away" and slot.max_model_len == 77
        assert slot.system_fingerprint.startswith("fp_")
    assert provider.asked == 2


def test_a_provider_without_a_name_does_not_fill_the_slot() -> None:
    slot = ModelSlot()
    with pytest.raises(ProviderError, match="cannot reach"):
        slot.fill(Elsewhere(ProviderError("cannot reach it")))
    assert not slot.is_loaded
    for ask in (lambda: slot.names, lambda: slot.max_model_len, lambda: slot.provider):
        with pytest.raises(OverloadedError):
            ask()
