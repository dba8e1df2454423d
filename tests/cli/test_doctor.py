from __future__ import annotations

import json
import socket
import subprocess

import pytest
from typer.testing import CliRunner

from openk2.cli import doctor
from openk2.cli.main import app


def value_of(name: str) -> doctor.Check:
    return next(check for check in doctor.run_checks() if check.name == name)


def test_json_and_table_tell_the_same_names() -> None:
    as_json = CliRunner().invoke(app, ["doctor", "--json"])
    names = [check["name"] for check in json.loads(as_json.output)["checks"]]
    assert names == ["openk2", "processor", "memory", "gpu", "torch", "native ops", "sandbox", "k2-nano", "port"]
    table = CliRunner().invoke(app, ["doctor"])
    assert table.exit_code == 0 and all(name in table.output for name in names)


def test_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(doctor, "DEFAULT_PORT", taken.getsockname()[1])
        busy = value_of("port")
        assert busy.status == "note" and "--port" in busy.advice
    assert value_of("port").status == "ok"


def test_missing_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda package: None)
    missing = value_of("torch")
    assert missing.status == "missing" and "openk2[local]" in missing.advice


def test_forced_instruction_set_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openk2._native")
    monkeypatch.setenv("OPENK2_ISA", "avx1024")
    check = value_of("native ops")
    assert check.status == "missing" and "portable" in check.advice


@pytest.mark.parametrize(
    ("outcome", "status", "words"),
    [
        (None, "note", "bubblewrap"),
        (subprocess.CompletedProcess([], 1, "", "setting up uid map: denied\n"), "note", "denied"),
        (subprocess.CompletedProcess([], 0, "", ""), "ok", ""),
    ],
)
def test_sandbox(
    outcome: subprocess.CompletedProcess[str] | None, status: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_run", lambda *arguments: outcome)
    check = value_of("sandbox")
    assert check.status == status and words in check.advice
