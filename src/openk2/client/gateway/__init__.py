"""The gateway: any OpenAI-compatible engines or hosts behind one `ChatProvider`, which a server then serves as its own.

From the outside in: `Gateway` repairs and judges every call (`calls`), `Router` chooses the upstream and goes on to
another one when it fails (`routing` decides, `health` watches), and an `Upstream` is a `RemoteProvider`, or one whose
prompts are rendered and whose answers are parsed here (`completions`). `targets` says where the upstreams are.
"""

from __future__ import annotations

from openk2.client.gateway.gateway import Gateway, InvalidCalls
from openk2.client.gateway.router import Router
from openk2.client.gateway.upstream import Upstream

__all__ = ["Gateway", "InvalidCalls", "Router", "Upstream"]
