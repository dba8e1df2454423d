"""The command: verbs, help, and how errors reach a person."""

from __future__ import annotations

import subprocess
import sys
from typing import NoReturn

import pytest
from typer.testing import CliRunner

from openk2 import __version__
from openk2.cli import main as cli
from openk2.errors import CheckpointError, EnvironmentFault

runner = CliRunner()


def test_help_lists_every_verb_with_its_line() -> None:
    result = runner.invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    for verb in cli.available_verbs():
        assert verb in result.output and cli.VERBS[verb][:30] in result.output


def test_version() -> None:
    assert runner.invoke(cli.app, ["--version"]).output == f"openk2 {__version__}\n"


@pytest.mark.parametrize("verb", cli.available_verbs())
def test_every_verb_has_help(verb: str) -> None:
    result = runner.invoke(cli.app, [verb, "--help"])
    assert result.exit_code == 0 and f"openk2 {verb}" in result.output


@pytest.mark.parametrize("arguments", [["no-such-verb"], ["doctor", "--no-such-option"]])
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    assert runner.invoke(cli.app, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (CheckpointError("model.safetensors is\ntruncated"), "model.safetensors is truncated", 2),
        (EnvironmentFault("port 8000 is in use"), "port 8000 is in use", 1),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "pip install 'openk2[local]'", 1),
        (RuntimeError("a bug"), "unexpected RuntimeError: a bug", 1),
    ],
)
def test_errors_are_one_line(
    error: Exception, line: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app(**_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    assert stopped.value.code == code and not printed.out
    assert printed.err.startswith("openk2: ") and line in printed.err and printed.err.count("\n") == 1


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def app(**_: object) -> NoReturn:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setenv("OPENK2_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()


def test_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "openk2", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"openk2 {__version__}\n"
