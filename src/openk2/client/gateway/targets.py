"""Where the upstreams are, and the key of each: from what stands on the command line, in files and in the environment.

A key never stands on the command line, where every user of the machine could read it, nor in a URL, which is logged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from openk2.client.gateway.hosts import HOSTS
from openk2.client.remote import api_root
from openk2.errors import ConfigError, RequestError

KEY_VARIABLE = "OPENK2_UPSTREAM_API_KEY"


@dataclass(frozen=True)
class Target:
    """One upstream."""

    base_url: str
    model: str | None
    """Its name there; None asks for the first that the upstream lists."""
    api_key: str | None = field(default=None, repr=False)
    key_source: str = KEY_VARIABLE
    """Where the key was read from, or would be."""
    is_hosted: bool = False
    continues_text: bool = True
    """Whether it is known to have raw completions, or not known to have none."""


def read_targets(
    upstreams: Sequence[str],
    key_files: Sequence[Path] = (),
    model: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> tuple[Target, ...]:
    """The upstreams: names of hosts, or URLs. `key_files`: one for each of them, or one for all, or none.

    A file for each comes first; then the host's own variable; then the file for all; then, for URLs,
    OPENK2_UPSTREAM_API_KEY. Raises ConfigError for what is neither name nor URL, for an upstream named twice, for a key
    that cannot be read, and for a host without one.
    """
    if len(key_files) > 1 and len(key_files) != len(upstreams):
        raise ConfigError(
            f"--upstream-key-file is given {len(key_files)} times for {len(upstreams)} upstreams: give one for all, or "
            f"one for each in their order",
            param="upstream_key_file",
        )
    own_files: Sequence[Path | None] = key_files if len(key_files) == len(upstreams) else [None] * len(upstreams)
    shared_file = key_files[0] if len(key_files) == 1 else None
    targets = tuple(
        _target(upstream, own_file, shared_file, model, environ)
        for upstream, own_file in zip(upstreams, own_files, strict=True)
    )
    urls = [target.base_url for target in targets]
    for url in urls:
        if urls.count(url) > 1:
            raise ConfigError(f"--upstream names {url} twice", param="upstream")
    return targets


def _target(
    upstream: str, own_file: Path | None, shared_file: Path | None, model: str | None, environ: Mapping[str, str]
) -> Target:
    host = HOSTS.get(upstream)
    base_url = _checked_url(upstream) if host is None else host.base_url
    variable = KEY_VARIABLE if host is None else host.key_variable
    file = own_file
    if file is None and not (host is not None and environ.get(variable, "").strip()):
        file = shared_file
    key = read_key(file) if file is not None else _checked_key(environ.get(variable, ""), variable)
    source = variable if file is None else f"the file {file}"
    if host is None:
        return Target(base_url, model, key, source)
    if key is None:
        raise ConfigError(
            f"--upstream {upstream} needs a key: set {variable}, or give --upstream-key-file", param=variable
        )
    return Target(base_url, model or host.model, key, source, is_hosted=True, continues_text=host.continues_text)


def read_key(file: Path) -> str:
    """The one key of a file, in which `#` starts a comment line. Raises ConfigError, without showing what is there."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"cannot read the key file {file}: {reason}", param="upstream_key_file") from None
    found = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if len(found) != 1:
        raise ConfigError(f"the key file {file} holds {len(found)} keys; it has to hold one", param="upstream_key_file")
    key = _checked_key(found[0], f"the file {file}")
    assert key is not None
    return key


def _checked_key(text: str, source: str) -> str | None:
    """What can stand in a header; anything else would come up in an error message, key and all."""
    key = text.strip()
    if key and not re.fullmatch(r"[!-~]+", key):
        raise ConfigError(f"the key of {source} has characters that no key has; look at it", param="upstream_key_file")
    return key or None


def _checked_url(upstream: str) -> str:
    names = ", ".join(HOSTS)
    if not re.search(r"[:./]", upstream) and upstream != "localhost":
        raise ConfigError(f"--upstream {upstream} is no URL and none of the known hosts: {names}", param="upstream")
    try:
        root = api_root(upstream)
    except RequestError:
        message = f"--upstream {_without_userinfo(upstream)!r} is no URL, such as http://127.0.0.1:8000/v1, and none of"
        raise ConfigError(f"{message} the known hosts: {names}", param="upstream") from None
    parts = urlsplit(root)
    if parts.username is not None or parts.query:
        raise ConfigError(
            f"--upstream has more than an address in its URL: give a key by {KEY_VARIABLE} or --upstream-key-file",
            param="upstream",
        )
    return root


def _without_userinfo(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)
