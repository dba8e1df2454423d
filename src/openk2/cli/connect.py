"""`openk2 connect CLIENT`: the settings that point a coding client or editor at this server. Asks no server."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openk2.errors import ConfigError

if TYPE_CHECKING:
    from openk2.client.settings import Client, Target


def command(
    client: Annotated[str, typer.Argument(help="claude-code, cline, codex, opencode, vscode or zed.")],
    url: Annotated[str, typer.Option(help="The server's address, with or without /v1.")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="The name that the server answers to.")] = "k2-nano",
    write: Annotated[bool, typer.Option("--write", help="Merge them into the client's file; a backup stays.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Bring back what was there before --write.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the settings that point a client at this server; --write installs them, --undo takes them back.

    Exit codes: 0 done; 1 a file cannot be written; 2 an unknown client, one without a file, or a file that is not
    JSON or TOML.
    """
    from openk2.client.settings import Machine, find_client, settings_file, target
    from openk2.client.settings_file import new_file, undo_settings, write_settings

    if write and undo:
        raise typer.BadParameter("--write and --undo exclude each other")
    found, wanted = find_client(client), target(url, model)
    file = settings_file(found, Machine(Path.home(), os.environ, sys.platform))
    if (write or undo) and file is None:
        raise ConfigError(
            f"{found.title} keeps its settings in its own panel, not in a file that can be written: "
            f"`openk2 connect {found.name}` prints what to enter",
            param="client",
        )
    report = _report(found, wanted, file)
    if file is not None and write:
        written = write_settings(file, found.settings(wanted))
        report |= {"written": str(written.file), "backup": _text(written.backup)}
        lines = [f"wrote {written.file}"]
        lines += [f"backup: {written.backup}"] if written.backup else []
        lines += [f"take it back with: openk2 connect {found.name} --undo", *_listed(report["notes"])]
    elif file is not None and undo:
        undone = undo_settings(file, found.settings(wanted))
        report = {"client": found.name, "restored": str(undone.file), "exists": undone.exists}
        report["kept"] = _text(undone.kept)
        lines = [f"{undone.file} is as it was before" if undone.exists else f"removed {undone.file}: there was none"]
        lines += [f"it had been changed since; that version is now {undone.kept}"] if undone.kept else []
    else:
        lines = _printed(report, None if file is None else new_file(file, found.settings(wanted))[0])
    typer.echo(json.dumps(report, indent=2, ensure_ascii=False) if as_json else "\n".join(lines))


def _report(client: Client, target: Target, file: Path | None) -> dict[str, Any]:
    from openk2.client.settings_file import new_file

    return {
        "client": client.name,
        "api": client.api,
        "url": target.url,
        "model": target.model,
        "environment": client.environment(target),
        "file": _text(file),
        "settings": None if file is None else new_file(file, client.settings(target))[1],
        "fields": client.fields(target),
        "notes": _notes(client, target),
    }


def _text(file: Path | None) -> str | None:
    return None if file is None else str(file)


def _notes(client: Client, target: Target) -> list[str]:
    from openk2.client.settings import NANO, NANO_WINDOW

    notes = [client.then] if client.then else []
    notes.append(f"a server with API keys: the key goes {client.key}")
    if target.model == NANO:
        notes.append(
            f"{NANO} has a window of {NANO_WINDOW:,} tokens and coding clients send prompts of many thousands: "
            "expect them to be refused as too long; serve a larger model for real use"
        )
    return notes


def _printed(report: dict[str, Any], settings: str | None) -> list[str]:
    lines = []
    if report["environment"]:
        lines += ["In the shell:", ""]
        lines += [f"  export {name}={shlex.quote(value)}" for name, value in report["environment"].items()] + [""]
    if settings is not None:
        lines += [f"{'Or in' if lines else 'In'} {report['file']} (--write merges it in):", ""]
        lines += [f"  {line}" for line in settings.splitlines()] + [""]
    if report["fields"]:
        width = max(map(len, report["fields"]))
        lines += ["In the client's settings:", ""]
        lines += [f"  {name:<{width}}  {value}" for name, value in report["fields"].items()] + [""]
    return lines + _listed(report["notes"])


def _listed(notes: list[str]) -> list[str]:
    return [f"- {note}" for note in notes]
