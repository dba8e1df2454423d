"""Which model a verb talks to: one of this machine, or an endpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from openk2.config import read_bytes
from openk2.errors import ConfigError

if TYPE_CHECKING:
    from openk2.chat.provider import ChatProvider

EMBEDDED_MODEL = "k2-nano"


@contextmanager
def opened_provider(
    model: str | None, base_url: str | None, *, quantization: str | None = None, memory: str | None = None
) -> Iterator[ChatProvider]:
    """The provider for `--model` and `--base-url`, closed at the end.

    With a base URL the model is a name of that endpoint (None: the first that it lists; key: OPENAI_API_KEY), without
    one it is an embedded model or a checkpoint folder, which needs torch.
    `quantization`, as in `LLM`, and `memory`, such as `8GiB`, are for those. Raises ConfigError when one of them is
    given beside a base URL.
    """
    provider: ChatProvider
    promised = None if memory is None else read_bytes(memory, param="memory")
    if base_url is not None:
        for name, given in (("quantization", quantization), ("memory", memory)):
            if given is not None:
                raise ConfigError(f"--{name} is for models that run here, not for --base-url", param=name)
        from openk2.client import RemoteProvider

        provider = RemoteProvider(base_url, model, os.environ.get("OPENAI_API_KEY"))
    else:
        from openk2.llm import LLM

        provider = LLM(model or EMBEDDED_MODEL, quantization=quantization, memory=promised)
    try:
        yield provider
    finally:
        close = getattr(provider, "close", None)
        if close is not None:
            close()
