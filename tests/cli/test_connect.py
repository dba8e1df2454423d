"""`openk2 connect` in a home folder of its own."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from openk2 import assets
from openk2.cli.main import app
from openk2.client.settings import CLIENTS, KIMI_WINDOW, NANO, NANO_WINDOW, Machine, settings_file
from openk2.config import preset
from openk2.errors import ConfigError, EnvironmentFault

runner = CliRunner()
WITH_FILE = sorted(name for name, client in CLIENTS.items() if client.files(Machine(Path(), {}, "linux")))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "CLAUDE_CONFIG_DIR", "CODEX_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def connect(*arguments: str) -> dict[str, Any]:
    result = runner.invoke(app, ["connect", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.output)
    return report


def file_of(name: str, home: Path) -> Path:
    file = settings_file(CLIENTS[name], Machine(home, {}, sys.platform))
    assert file is not None and file.is_relative_to(home)
    return file


def read(file: Path) -> Any:
    return (tomllib if file.suffix == ".toml" else json).loads(file.read_text())


def everything(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_printing_names_server_and_model_and_writes_nothing(name: str, home: Path) -> None:
    result = runner.invoke(app, ["connect", name, "--url", "http://box:81/v1/", "--model", "kimi-k2"])
    assert result.exit_code == 0 and "http://box:81" in result.output and "kimi-k2" in result.output
    assert "/v1/v1" not in result.output
    assert everything(home) == {}


def test_claude_code_gets_the_address_without_v1(home: Path) -> None:
    report = connect("claude-code", "--url", "http://127.0.0.1:9000/v1")
    assert report["environment"]["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:9000"
    assert report["settings"] == {"env": report["environment"]}
    assert any("4,096" in note for note in report["notes"])


def test_windows_are_those_of_the_models() -> None:
    assert json.loads((assets.path(NANO) / "config.json").read_text())["max_position_embeddings"] == NANO_WINDOW
    assert preset("k2-0905").max_position_embeddings == KIMI_WINDOW


def test_windows_fit(home: Path) -> None:
    (model,) = connect("vscode")["settings"][0]["models"]
    assert model["maxInputTokens"] + model["maxOutputTokens"] == 4096
    zed = connect("zed", "--model", "kimi-k2")["settings"]["language_models"]["openai_compatible"]["openk2"]
    assert zed["available_models"][0]["max_tokens"] == 262_144 and zed["api_url"] == "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize("name", WITH_FILE)
def test_write_makes_the_file_and_undo_takes_it_away(name: str, home: Path) -> None:
    report = connect(name, "--write")
    file = file_of(name, home)
    assert report["written"] == str(file) and report["backup"] is None
    assert read(file) == report["settings"]
    assert connect(name, "--undo")["exists"] is False
    assert everything(home) == {}


@pytest.mark.parametrize("name", WITH_FILE)
def test_write_keeps_all_else_and_undo_is_exact(name: str, home: Path) -> None:
    file = file_of(name, home)
    file.parent.mkdir(parents=True)
    if file.suffix == ".toml":
        start, end = "# top\n[other] # mine\nx = [1,\n2]\n", ""
    else:
        start, end = '// top\n{\n\t"other":  {"x": [1,\n2]}, // mine\n', "}"
    if name == "vscode":
        start, end = '// top\n[\n\t{ "name": "other",  "x": [1,\n2] },\n', "]"
    before = (start + end).encode()
    file.write_bytes(before)
    file.chmod(0o640)
    report = connect(name, "--write")
    assert Path(report["backup"]).read_bytes() == before and Path(report["backup"]).parent == file.parent
    text = file.read_text()
    assert all(line in text for line in start.splitlines()) and "127.0.0.1:8000" in text
    assert file.suffix == ".toml" or text.startswith(start)
    assert file.stat().st_mode & 0o777 == 0o640
    connect(name, "--write", "--model", "kimi-k2")  # again, for another model: the backup stays the first
    assert "kimi-k2" in file.read_text() and Path(report["backup"]).read_bytes() == before
    assert connect(name, "--undo")["kept"] is None
    assert everything(home) == {str(file.relative_to(home)): before}
    assert file.stat().st_mode & 0o777 == 0o640


def test_settings_that_were_there_come_back(home: Path) -> None:
    file = file_of("claude-code", home)
    file.parent.mkdir()
    before = '{"env": {"ANTHROPIC_BASE_URL": "https://elsewhere", "A": "1"}, "permissions": {"allow": ["Bash"]}}'
    file.write_text(before)
    connect("claude-code", "--write")
    now = json.loads(file.read_text())
    assert now["env"]["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8000" and now["env"]["A"] == "1"
    assert now["permissions"] == {"allow": ["Bash"]}
    connect("claude-code", "--undo")
    assert file.read_text() == before


def test_undo_keeps_what_was_changed_since(home: Path) -> None:
    file = file_of("claude-code", home)
    for _ in range(2):
        connect("claude-code", "--write")
        changed = json.dumps({**json.loads(file.read_text()), "theme": "dark"})
        file.write_text(changed)
        kept = Path(connect("claude-code", "--undo")["kept"])
        assert kept.read_text() == changed and not file.exists()
    assert len(everything(home)) == 2


def test_a_stale_backup_is_not_brought_back(home: Path) -> None:
    file = file_of("zed", home)
    connect("zed", "--write")
    file.write_text('{"mine": 1}')  # the connection removed by hand
    connect("zed", "--write")
    connect("zed", "--undo")
    assert everything(home) == {str(file.relative_to(home)): b'{"mine": 1}'}


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'{"env": {', "line 1"), (b'{"env": []}', "env is not an object"), (b"[]", "not an object"), (b"\xff", "UTF-8")],
)
def test_a_file_that_cannot_be_read_is_refused_and_left(content: bytes, said: str, home: Path) -> None:
    file = file_of("claude-code", home)
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as refused:
        connect("claude-code", "--write")
    assert str(file) in str(refused.value) and "\n" not in str(refused.value) and refused.value.exit_code == 2
    assert everything(home) == {str(file.relative_to(home)): content}


def test_a_linked_file_stays_a_link(home: Path) -> None:
    file, real = file_of("claude-code", home), home / "dotfiles" / "claude.json"
    for folder in (file.parent, real.parent):
        folder.mkdir()
    real.write_text("{}")
    file.symlink_to(real)
    connect("claude-code", "--write")
    assert file.is_symlink() and "ANTHROPIC_BASE_URL" in real.read_text()
    connect("claude-code", "--undo")
    assert file.is_symlink() and real.read_text() == "{}"


def test_a_folder_in_the_way_is_one_line(home: Path) -> None:
    (home / ".claude").write_text("a file")
    with pytest.raises(EnvironmentFault, match=r"\.claude"):
        connect("claude-code", "--write")


def test_a_jsonc_file_is_preferred_where_it_is_the_one_that_exists(home: Path) -> None:
    file = home / ".config" / "opencode" / "opencode.jsonc"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    assert connect("opencode", "--write")["written"] == str(file)


def test_where_settings_are() -> None:
    mac = Machine(Path("/u"), {"XDG_CONFIG_HOME": "/x", "CLAUDE_CONFIG_DIR": "/c"}, "darwin")
    linux = Machine(Path("/u"), {"XDG_CONFIG_HOME": "/x"}, "linux")
    code = "Code/User/chatLanguageModels.json"
    assert settings_file(CLIENTS["vscode"], mac) == Path("/u/Library/Application Support", code)
    assert settings_file(CLIENTS["vscode"], linux) == Path("/x", code)
    assert settings_file(CLIENTS["zed"], mac) == Path("/u/.config/zed/settings.json")
    assert settings_file(CLIENTS["claude-code"], mac) == Path("/c/settings.json")
    assert settings_file(CLIENTS["claude-code"], linux) == Path("/u/.claude/settings.json")


@pytest.mark.parametrize("option", ["--write", "--undo"])
def test_a_client_without_a_file_is_only_printed(option: str, home: Path) -> None:
    assert connect("cline")["fields"]["Base URL"] == "http://127.0.0.1:8000/v1"
    with pytest.raises(ConfigError, match="own panel"):
        connect("cline", option)


def test_an_unknown_client_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="claude-code, cline, codex, opencode, vscode, zed") as refused:
        connect("emacs")
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [("[a", "not valid TOML .*line 1"), ("model_providers = 3", "model_providers is not a table")],
)
def test_a_toml_file_that_cannot_be_read_is_refused_and_left(content: str, said: str, home: Path) -> None:
    file = file_of("codex", home)
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        connect("codex", "--write")
    assert everything(home) == {str(file.relative_to(home)): content.encode()}


def test_codex_keeps_its_other_providers(home: Path) -> None:
    file = file_of("codex", home)
    file.parent.mkdir()
    before = (
        'model = "gpt-6" # mine\n\n[model_providers.box]\nname = "box"\n\n[projects."/x"]\ntrust_level = "trusted"\n'
    )
    file.write_text(before)
    connect("codex", "--write", "--model", "kimi-k2")
    now = tomllib.loads(file.read_text())
    assert now["model_provider"] == "openk2" and now["model"] == "kimi-k2"
    assert now["model_providers"]["box"] == {"name": "box"} and now["projects"]["/x"] == {"trust_level": "trusted"}
    assert now["model_providers"]["openk2"]["base_url"] == "http://127.0.0.1:8000/v1"
    assert "# mine" in file.read_text()
    connect("codex", "--undo")
    assert file.read_text() == before


@pytest.mark.parametrize(
    "arguments",
    [("zed", "--url", "localhost:8000"), ("zed", "--url", "http://"), ("zed", "--model", " "), ("zed", "--undo")],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], home: Path) -> None:
    with pytest.raises(ConfigError):
        connect(*arguments)


def test_write_and_undo_exclude_each_other(home: Path) -> None:
    assert runner.invoke(app, ["connect", "zed", "--write", "--undo"]).exit_code == 2
