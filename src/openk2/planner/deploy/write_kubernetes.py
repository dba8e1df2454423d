"""A deployment as Kubernetes manifests: a StatefulSet of one pod per node, each with a name that the others resolve."""

from __future__ import annotations

from math import ceil
from pathlib import PurePosixPath
from typing import Any

from openk2.planner.deploy.deployment import Deployment, Process, dns_name, filled
from openk2.planner.deploy.write_compose import (
    ROUTER_IMAGE,
    ROUTERS,
    WEIGHTS_FOLDER,
    needs_shell,
    shell_line,
)
from openk2.planner.deploy.yaml_text import yaml_text

WEIGHTS_ROOM = 1.1
"""The claim for the weights, as a multiple of them."""


def kubernetes_manifests(deployment: Deployment, header: list[str]) -> str:
    """Documents for `kubectl apply`; `header` are lines of comment."""
    base = dns_name(f"{deployment.served_name}-{deployment.engine}")
    gigabytes = ceil(deployment.weights_bytes * WEIGHTS_ROOM / 1e9)
    documents: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": f"{base}-weights"},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": f"{gigabytes}G"}},
            },
        },
        _service(base, {"app": f"{base}-{deployment.entry.name}"}, deployment.port),
    ]
    for process in deployment.processes:
        name = f"{base}-{process.name}"
        headless = _service(name, {"app": name}, process.port or deployment.port)
        # Ranks look each other up before any of them is ready.
        headless["spec"] |= {"clusterIP": "None", "publishNotReadyAddresses": True}
        documents += [headless, _stateful_set(deployment, process, base)]
    return "".join(f"# {line}\n" for line in header) + "---\n".join(yaml_text(document) for document in documents)


def _service(name: str, selector: dict[str, str], port: int) -> dict[str, Any]:
    spec: dict[str, Any] = {"selector": selector, "ports": [{"name": "http", "port": port, "targetPort": port}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def _stateful_set(deployment: Deployment, process: Process, base: str) -> dict[str, Any]:
    name = f"{base}-{process.name}"
    pod: dict[str, Any] = {
        "containers": [_container(deployment, process, base)],
        "terminationGracePeriodSeconds": 120,
        # Variables such as VLLM_PORT, which Kubernetes makes of services' names, are settings of the engines.
        "enableServiceLinks": False,
    }
    if process.program not in ROUTERS:
        pod["volumes"] = [
            {"name": "weights", "persistentVolumeClaim": {"claimName": f"{base}-weights"}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ]
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name},
        "spec": {
            "serviceName": name,
            "replicas": 1,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
        },
    }


def _container(deployment: Deployment, process: Process, base: str) -> dict[str, Any]:
    def fill(text: str) -> str:
        if deployment.is_folder and text == deployment.checkpoint:
            return f"{WEIGHTS_FOLDER}/{PurePosixPath(text).name}"

        def replace(name: str) -> str:
            if name == "listen":
                return "0.0.0.0"
            return "$(POD_IP)" if name == "self" else f"{base}-{name}"

        return filled(text.replace("$(", "$$("), replace)

    is_router = process.program in ROUTERS
    container: dict[str, Any] = {
        "name": process.program,
        "image": ROUTER_IMAGE if is_router else deployment.image,
    }
    if needs_shell(process):
        container |= {"command": ["bash", "-c"], "args": [shell_line(process, fill)]}
    else:
        container |= {"command": [process.argv[0]], "args": [fill(word) for word in process.argv[1:]]}
    environment: list[dict[str, Any]] = [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        *({"name": name, "value": fill(value)} for name, value in process.environment.items()),
    ]
    if not is_router:
        token = {"name": "hugging-face", "key": "token", "optional": True}
        environment.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": token}})
        environment.append({"name": "HF_HOME", "value": WEIGHTS_FOLDER})
        resource = "nvidia.com/gpu" if deployment.is_nvidia else "amd.com/gpu"
        container["resources"] = {"limits": {resource: process.num_devices}}
        container["volumeMounts"] = [
            {"name": "weights", "mountPath": WEIGHTS_FOLDER},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ]
    container["env"] = environment
    if process.port is not None:
        asked = {"httpGet": {"path": "/health", "port": process.port}, "timeoutSeconds": 15}
        container["ports"] = [{"name": "http", "containerPort": process.port}]
        tries = ceil(deployment.start_seconds / 30)
        container["startupProbe"] = asked | {"periodSeconds": 30, "failureThreshold": tries}
        container["readinessProbe"] = asked | {"periodSeconds": 10, "failureThreshold": 3}
        container["livenessProbe"] = asked | {"periodSeconds": 30, "failureThreshold": 6}
    return container
