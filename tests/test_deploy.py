"""The files under deploy/ name flags that exist and files that are there, and leave an ending server its time."""

from __future__ import annotations

import inspect
import re
import shlex
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from openk2.cli import serve
from openk2.server.settings import ServerSettings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def flags(text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]*", text))


SERVE_FLAGS = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve.command).parameters}


def instructions(word: str) -> list[str]:
    text = (DEPLOY / "Dockerfile").read_text()
    return re.findall(rf"(?m)^{word} (.+)$", text)


def unit() -> ConfigParser:
    parser = ConfigParser(interpolation=None, delimiters=("=",), strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string((DEPLOY / "openk2.service").read_text())
    return parser


def test_what_the_image_copies_is_there_and_let_through() -> None:
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = [source for line in instructions("COPY") if "--from" not in line for source in line.split()[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists() and source in allowed


def test_stages_are_defined_before_they_are_used() -> None:
    known: set[str] = set()
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        stage = re.fullmatch(r"FROM (\S+) AS (\S+)", line)
        if stage is not None:
            assert ":" in stage[1] or stage[1] in known
            known.add(stage[2])
        used = re.match(r"COPY --from=(\S+)", line)
        assert used is None or used[1] in known
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert {service["build"]["target"] for service in compose["services"].values()} <= known


def test_flags_exist() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    commands = [" ".join(service["command"]) for service in compose["services"].values()]
    commands += [*instructions("ENTRYPOINT"), unit()["Service"]["ExecStart"]]
    assert "--host" in flags(commands[-2])
    for command in commands:
        assert flags(command) <= SERVE_FLAGS


@pytest.mark.parametrize("name", ["compose", "systemd"])
def test_the_end_may_take_longer_than_the_drain(name: str) -> None:
    if name == "compose":
        for service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values():
            command, seconds = service["command"], float(service["stop_grace_period"].removesuffix("s"))
            assert seconds > drain_timeout(command)
    else:
        settings = unit()["Service"]
        assert settings["KillMode"] == "mixed"
        assert float(settings["TimeoutStopSec"]) > drain_timeout(shlex.split(settings["ExecStart"]))


def drain_timeout(command: list[str]) -> float:
    if "--drain-timeout" not in command:
        return ServerSettings().drain_timeout_s
    return float(command[command.index("--drain-timeout") + 1])


def test_keys_are_in_none_of_them() -> None:
    for path in DEPLOY.iterdir():
        assert not re.search(r"OPENK2_API_KEY[=:] ?[\"']?\w", path.read_text().replace("OPENK2_API_KEY=...", ""))
