"""The served model: absent while it loads, there afterwards. The port answers before the weights are read."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

from openk2 import __version__
from openk2.chat.provider import ChatProvider, ChatRequest, ProviderFigure, ProviderLoad
from openk2.errors import ModelNotFoundError, OverloadedError
from openk2.server.settings import KIMI_MODEL_NAMES


@dataclass(frozen=True)
class _Filling:
    provider: ChatProvider
    model: str
    max_model_len: int | None


class ModelSlot:
    """Holds the provider and the names under which it is asked for.

    `fill` is called from the thread that loads the model, or before the server runs: a provider may ask elsewhere for
    its name and window. Everything else runs on the event loop, and does not wait.
    """

    def __init__(self, provider: ChatProvider | None = None, *, served_model_names: tuple[str, ...] = ()) -> None:
        self._filling: _Filling | None = None
        self._served_model_names = served_model_names
        self.created = int(time.time())
        """Unix seconds at which the model was loaded (until then: at which the server started)."""
        if provider is not None:
            self.fill(provider)

    def fill(self, provider: ChatProvider) -> None:
        """From now on the provider answers. Raises ProviderError or RequestError when its name cannot be learned."""
        window = getattr(provider, "max_model_len", None)
        filling = _Filling(provider, provider.model, window if isinstance(window, int) else None)
        self.created = int(time.time())
        self._filling = filling

    @property
    def is_loaded(self) -> bool:
        return self._filling is not None

    @property
    def is_healthy(self) -> bool:
        """Loaded, and its engine has not died since (a provider may say so by `is_alive`)."""
        return self._filling is not None and bool(getattr(self._filling.provider, "is_alive", True))

    @property
    def provider(self) -> ChatProvider:
        """Raises OverloadedError (503) while the model loads."""
        return self._filled.provider

    @property
    def _filled(self) -> _Filling:
        if self._filling is None:
            raise OverloadedError("the model is still loading; try again in a moment")
        return self._filling

    @property
    def names(self) -> tuple[str, ...]:
        """Every name the model answers to, its own first."""
        if self._served_model_names:
            return self._served_model_names
        own = self._filled.model
        return (own, *(name for name in KIMI_MODEL_NAMES if name != own))

    @property
    def max_model_len(self) -> int | None:
        """Tokens of the window, when the provider knows it."""
        return self._filled.max_model_len

    @property
    def load(self) -> ProviderLoad | None:
        """What the provider has to do, when it tells (by `load`)."""
        load = getattr(self.provider, "load", None)
        return load if isinstance(load, ProviderLoad) else None

    @property
    def figures(self) -> tuple[ProviderFigure, ...]:
        """What else the provider tells of itself (by `figures`)."""
        return tuple(getattr(self.provider, "figures", ())) if self.is_loaded else ()

    def count_prompt_tokens(self, request: ChatRequest) -> int | None:
        """Tokens of the prompt that the request becomes, when the provider can tell without answering it."""
        count = getattr(self.provider, "count_prompt_tokens", None)
        return None if count is None else int(count(request))

    @property
    def system_fingerprint(self) -> str:
        """Changes with the model, its weights (a provider may tell by `fingerprint`) and our version."""
        parts = (self._filled.model, str(getattr(self.provider, "fingerprint", "")), __version__)
        return "fp_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    def resolve(self, name: str | None) -> str:
        """The reported name for a requested one; None asks for the loaded model. Raises ModelNotFoundError."""
        names = self.names
        if name is not None and name not in names:
            raise ModelNotFoundError(
                f"The model {name!r} is not served here. Served: {', '.join(names)}.", param="model"
            )
        return names[0]

    def describe(self, name: str) -> dict[str, Any]:
        """One entry of `/v1/models`."""
        entry: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "openk2",
            "root": self._filled.model,
        }
        if self.max_model_len is not None:
            entry["max_model_len"] = self.max_model_len
        return entry
