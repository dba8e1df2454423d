"""`openk2 serve --upstream`: what its options come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.server.conftest import running
from typer.testing import CliRunner

import openk2.server.run
from openk2 import assets
from openk2.chat.scripted import ScriptedProvider
from openk2.cli import gateway as verb
from openk2.cli.main import app
from openk2.client.failures import RefusedKeyError, UnreachableError
from openk2.client.gateway import Gateway
from openk2.client.gateway.completions import CompletionsProvider
from openk2.errors import ConfigError, OverloadedError

runner = CliRunner()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Gateway]:
    """What would be served: nothing is."""
    found: list[Any] = []

    def run_server(load: Any, settings: Any, *, on_listening: Any, on_loaded: Any, sinks: Any) -> None:
        on_listening("http://127.0.0.1:1")
        provider = load()
        on_loaded("http://127.0.0.1:1", provider)
        provider.close()
        found.append(provider)

    monkeypatch.setattr(openk2.server.run, "run_server", run_server)
    for variable in ("OPENK2_API_KEY", "OPENK2_UPSTREAM_API_KEY", "MOONSHOT_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    return found


def serve(*arguments: str) -> str:
    result = runner.invoke(app, ["serve", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_an_upstream(served: list[Gateway], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-secret")
    with running(ScriptedProvider([], model="their-model")) as server:
        output = serve("--upstream", server.url, "--upstream-key-file", str(key))
        named = serve("some-name", "--upstream", server.url, "--invalid-calls", "pass")
    assert "their-model is ready on http://127.0.0.1:1" in output and f"Requests go on to {server.url}/v1" in output
    assert "secret" not in output and "some-name is ready" in named
    assert [gateway.model for gateway in served] == ["their-model", "some-name"]
    assert served[0].template is None and len(served[0].router.upstreams) == 1


def test_raw_completions_of_an_openk2_that_serves_k2_nano(served: list[Gateway]) -> None:
    if "k2-nano" not in assets.names():
        pytest.skip("this tree has no embedded model")
    with running(ScriptedProvider([], model="k2-nano")) as server:
        serve("--upstream", server.url, "--upstream-mode", "completions")
        with pytest.raises(ConfigError, match="--tokenizer"), running(ScriptedProvider([], model="other")) as other:
            serve("--upstream", other.url, "--upstream-mode", "completions")
    (gateway,) = served
    assert isinstance(gateway.router.upstreams[0].provider, CompletionsProvider) and gateway.template is not None


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--upstream", "moonshot"], "MOONSHOT_API_KEY"),
        (["--upstream", "http://h", "--upstream-mode", "raw"], "chat or completions"),
        (["--upstream", "http://h", "--invalid-calls", "ignore"], "retry, error, pass"),
        (["--upstream", "http://h", "--max-model-len", "9"], "--max-model-len"),
        (["--upstream", "nowhere"], "known hosts"),
    ],
)
def test_what_is_refused(arguments: list[str], word: str, served: list[Gateway]) -> None:
    with pytest.raises(ConfigError) as caught:
        serve(*arguments)
    assert word in str(caught.value)


def test_chats_only(served: list[Gateway], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONSHOT_API_KEY", "sk-1")
    with pytest.raises(ConfigError, match="chats only"):
        serve("--upstream", "moonshot", "--upstream-mode", "completions")


def test_a_gateway_waits_for_its_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    class Remote:
        def __init__(self, *outcomes: Exception | None) -> None:
            self._outcomes = list(outcomes)

        def check(self) -> None:
            outcome = self._outcomes.pop(0)
            if outcome is not None:
                raise outcome

    monkeypatch.setattr(verb.time, "sleep", lambda seconds: None)
    said: list[str] = []
    late, later = Remote(UnreachableError("not there."), None), Remote(OverloadedError("loading."))
    assert verb._first_reached([late, later], said.append) is late  # type: ignore[list-item,comparison-overlap]
    assert said == ["not there. Trying again ...", "loading. Trying again ..."]
    with pytest.raises(RefusedKeyError):
        verb._first_reached([Remote(RefusedKeyError("no"))], said.append)  # type: ignore[list-item]
