"""Running the server: the port first, then the model, and a clean end."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn

from openk2.chat.provider import ChatProvider
from openk2.errors import EnvironmentFault
from openk2.server.app import create_app
from openk2.server.model_slot import ModelSlot
from openk2.server.settings import ServerSettings

GRACE_SECONDS = 2
"""How long answers may go on after Ctrl-C."""


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


def run_server(
    load: Callable[[], ChatProvider],
    settings: ServerSettings,
    *,
    on_listening: Callable[[str], None],
    on_loaded: Callable[[str, ChatProvider], None],
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    The port is taken first and answers at once, with `/health` at 503 while `load` runs in a thread. `on_listening` and
    `on_loaded` get the server's URL. Raises EnvironmentFault for a port that cannot be had, and what `load` raised.
    """
    listener = open_socket(settings.host, settings.port)
    url = base_url(settings.host, listener)
    slot = ModelSlot(served_model_names=settings.served_model_names)
    config = uvicorn.Config(
        create_app(slot, settings),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
    )
    server = uvicorn.Server(config)
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
    except KeyboardInterrupt:  # uvicorn has shut down in order and passes the signal on
        pass
    finally:
        listener.close()
        for provider in loaded:
            close: Any = getattr(provider, "close", None)
            if close is not None:
                close()
    if failure:
        raise failure[0]
