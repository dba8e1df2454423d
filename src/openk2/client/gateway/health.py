"""Whether upstreams would take a request, asked again and again from a thread for each.

An upstream that drains says so here before it goes, and one that was found broken is noticed when it is back.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from openk2.client.gateway.upstream import Upstream
from openk2.client.remote import RemoteProvider
from openk2.errors import OpenK2Error

EVERY_S = 3.0
TIMEOUT_S = 5.0
_PATHS = ("/ready", "/health")
"""What the engines for open models answer, the one that knows of draining first; else the list of models is asked."""
_NOT_NOW = frozenset({500, 502, 503, 504, 529})


class HealthWatch:
    """Keeps `is_up` of upstreams true to what they say, until it is stopped."""

    def __init__(self, upstreams: Sequence[Upstream], *, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._is_over = threading.Event()
        for upstream in upstreams:
            if upstream.remote is not None:
                arguments = (upstream, upstream.remote)
                threading.Thread(target=self._watch, args=arguments, name=f"watch {upstream.name}", daemon=True).start()

    def stop(self) -> None:
        self._is_over.set()

    def _watch(self, upstream: Upstream, remote: RemoteProvider) -> None:
        while not self._is_over.wait(self._every_s):
            if not (upstream.is_hosted and upstream.is_up):
                upstream.is_up = would_answer(remote)


def would_answer(remote: RemoteProvider) -> bool:
    """Whether an endpoint would take a request now."""
    root = remote.base_url.rpartition("/v1")[0] or remote.base_url
    try:
        for url in (*(root + path for path in _PATHS), f"{remote.base_url}/models"):
            status = remote.get(url, TIMEOUT_S).status_code
            if status == 200:
                return True
            if status in _NOT_NOW:
                return False
    except OpenK2Error:
        return False
    return True  # it answers, and has no such address
