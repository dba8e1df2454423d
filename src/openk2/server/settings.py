"""What a server is told when it starts."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from openk2.errors import ConfigError

API_KEY_VARIABLE = "OPENK2_API_KEY"
ANY_ORIGIN = "*"

KIMI_MODEL_NAMES = (
    "moonshotai/Kimi-K2-Instruct-0905-FP8",
    "moonshotai/Kimi-K2-Instruct-0905",
    "moonshotai/Kimi-K2-Instruct",
    "kimi-k2-0905",
    "kimi-k2",
)
"""Names under which published examples ask for the model; the loaded model answers to them."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs a key."""
    port: int = 8000
    """0 takes a free one."""
    api_keys: tuple[str, ...] = ()
    """Accepted keys; none means that no key is asked for."""
    served_model_names: tuple[str, ...] = ()
    """Names the model answers to, the first being the one it reports. Empty: its own name and the Kimi names."""
    cors_origins: tuple[str, ...] = ()
    """Origins such as `https://chat.example.com` whose pages may use the server from a browser; `*` is any, and needs a
    key."""
    max_body_bytes: int = 32 * 1024 * 1024
    max_waiting: int = 256
    """Requests that may wait for their first token; a further one is refused with a 429."""
    request_timeout_s: float = 3600.0
    """After so many seconds an answer ends with an error."""
    explain_cache_misses: bool = False
    """Keep prompts of late in memory, to tell by which token one was not found in the prefix cache."""
    drain_timeout_s: float = 30.0
    """How long answers that are under way may go on after SIGTERM or Ctrl-C."""
    response_store: Path | None = None
    """SQLite file of the responses that later requests may go on from; None keeps them in memory."""

    log_format: str = "text"
    """`text` or `json`: what a server that has its own process writes to standard error."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cors_origins", tuple(_origin(text) for text in self.cors_origins))
        if ANY_ORIGIN in self.cors_origins and not self.api_keys:
            raise ConfigError(
                f"--cors-origin '*' would let every web page use the model through a visitor's browser: name the "
                f"origins, or set {API_KEY_VARIABLE} or --api-key-file",
                param="cors_origins",
            )
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port must be between 0 and 65535, not {self.port}", param="port")
        if not self.api_keys and not self.is_loopback:
            raise ConfigError(
                f"listening on {self.host} would let anyone who reaches this machine use the model: "
                f"set {API_KEY_VARIABLE} or --api-key-file, or keep to --host 127.0.0.1",
                param="host",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _origin(text: str) -> str:
    """An origin as browsers send it. Raises ConfigError for what is none."""
    if text == ANY_ORIGIN:
        return text
    origin = text.removesuffix("/").lower()
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", origin):
        raise ConfigError(
            f"--cors-origin {text!r} is no origin; it looks like https://chat.example.com or http://localhost:3000",
            param="cors_origins",
        )
    return origin


def read_api_keys(key_file: Path | None, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Keys of a file (one a line, `#` starts a comment line) and of OPENK2_API_KEY.

    Raises ConfigError for a file that cannot be read or holds no key: a server that was meant to be closed
    must not come up open.
    """
    keys = [key for key in (environ.get(API_KEY_VARIABLE, "").strip(),) if key]
    if key_file is not None:
        try:
            lines = key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the API key file {key_file}: {error}", param="api_key_file") from error
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise ConfigError(f"the API key file {key_file} holds no key", param="api_key_file")
        keys += found
    return tuple(keys)
