"""Running the server: the port first, then the model, and a clean end."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import uvicorn

from openk2.chat.provider import ChatProvider
from openk2.errors import EnvironmentFault
from openk2.server.answering import Answering
from openk2.server.app import create_app
from openk2.server.logs import configure_logging
from openk2.server.model_slot import ModelSlot
from openk2.server.request_log import RequestSink, log_request
from openk2.server.settings import ServerSettings

CLOSE_SECONDS = 2
"""How long connections may take to be closed once the answers have ended."""


def open_socket(host: str, port: int) -> socket.socket:
    """A listening-ready socket. Raises EnvironmentFault naming the port if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise EnvironmentFault(f"--host {host} is no address of this machine: {error.strerror}", param="host") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        # uvicorn listens again later; listening at once makes a second server fail here, before it loads a model.
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} on {host} is in use by another program; choose another with --port"
        elif error.errno == errno.EACCES:
            message = f"port {port} needs rights that this user does not have; choose one above 1023 with --port"
        else:
            message = f"cannot listen on {host} port {port}: {error.strerror}"
        raise EnvironmentFault(message, param="port") from None
    return listener


def base_url(host: str, listener: socket.socket) -> str:
    """Where to reach the server, for a person to click."""
    port = listener.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


class DrainingServer(uvicorn.Server):
    """Ends on a signal when the answers under way have ended, or the time for that is over; at once on a second one."""

    def __init__(self, config: uvicorn.Config, answering: Answering, drain_timeout_s: float) -> None:
        super().__init__(config)
        self._answering = answering
        self._drain_timeout_s = drain_timeout_s
        self._drain_until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler. It does not pass the signal on afterwards, so that a drained process exits with 0."""
        if self._drain_until is not None:
            os._exit(128 + sig)  # whatever it does: the engine's process ends with this one
        self._drain_until = time.monotonic() + self._drain_timeout_s
        self._answering.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the server."""
        if await super().on_tick(counter):
            return True
        if self._drain_until is None:
            return False
        if time.monotonic() >= self._drain_until:
            self._answering.end_all()
            return True
        return self._answering.num_under_way == 0


def run_server(
    load: Callable[[], ChatProvider],
    settings: ServerSettings,
    *,
    on_listening: Callable[[str], None],
    on_loaded: Callable[[str, ChatProvider], None],
    sinks: Sequence[RequestSink] = (log_request,),
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    The port is taken first and answers at once, with `/health` at 503 while `load` runs in a thread. `on_listening` and
    `on_loaded` get the server's URL; `sinks` are told of every request. After a signal, answers under way may go on for
    the settings' drain time; a second signal ends the process at once. Raises EnvironmentFault for a port that cannot
    be had, ConfigError for an unknown log format, and what `load` raised.
    """
    configure_logging(settings.log_format)
    listener = open_socket(settings.host, settings.port)
    url = base_url(settings.host, listener)
    slot = ModelSlot(served_model_names=settings.served_model_names)
    app = create_app(slot, settings, sinks=sinks)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=CLOSE_SECONDS,
        server_header=False,
    )
    server = DrainingServer(config, app.state.answering, settings.drain_timeout_s)
    failure: list[BaseException] = []
    loaded: list[ChatProvider] = []

    def load_model() -> None:
        try:
            provider = load()
            loaded.append(provider)
            on_loaded(url, provider)
            slot.fill(provider)
        except BaseException as error:
            failure.append(error)
            server.should_exit = True

    on_listening(url)
    threading.Thread(target=load_model, name="load-model", daemon=True).start()
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
        for provider in loaded:
            close: Any = getattr(provider, "close", None)
            if close is not None:
                close()
    if failure:
        raise failure[0]
