"""One endpoint behind the gateway."""

from __future__ import annotations

from dataclasses import dataclass

from openk2.chat.provider import ChatProvider
from openk2.client.remote import RemoteProvider


@dataclass(eq=False)
class Upstream:
    """What is known of an endpoint. `is_up` is also set by the thread that watches it; all else on the event loop."""

    name: str
    """Stays the same for as long as its cache does: its base URL."""
    provider: ChatProvider
    """How it is asked."""
    remote: RemoteProvider | None = None
    """Where it is; one without an address is not watched."""
    is_hosted: bool = False
    """A public service: it is not asked how it is as long as it answers."""
    is_up: bool = True
    """False: it gets no new requests, unless all are so. Those it has go on."""
    running: int = 0
    answered: int = 0
    """Answers that came to their end since the start, and below: those that failed."""
    failed: int = 0
