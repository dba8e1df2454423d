"""Running the server: the port answers before the model is there, and everything ends in one line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from openk2.chat.scripted import ScriptedProvider
from openk2.cli.serve import banner
from openk2.errors import EnvironmentFault
from openk2.server.model_slot import ModelSlot
from openk2.server.run import open_socket

from .conftest import HTTP, eventually

SERVE = """
    import asyncio, os, sys, types
    from openk2.chat.scripted import ScriptedProvider
    from openk2.errors import CheckpointError

    class LLM(ScriptedProvider):
        def __init__(self, model, **options):
            {on_load}
            super().__init__(answer, model=model)
        def close(self):
            print("closed")

    async def answer(_):
        while not os.path.exists({after!r}):
            await asyncio.sleep(0.01)
        return "Hello!"

    sys.modules["openk2.llm"] = module = types.ModuleType("openk2.llm")
    module.LLM = LLM
    from openk2.cli.main import main
    main()
"""


@contextmanager
def openk2_serve(*args: str, on_load: str = "pass", after: str = "/") -> Iterator[subprocess.Popen[str]]:
    """`openk2 serve` with a scripted model in place of the real one, which answers once the file `after` is there."""
    script = textwrap.dedent(SERVE.format(on_load=on_load, after=after))
    process = subprocess.Popen(
        [sys.executable, "-c", script, "serve", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def when_loaded(process: subprocess.Popen[str]) -> str:
    """The server's URL.

    The first line is read byte by byte: what `readline` takes beyond it, `communicate` does not see.
    """
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(process.stdout.fileno(), 1)):
        line += byte
    url = line.decode().split("listens on ")[1].split(";")[0]
    assert eventually(lambda: HTTP.get(f"{url}/health").status_code == 200)
    return url


def test_ctrl_c_ends_cleanly():
    with openk2_serve("--port", "0") as process:
        url = when_loaded(process)
        body = {"model": "moonshotai/Kimi-K2-Instruct-0905-FP8", "messages": [{"role": "user", "content": "Hi"}]}
        answer = HTTP.post(f"{url}/v1/chat/completions", json=body).json()
        assert answer["model"] == "k2-nano"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0
        assert "path=/v1/chat/completions status=200" in err and "Traceback" not in err
        assert "k2-nano is ready" in out and "closed" in out and "stopped" in out


def test_a_model_that_cannot_be_loaded_is_one_line_and_its_exit_code():
    with openk2_serve("--port", "0", on_load="raise CheckpointError('model.safetensors is truncated')") as process:
        _, err = process.communicate(timeout=120)
        assert process.returncode == CHECKPOINT_EXIT_CODE
        assert err == "openk2: model.safetensors is truncated\n"


CHECKPOINT_EXIT_CODE = 2


def test_a_port_in_use_is_one_line_naming_it():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with openk2_serve("--port", str(port)) as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert out == "" and err.count("\n") == 1 and str(port) in err


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--host", "0.0.0.0"], "OPENK2_API_KEY"),
        (["--tensor-parallel-size", "8"], "--tensor-parallel-size 8"),
        (["--api-key-file", "/nowhere/keys"], "/nowhere/keys"),
        (["--port", "70000"], "70000"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(args, word, monkeypatch):
    from typer.testing import CliRunner

    from openk2.cli.main import app
    from openk2.errors import ConfigError

    monkeypatch.delenv("OPENK2_API_KEY", raising=False)
    result = CliRunner().invoke(app, ["serve", *args])
    assert isinstance(result.exception, ConfigError) and word in str(result.exception)


def test_vllm_spellings_are_accepted(monkeypatch):
    from typer.testing import CliRunner

    import openk2.server.run
    from openk2.cli.main import app

    seen = []
    monkeypatch.setattr(openk2.server.run, "run_server", lambda load, settings, **_: seen.append(settings))
    args = (
        "serve some/folder --served-model-name a --served-model-name b --max-model-len 32768 --tensor-parallel-size 1 "
        "--enable-auto-tool-choice --tool-call-parser kimi_k2 --trust-remote-code"
    )
    result = CliRunner().invoke(app, args.split())
    assert result.exception is None, result.output
    assert seen[0].served_model_names == ("a", "b")


def test_health_follows_the_model(serve):
    slot = ModelSlot()
    url = serve(slot).url
    loading = HTTP.get(f"{url}/health")
    assert loading.status_code == 503 and loading.json() == {"status": "loading"}
    for method, path in [("GET", "/v1/models"), ("POST", "/v1/chat/completions")]:
        refused = HTTP.request(method, url + path)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert "loading" in refused.json()["error"]["message"]
    provider = ScriptedProvider([])
    threading.Thread(target=slot.fill, args=(provider,)).start()
    assert eventually(lambda: HTTP.get(f"{url}/health").status_code == 200)
    provider.is_alive = False  # type: ignore[attr-defined]
    assert HTTP.get(f"{url}/health").json() == {"status": "failed"}


def test_served_names_replace_the_others():
    slot = ModelSlot(ScriptedProvider([], model="k2-nano"), served_model_names=("mine", "also"))
    assert slot.names == ("mine", "also")
    assert slot.resolve(None) == slot.resolve("also") == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may take any port")
def test_a_privileged_port_is_explained():
    with pytest.raises(EnvironmentFault, match="--port"):
        open_socket("127.0.0.1", 1)


def test_an_unknown_host_is_explained():
    with pytest.raises(EnvironmentFault, match="--host nowhere"):
        open_socket("nowhere.invalid", 0)
    with pytest.raises(EnvironmentFault, match="cannot listen"):
        open_socket("192.0.2.1", 0)


def test_the_banner_says_what_nano_is_and_is_not_and_what_to_try():
    text = banner("http://127.0.0.1:8000", "k2-nano", True)
    assert "knows nothing about the world" in text and "It is not Kimi K2" in text
    assert text.count("http://127.0.0.1:8000") == 4  # ready on, browser, curl, openai
    program = text.split("python -c '")[1].split("'\n")[0]
    compile(program, "banner", "exec")
    assert "knows nothing" not in banner("http://127.0.0.1:8000", "other", False)
