"""A deployment as a docker compose file: one profile per node, on the host's network, which the engines' ranks need."""

from __future__ import annotations

import shlex
from typing import Any

from openk2.planner.deploy.deployment import Deployment, Process, dns_name, filled
from openk2.planner.deploy.flags import program_flags
from openk2.planner.deploy.write_shell import variable
from openk2.planner.deploy.yaml_text import yaml_text

WEIGHTS_FOLDER = "/weights"
"""Where a container keeps what it downloads."""
ROUTER_IMAGE = "python:3.12-slim"
ROUTERS = ("vllm-router", "sglang-router")
"""They have no image of their own: they are installed at start, in the version whose flags are known."""


def shell_line(process: Process, fill: Any) -> str:
    """All of a process's commands as one line for `bash -c`."""
    commands = [shlex.join(fill(word) for word in words) for words in process.before]
    if process.program in ROUTERS:
        commands.append(f"pip install --quiet {process.program}=={program_flags(process.program).version}")
    return " && ".join([*commands, f"exec {shlex.join(fill(word) for word in process.argv)}"])


def needs_shell(process: Process) -> bool:
    return bool(process.before) or process.program in ROUTERS


def compose_file(deployment: Deployment, header: list[str]) -> str:
    """The file; `header` are lines of comment. Compose fills in the addresses from its environment or `.env`."""
    services = {process.name: _service(deployment, process) for process in deployment.processes}
    text = yaml_text({"name": dns_name(f"{deployment.served_name}-{deployment.engine}"), "services": services})
    return "".join(f"# {line}\n" for line in header) + text


def _service(deployment: Deployment, process: Process) -> dict[str, Any]:
    def fill(text: str) -> str:
        def replace(name: str) -> str:
            if name == "listen":
                return "0.0.0.0" if process.is_reached else "127.0.0.1"
            owner = process.name if name == "self" else name
            return f"${{{variable(owner)}:?set it to the address of the node that runs {owner}}}"

        return filled(text.replace("$", "$$"), replace)

    is_router = process.program in ROUTERS
    service: dict[str, Any] = {"image": ROUTER_IMAGE if is_router else deployment.image}
    if len(deployment.processes) > 1:
        service["profiles"] = [process.name]
    if needs_shell(process):
        service |= {"entrypoint": ["bash", "-c"], "command": [shell_line(process, fill)]}
    else:
        service |= {"entrypoint": [process.argv[0]], "command": [fill(word) for word in process.argv[1:]]}
    service["network_mode"] = "host"
    environment = {name: fill(value) for name, value in process.environment.items()}
    if not is_router:
        service["ipc"] = "host"
        environment |= {"HF_TOKEN": "${HF_TOKEN:-}", "HF_HOME": WEIGHTS_FOLDER}
        folder = [f"{deployment.checkpoint}:{deployment.checkpoint}:ro"] if deployment.is_folder else []
        service["volumes"] = [*folder, "${HF_HOME:-${HOME}/.cache/huggingface}:" + WEIGHTS_FOLDER]
        if deployment.is_nvidia:
            device = {"driver": "nvidia", "count": process.num_devices, "capabilities": ["gpu"]}
            service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
        else:
            service |= {"devices": ["/dev/kfd", "/dev/dri"], "group_add": ["video"]}
    if environment:
        service["environment"] = environment
    if process.port is not None:
        ask = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{process.port}/health', timeout=10)"
        service["healthcheck"] = {
            "test": ["CMD", "python3", "-c", ask],
            "interval": "30s",
            "timeout": "15s",
            "retries": 3,
            "start_period": f"{deployment.start_seconds}s",
        }
    return service | {"stop_grace_period": "120s", "restart": "unless-stopped"}
