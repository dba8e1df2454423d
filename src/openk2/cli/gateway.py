"""What `openk2 serve --upstream` serves: the gateway's parts, put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openk2.errors import ConfigError, OverloadedError

if TYPE_CHECKING:
    from openk2.chat.provider import ChatProvider
    from openk2.chat.template import ChatTemplate
    from openk2.client.gateway import Gateway, InvalidCalls
    from openk2.client.gateway.targets import Target
    from openk2.client.remote import RemoteProvider
    from openk2.server.request_log import RequestSink
    from openk2.server.settings import ServerSettings

MODES = ("chat", "completions")
RETRY_S = 2.0
"""Between attempts to reach a first upstream."""


@dataclass(frozen=True, kw_only=True)
class GatewayOptions:
    """The options of `openk2 serve` that make it a gateway. Raises ConfigError for values that no option has."""

    targets: tuple[Target, ...]
    invalid_calls: InvalidCalls
    mode: str = "chat"
    tokenizer: str | None = None
    """Folder of the upstreams' tokenizer, or k2-nano. Needed with mode `completions`, unless they serve k2-nano."""
    timeout_s: float = 600.0

    @classmethod
    def read(
        cls,
        upstreams: Sequence[str],
        key_files: Sequence[Path],
        model: str | None,
        *,
        mode: str,
        invalid_calls: str,
        tokenizer: str | None,
        timeout_s: float,
    ) -> GatewayOptions:
        from openk2.client.gateway import InvalidCalls
        from openk2.client.gateway.targets import read_targets

        if mode not in MODES:
            raise ConfigError(f"--upstream-mode must be {' or '.join(MODES)}, not {mode}", param="upstream_mode")
        if invalid_calls not in list(InvalidCalls):
            known = ", ".join(InvalidCalls)
            raise ConfigError(f"--invalid-calls must be one of {known}, not {invalid_calls}", param="invalid_calls")
        targets = read_targets(upstreams, key_files, model)
        for target in targets:
            if mode == "completions" and not target.continues_text:
                raise ConfigError(
                    f"{target.base_url} answers chats only, so --upstream-mode completions cannot be used with it",
                    param="upstream_mode",
                )
        return cls(
            targets=targets,
            invalid_calls=InvalidCalls(invalid_calls),
            mode=mode,
            tokenizer=tokenizer,
            timeout_s=timeout_s,
        )


def serve_gateway(options: GatewayOptions, settings: ServerSettings, sinks: Sequence[RequestSink]) -> None:
    """Serve until Ctrl-C or SIGTERM; raises as `run_server` and `open_gateway` do."""
    from openk2.cli.serve import banner, say
    from openk2.server.run import run_server

    upstreams = ", ".join(target.base_url for target in options.targets)

    def on_listening(url: str) -> None:
        say(f"openk2 listens on {url}; asking {upstreams} ...")

    def on_loaded(url: str, provider: ChatProvider) -> None:
        name = settings.served_model_names[0] if settings.served_model_names else provider.model
        say(banner(url, name, is_nano=False))
        say(f"Requests go on to {upstreams}")

    run_server(
        lambda: open_gateway(options, say), settings, on_listening=on_listening, on_loaded=on_loaded, sinks=sinks
    )
    say("openk2 has stopped.")


def open_gateway(options: GatewayOptions, say: Callable[[str], None]) -> Gateway:
    """The gateway, once one of its upstreams has been reached.

    Raises ConfigError for a missing tokenizer, TokenizerError, and RequestError when an upstream refuses the key or
    lists no model.
    """
    from openk2.client import RemoteProvider
    from openk2.client.gateway import Gateway, Router, Upstream
    from openk2.client.gateway.completions import CompletionsProvider
    from openk2.client.gateway.health import HealthWatch

    remotes = [
        RemoteProvider(
            target.base_url,
            target.model,
            target.api_key,
            timeout=options.timeout_s,
            # With several upstreams the next one is asked instead of the same one again.
            max_retries=2 if len(options.targets) == 1 else 0,
            key_source=target.key_source,
            keeps_connections=True,
        )
        for target in options.targets
    ]
    first = _first_reached(remotes, say)
    template = _template(options, first)
    upstreams = [
        Upstream(
            target.base_url,
            CompletionsProvider(remote, template) if options.mode == "completions" and template is not None else remote,
            remote,
            is_hosted=target.is_hosted,
        )
        for target, remote in zip(options.targets, remotes, strict=True)
    ]
    router = Router(upstreams, watch=HealthWatch(upstreams))
    return Gateway(router, invalid_calls=options.invalid_calls, template=template)


def _first_reached(remotes: Sequence[RemoteProvider], say: Callable[[str], None]) -> RemoteProvider:
    """The first of them that answers; until one does, the gateway waits as a model is waited for that loads."""
    from openk2.client.failures import UnreachableError

    has_said = False
    while True:
        for remote in remotes:
            try:
                remote.check()
            except (UnreachableError, OverloadedError) as error:
                if not has_said:
                    say(f"{error} Trying again ...")
            else:
                return remote
        has_said = True
        time.sleep(RETRY_S)


def _template(options: GatewayOptions, upstream: RemoteProvider) -> ChatTemplate | None:
    """The upstreams' template, where it is known here."""
    from openk2 import assets
    from openk2.chat.template import ChatTemplate
    from openk2.tokenizer import Tokenizer

    name = options.tokenizer or ("k2-nano" if upstream.openk2_model == "k2-nano" else None)
    if name is None:
        if options.mode == "completions":
            raise ConfigError(
                "--upstream-mode completions needs --tokenizer: a folder with the upstream model's tokenizer files",
                param="tokenizer",
            )
        return None
    folder = Path(name) if Path(name).is_dir() else assets.path(name)
    return ChatTemplate.from_folder(Tokenizer.from_folder(folder), folder)
