"""Who may talk to the server: Host, Origin and key are checked before any route runs.

A page on the internet can make a visitor's browser send requests to this machine. Two headers give it away: `Origin`
(the browser says whose page sent the request) and, when the page has pointed its own name at 127.0.0.1 (DNS
rebinding), `Host`. Both must be ours, but for the origins that the settings name. Programs are not browsers and send no
`Origin`.
"""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from openk2.server.error_responses import error_response
from openk2.server.settings import ANY_ORIGIN, ServerSettings

_OPEN_PATHS = frozenset({"/", "/health", "/ready", "/version"})
_OPEN_PREFIXES = ("/static/", "/ui/")
"""The page and the probes need no key; they tell nothing and cost nothing."""


class Guard:
    """ASGI middleware: refuses with 401 or 403."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._keys = tuple(key.encode() for key in settings.api_keys)
        self._origins = frozenset(settings.cors_origins)
        self._host_names = {"localhost", "127.0.0.1", "::1", settings.host} if settings.is_loopback else None
        """None: reachable from elsewhere under names we cannot know; the key, then required, does the work."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope), scope["path"])
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, headers: Headers, path: str) -> Response | None:
        host = headers.get("host", "")
        if self._host_names is not None and _host_name(f"//{host}") not in self._host_names:
            return error_response(403, f"Requests for the host {host!r} are not answered here.", "permission_error")
        origin = headers.get("origin")
        if origin is not None and not self._is_welcome(origin, host):
            return error_response(403, f"Requests from pages of {origin!r} are not answered here.", "permission_error")
        if self._keys and path not in _OPEN_PATHS and not path.startswith(_OPEN_PREFIXES):
            return self._check_key(headers)
        return None

    def _is_welcome(self, origin: str, host: str) -> bool:
        return _authority(origin) == host.lower() or ANY_ORIGIN in self._origins or origin.lower() in self._origins

    def _check_key(self, headers: Headers) -> Response | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if any(hmac.compare_digest(given.encode(), key) for key in self._keys):
            return None
        how = "send 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
        message = "Incorrect API key." if given else f"An API key is needed: {how}."
        response = error_response(401, message, "authentication_error", code="invalid_api_key")
        response.headers["www-authenticate"] = "Bearer"
        return response


def _authority(url: str) -> str | None:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return None


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
