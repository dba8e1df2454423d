"""What a server is told when it starts."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from openk2.errors import ConfigError

API_KEY_VARIABLE = "OPENK2_API_KEY"

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
    max_body_bytes: int = 32 * 1024 * 1024
    response_store: Path | None = None
    """SQLite file of the responses that later requests may go on from; None keeps them in memory."""

    def __post_init__(self) -> None:
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
