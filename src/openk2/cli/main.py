"""The `openk2` command: its verbs, and how their errors reach a person.

Each verb is one thin module beside this file with a function `command`, or an `app` of subcommands, imported only when
it is called: `--help` and `--version` load neither torch nor pydantic, and a verb of the base install never needs
torch.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from openk2.errors import OpenK2Error

VERBS = {
    "serve": "Serve a model over the OpenAI API, with a web page.",
    "chat": "Talk to a model in the terminal; -p TEXT answers once.",
    "agent": "Carry out a task with tools.",
    "train": "Train a model from a recipe, with MuonClip.",
    "eval": "Measure how good a model is.",
    "verify": "Check whether a deployment is faithful: its tool calls above all.",
    "compare": "Compare the records of two verifications.",
    "inspect": "Show what is in a model.",
    "experts": "Show which experts serve code, prose, numbers, tool calls.",
    "plan": "Plan a deployment: what fits, how fast, and what binds.",
    "claims": "The public guide's numbers, checked.",
    "deploy": "Write a plan as vLLM or SGLang: script, compose file, Kubernetes.",
    "connect": "Point a coding client or editor at this server.",
    "bench": "Measure speed beside this machine's limits.",
    "doctor": "Show what this machine can do.",
}
"""Verb -> its line in `--help`. The module is `openk2.cli.VERB`; a verb without its module is not offered."""

LOCAL_PACKAGES = frozenset({"torch", "safetensors"})


def available_verbs() -> list[str]:
    """The verbs of this installation, in the order of `--help`."""
    return [verb for verb in VERBS if Path(__file__).with_name(f"{verb}.py").exists()]


class VerbGroup(TyperGroup):
    """A group that holds placeholders until one of its verbs is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in self.commands:
            self.commands[args[0]] = _load(args[0])
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self.commands.get(cmd_name)


def _load(verb: str) -> Any:
    module = import_module(f"openk2.cli.{verb}")
    if (several := getattr(module, "app", None)) is not None:
        group = typer.main.get_command(several)
        group.name = verb
        return group
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name=verb)(module.command)
    return typer.main.get_command(single)


app = typer.Typer(
    name="openk2",
    cls=VerbGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _placeholder() -> None: ...


for _verb in available_verbs():
    app.command(name=_verb, help=VERBS[_verb])(_placeholder)


def _print_version(wanted: bool) -> None:
    if wanted:
        from openk2 import __version__

        typer.echo(f"openk2 {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Show the version."),
) -> None:
    """The Kimi K2-0905 system end to end: train, serve and use models of its architecture."""


def main() -> None:
    """Entry point of the console script: errors become one line on standard error and an exit code.

    `OPENK2_TRACEBACK=1` adds the traceback, for a bug report.
    """
    try:
        app(prog_name="openk2")
    except Exception as error:
        if os.environ.get("OPENK2_TRACEBACK"):
            raise
        line, code = describe(error)
        print(f"openk2: {line}", file=sys.stderr)
        sys.exit(code)


def describe(error: Exception) -> tuple[str, int]:
    """One line for a person, and the exit code."""
    if isinstance(error, OpenK2Error):
        return " ".join(str(error).split()), error.exit_code
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in LOCAL_PACKAGES:
        return f"this needs {error.name}, which is not installed; add it with: pip install 'openk2[local]'", 1
    text = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {text} (OPENK2_TRACEBACK=1 shows where)", 1
