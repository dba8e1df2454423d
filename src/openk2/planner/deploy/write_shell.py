"""A deployment as one bash script: `./run.sh PROCESS` on each node, `./run.sh health` where it answers."""

from __future__ import annotations

import re
import shlex

from openk2.planner.deploy.deployment import ADDRESS, Deployment, Process


def variable(process: str) -> str:
    """The environment variable that holds the address of a process's node."""
    return re.sub(r"\W", "_", process).upper()


def quoted(text: str, process: Process) -> str:
    """One word for bash; addresses become the variables that hold them."""
    words = []
    at = 0
    for match in ADDRESS.finditer(text):
        words.append(text[at : match.start()])
        at = match.end()
        if match[1] == "listen":
            words.append("0.0.0.0" if process.is_reached else "127.0.0.1")
        else:
            words.append(f'"${{{variable(process.name if match[1] == "self" else match[1])}}}"')
    words.append(text[at:])
    if len(words) == 1:
        return shlex.quote(text)
    return "".join(word if word.startswith('"$') else shlex.quote(word) for word in words if word)


def command(words: tuple[str, ...], process: Process) -> str:
    """A command over several lines: a flag and its values on each."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(quoted(word, process))
    return " \\\n      ".join(" ".join(line) for line in lines if line)


def shell_script(deployment: Deployment, header: list[str]) -> str:
    """The script; `header` are lines of comment."""
    lines = ["#!/usr/bin/env bash", *(f"# {line}" for line in header), "set -euo pipefail", ""]
    names = [process.name for process in deployment.processes]
    default = names[0] if len(names) == 1 else ""
    lines += [f'case "${{1:-{default}}}" in']
    for process in deployment.processes:
        lines.append(f"  {process.name})")
        for name in process.addresses:
            lines.append(f'    : "${{{variable(name)}:?set it to the address of the node that runs {name}}}"')
        lines += [f"    export {name}={quoted(value, process)}" for name, value in process.environment.items()]
        lines += [f"    {command(words, process)}" for words in process.before]
        lines += [f"    exec {command(process.argv, process)}", "    ;;"]
    url = f"http://127.0.0.1:{deployment.port}/health"
    lines += ["  health)", f"    exec curl --fail --silent --show-error --max-time 10 {url}", "    ;;"]
    usage = "|".join([*names, "health"])
    lines += ["  *)", f'    echo "usage: $0 {usage}" >&2', "    exit 2", "    ;;", "esac"]
    return "\n".join(lines) + "\n"
