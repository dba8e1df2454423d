"""`openk2 doctor`: what this machine can do, and what is missing for more. Needs no torch."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Literal

import typer

DEFAULT_PORT = 8000


@dataclass(frozen=True)
class Check:
    name: str
    status: Literal["ok", "note", "missing"]
    """`note`: works, with a limit that the advice tells; `missing`: some verbs will not run."""
    value: str
    advice: str = ""


def command(json: bool = typer.Option(False, "--json", help="Print one JSON object.")) -> None:
    """Show what this machine can do, and what is missing for more."""
    checks = run_checks()
    if json:
        import json as json_module

        typer.echo(json_module.dumps({"checks": [asdict(check) for check in checks]}, indent=2))
        return
    _print_table(checks)


def run_checks() -> list[Check]:
    """Every check, in the order in which they are shown."""
    probes: list[Callable[[], Check]] = [
        _versions,
        _processor,
        _memory,
        _gpu,
        _torch,
        _native_ops,
        _sandbox,
        _embedded_model,
        _port,
    ]
    return [probe() for probe in probes]


def _print_table(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table

    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for check in checks:
        text = check.value + (f"\n[dim]{check.advice}[/]" if check.advice else "")
        table.add_row(marks[check.status], check.name, text)
    Console().print(table)


def _versions() -> Check:
    from openk2 import __version__

    return Check("openk2", "ok", f"{__version__} on Python {platform.python_version()}, {platform.system()}")


def _processor() -> Check:
    from openk2.planner.machine import processor_name

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Check("processor", "ok", f"{processor_name()}, {cores} cores")


def _memory() -> Check:
    from openk2.planner.machine import memory_bytes

    total = memory_bytes()
    value = f"{total / 2**30:.1f} GiB"
    if total < 4 * 2**30:
        return Check("memory", "note", value, "k2-nano fits; training and larger models may not")
    return Check("memory", "ok", value)


def _run(*arguments: str) -> subprocess.CompletedProcess[str] | None:
    """The command's result, or None when it cannot be run."""
    try:
        return subprocess.run(arguments, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None


def _gpu() -> Check:
    listed = _run("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    if listed and listed.returncode == 0 and listed.stdout.strip():
        return Check("gpu", "ok", "; ".join(listed.stdout.strip().splitlines()))
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return Check("gpu", "ok", "Apple silicon (--device mps)")
    return Check("gpu", "note", "none seen", "models run on the processor")


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> Check:
    version = _installed("torch")
    if version is None:
        advice = "needed to run or train a model here: pip install 'openk2[local]' (or `make setup` in a checkout)"
        return Check("torch", "missing", "not installed", advice)
    return Check("torch", "ok", version)


def _native_ops() -> Check:
    try:
        import openk2._native as native
    except ModuleNotFoundError:
        why = "built without a C++20 compiler" if shutil.which("c++") is None else "the build of this package failed"
        advice = f"{why}; ops run on PyTorch. With a compiler: pip install --force-reinstall --no-deps -v openk2"
        return Check("native ops", "note", "not built", advice)
    except ImportError as error:
        return Check("native ops", "note", "built, but cannot be loaded", str(error))
    supported = native.supported_isas()
    wanted = os.environ.get("OPENK2_ISA")
    if wanted and wanted not in supported:
        return Check("native ops", "missing", f"OPENK2_ISA={wanted} is not available", f"use {', '.join(supported)}")
    return Check("native ops", "ok", f"{wanted or supported[-1]} (this machine has {', '.join(supported)})")


def _sandbox() -> Check:
    tried = _run("bwrap", "--ro-bind", "/", "/", "--unshare-all", "--die-with-parent", "true")
    if tried is None:
        advice = "commands that a model asks for run without a sandbox; install the package bubblewrap"
        return Check("sandbox", "note", "no bubblewrap", advice)
    if tried.returncode:
        return Check("sandbox", "note", "bubblewrap cannot start", " ".join(tried.stderr.split()))
    return Check("sandbox", "ok", "bubblewrap")


def _embedded_model() -> Check:
    from openk2 import assets
    from openk2.errors import CheckpointError

    try:
        folder = assets.path("k2-nano")
    except CheckpointError as error:
        return Check("k2-nano", "missing", "not in this installation", str(error))
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return Check("k2-nano", "ok", f"{size / 1e6:.1f} MB in {folder}")


def _port() -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", DEFAULT_PORT))
        except OSError as error:
            advice = f"{error.strerror}; choose another with `openk2 serve --port N`"
            return Check("port", "note", f"{DEFAULT_PORT} is not free", advice)
    return Check("port", "ok", f"{DEFAULT_PORT} is free")
