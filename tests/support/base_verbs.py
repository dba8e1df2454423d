"""Walks everything that the base install offers, in a Python without torch.

    python base_verbs.py [--hide-torch]

With `--hide-torch` the packages of the extra `local` cannot be imported, whether installed or not. Run as a script,
with the base install's packages only: no pytest here.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import pkgutil
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any

HIDDEN = {"torch", "safetensors", "transformers", "triton"}
BASE_ROOMS = ("config", "errors", "assets", "tokenizer", "chat", "client", "server", "agent", "evals", "cli", "planner")


class Hider(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: object = None) -> Any:
        if fullname.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `openk2 ARGUMENTS` in this process."""
    from openk2.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["openk2", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def import_base_rooms() -> None:
    for room in BASE_ROOMS:
        if importlib.util.find_spec(f"openk2.{room}") is None:
            continue
        package = importlib.import_module(f"openk2.{room}")
        for module in pkgutil.walk_packages(getattr(package, "__path__", []), f"openk2.{room}."):
            importlib.import_module(module.name)


def run_scripted_agent() -> None:
    from openk2 import Agent, ScriptedProvider, tool
    from openk2.chat.scripted import ScriptedCall, ScriptedTurn

    @tool
    def double(number: int) -> int:
        """Twice a number.

        Args:
            number: Any number.
        """
        return 2 * number

    provider = ScriptedProvider([ScriptedTurn(calls=[ScriptedCall("double", {"number": 21})]), "It is 42."])
    result = Agent(provider, [double]).run("Double 21.")
    assert result.text == "It is 42.", result
    assert provider.requests[1].messages[-1].content == "42", "the result never came back"


def build_gateway() -> None:
    from openk2 import ScriptedProvider
    from openk2.client.gateway import Gateway, Router, Upstream
    from openk2.server.app import create_app

    create_app(Gateway(Router([Upstream("http://127.0.0.1:9/v1", ScriptedProvider([]))])))


def check_verbs() -> None:
    from openk2.cli.main import available_verbs

    code, out, _ = run("--help")
    assert code == 0 and all(verb in out for verb in available_verbs()), out
    for verb in available_verbs():
        code, out, err = run(verb, "--help")
        assert code == 0 and out, (verb, out, err)
    code, out, err = run("doctor", "--json")
    assert code == 0 and '"torch"' in out, err


def check_missing_torch_is_one_line() -> None:
    code, _, err = run("chat", "-p", "hello")
    lines = err.strip().splitlines()
    assert code != 0 and len(lines) == 1 and "openk2[local]" in lines[0], err


def main() -> None:
    if "--hide-torch" in sys.argv:
        sys.meta_path.insert(0, Hider())
    try:
        import torch  # noqa: F401
    except ImportError:
        pass
    else:
        sys.exit("torch is installed here: nothing would be shown")
    check_verbs()
    import_base_rooms()
    run_scripted_agent()
    build_gateway()
    check_missing_torch_is_one_line()
    assert not HIDDEN & set(sys.modules), "a package of the extra was imported"
    print("base verbs ok")


if __name__ == "__main__":
    main()
