"""How other programs' clients are pointed at an openk2 server: what each wants to be told, and where it keeps it.

Each client's format stands beside its data with the page that it comes from (read in November 2026).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from openk2.client.jsonc import Named, Step
from openk2.errors import ConfigError

ANY_KEY = "openk2"
"""Stands where a client insists on a key: a server without keys reads none."""

KEY_VARIABLE = "OPENK2_API_KEY"

NANO = "k2-nano"
NANO_WINDOW = 4096
KIMI_WINDOW = 262_144
"""Of Kimi K2-0905. For any model but k2-nano, clients that want a window are told this: nothing here asks a server."""

Setting = tuple[tuple[Step, ...], Any]
"""A place in a settings file, and the value that goes there."""


@dataclass(frozen=True)
class Target:
    """The server and the model that a client shall use."""

    url: str
    """Without `/v1` and without a slash at the end."""
    model: str

    @property
    def window(self) -> int:
        return NANO_WINDOW if self.model == NANO else KIMI_WINDOW

    @property
    def longest_answer(self) -> int:
        """For clients that divide the window in advance."""
        return self.window // 4


@dataclass(frozen=True)
class Machine:
    """Where a user's settings are."""

    home: Path
    environ: Mapping[str, str]
    platform: str
    """As `sys.platform` spells it."""

    @property
    def config_home(self) -> Path:
        return Path(self.environ.get("XDG_CONFIG_HOME") or self.home / ".config")


@dataclass(frozen=True)
class Client:
    name: str
    title: str
    api: str
    key: str
    """Where a key goes, for a server that asks for one."""
    environment: Callable[[Target], dict[str, str]] = lambda target: {}
    files: Callable[[Machine], tuple[Path, ...]] = lambda machine: ()
    """Where the settings may be: the first that exists, or the first. Without any, they live in the client alone."""
    settings: Callable[[Target], list[Setting]] = lambda target: []
    """What goes into the file."""
    fields: Callable[[Target], dict[str, str]] = lambda target: {}
    """What to enter by hand where there is no file."""
    then: str = ""
    """What is left to do in the client."""


def find_client(name: str) -> Client:
    """The client of that name. Raises ConfigError: it is unknown."""
    if name not in CLIENTS:
        raise ConfigError(f"no client {name!r} is known; known are {', '.join(sorted(CLIENTS))}", param="client")
    return CLIENTS[name]


def target(url: str, model: str) -> Target:
    """The target for a server's address, given with or without `/v1`. Raises ConfigError: it is no address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ConfigError(f"--url {url!r} is not a server's address such as http://127.0.0.1:8000", param="url")
    if not model.strip():
        raise ConfigError("--model is empty; `openk2 connect` needs the name that the server answers to", param="model")
    return Target(url.rstrip("/").removesuffix("/v1").rstrip("/"), model)


def settings_file(client: Client, machine: Machine) -> Path | None:
    """The client's settings file, which need not exist; None for a client that keeps them to itself."""
    files = client.files(machine)
    return next((file for file in files if file.exists()), files[0] if files else None)


# https://code.claude.com/docs/en/env-vars: the token goes out as a Bearer token; CLAUDE_CONFIG_DIR moves ~/.claude.
# https://dev.to/aihubmix/claude-code-settingsjson-for-an-llm-gateway-a-working-setup-and-what-each-error-means-g5m
# (Claude Code 2.1.304): the base URL has no /v1, and the user settings' `env` wins over the shell's.
def _claude_code_environment(target: Target) -> dict[str, str]:
    models = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("OPUS", "SONNET", "HAIKU")))
    return {
        "ANTHROPIC_BASE_URL": target.url,
        "ANTHROPIC_AUTH_TOKEN": ANY_KEY,
        **dict.fromkeys(models, target.model),
    }


def _claude_code_files(machine: Machine) -> tuple[Path, ...]:
    return (Path(machine.environ.get("CLAUDE_CONFIG_DIR") or machine.home / ".claude") / "settings.json",)


def _claude_code_settings(target: Target) -> list[Setting]:
    return [(("env", name), value) for name, value in _claude_code_environment(target).items()]


# https://docs.cline.bot/provider-config/openai-compatible: entered in the panel, whose store is not a documented file.
def _cline_fields(target: Target) -> dict[str, str]:
    return {
        "API Provider": "OpenAI Compatible",
        "Base URL": f"{target.url}/v1",
        "API Key": ANY_KEY,
        "Model ID": target.model,
    }


# https://dev.to/aihubmix/codex-configtoml-a-working-setup-and-what-each-error-means-2ghj (Codex 0.162.1): `wire_api` of
# a provider has one accepted value, "responses". CODEX_HOME moves ~/.codex. Tried with Codex 0.169.0.
def _codex_files(machine: Machine) -> tuple[Path, ...]:
    return (Path(machine.environ.get("CODEX_HOME") or machine.home / ".codex") / "config.toml",)


def _codex_settings(target: Target) -> list[Setting]:
    provider = {"name": "openk2", "base_url": f"{target.url}/v1", "wire_api": "responses"}
    return [
        (("model_provider",), "openk2"),
        (("model",), target.model),
        (("model_context_window",), target.window),
        (("model_providers", "openk2"), provider),
    ]


# https://opencode.ai/v1/docs/providers and /config; OpenCode 2 reads the same files in the same form
# (https://opencode.ai/docs/migrate-v1). An unset {env:...} is an empty key, which is not sent.
def _opencode_files(machine: Machine) -> tuple[Path, ...]:
    folder = machine.config_home / "opencode"
    return (folder / "opencode.json", folder / "opencode.jsonc")


def _opencode_settings(target: Target) -> list[Setting]:
    limit = {"context": target.window, "output": target.longest_answer}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "openk2",
        "options": {"baseURL": f"{target.url}/v1", "apiKey": f"{{env:{KEY_VARIABLE}}}"},
        "models": {target.model: {"name": target.model, "limit": limit}},
    }
    return [(("provider", "openk2"), provider), (("model",), f"openk2/{target.model}")]


# https://code.visualstudio.com/docs/agent-customization/language-models, "Custom Endpoint" (VS Code 1.122 and newer).
# The two limits together are the window. The page names the file but not its folder, which is the default profile's.
def _vscode_files(machine: Machine) -> tuple[Path, ...]:
    data = machine.config_home
    if machine.platform == "darwin":
        data = machine.home / "Library" / "Application Support"
    return (data / "Code" / "User" / "chatLanguageModels.json",)


def _vscode_settings(target: Target) -> list[Setting]:
    model = {
        "id": target.model,
        "name": target.model,
        "url": f"{target.url}/v1/chat/completions",
        "toolCalling": True,
        "vision": False,
        "maxInputTokens": target.window - target.longest_answer,
        "maxOutputTokens": target.longest_answer,
    }
    group = {
        "name": "openk2",
        "vendor": "customendpoint",
        "apiKey": ANY_KEY,
        "apiType": "chat-completions",
        "models": [model],
    }
    return [((Named("openk2"),), group)]


# https://zed.dev/docs/ai/use-api-access, "OpenAI-Compatible Endpoints": the key is never in the file but in the
# keychain or in the variable that is named after the provider, which for `openk2` is the server's own.
def _zed_files(machine: Machine) -> tuple[Path, ...]:
    folder = machine.home / ".config" if machine.platform == "darwin" else machine.config_home
    return (folder / "zed" / "settings.json",)


def _zed_settings(target: Target) -> list[Setting]:
    capabilities = {"tools": True, "images": False, "parallel_tool_calls": True, "prompt_cache_key": False}
    model = {
        "name": target.model,
        "display_name": target.model,
        "max_tokens": target.window,
        "capabilities": capabilities,
    }
    provider = {"api_url": f"{target.url}/v1", "available_models": [model]}
    return [(("language_models", "openai_compatible", "openk2"), provider)]


CLIENTS = {
    client.name: client
    for client in (
        Client(
            "claude-code",
            "Claude Code",
            "Anthropic",
            key="in place of the value of ANTHROPIC_AUTH_TOKEN",
            environment=_claude_code_environment,
            files=_claude_code_files,
            settings=_claude_code_settings,
            then="unset ANTHROPIC_API_KEY where it is set; /status shows the address in use",
        ),
        Client(
            "cline",
            "Cline",
            "OpenAI",
            key="in the field API Key",
            fields=_cline_fields,
            then="enter these in Cline's settings panel",
        ),
        Client(
            "codex",
            "Codex",
            "OpenAI (responses)",
            key=f'in a variable that the provider names: env_key = "{KEY_VARIABLE}"',
            files=_codex_files,
            settings=_codex_settings,
        ),
        Client(
            "opencode",
            "OpenCode",
            "OpenAI",
            key=f"in the variable {KEY_VARIABLE}",
            files=_opencode_files,
            settings=_opencode_settings,
        ),
        Client(
            "vscode",
            "VS Code (chat)",
            "OpenAI",
            key="in the Language Models editor, which keeps it out of the file",
            files=_vscode_files,
            settings=_vscode_settings,
            then="choose the model in the chat's model picker; restart VS Code if it is not there",
        ),
        Client(
            "zed",
            "Zed",
            "OpenAI",
            key=f"in the variable {KEY_VARIABLE}, or in Zed's settings of the provider",
            files=_zed_files,
            settings=_zed_settings,
            then=f"choose the model in the agent panel; Zed asks for a key: any will do, also as {KEY_VARIABLE}",
        ),
    )
}
